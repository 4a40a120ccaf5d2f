//! Typed access to a component's exports, generated from `wit/`. No type of this module leaves the crate.

wasmtime::component::bindgen!({
    path: "../../wit",
    // The one interface that a component can import, and every one that it can export. The host looks for each one
    // separately.
    inline: "
        package signalbox:host;
        world guest {
            import signalbox:policy/diagnostics@0.2.0;
            export signalbox:policy/routing@0.2.0;
            export signalbox:policy/observer@0.2.0;
            export signalbox:policy/state@0.2.0;
            export signalbox:policy/explainer@0.2.0;
        }
    ",
    world: "signalbox:host/guest",
    // Columns are slices: the only copy is the one into the guest's memory.
    ownership: Borrowing { duplicate_if_necessary: false },
});

pub(crate) use exports::signalbox::policy::{explainer, observer, routing, state};
pub(crate) use signalbox::policy::{diagnostics, types};
