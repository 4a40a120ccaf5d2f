//! Typed access to a component's exports, generated from `wit/`. Only [`crate::convert`] and [`crate::instance`] look
//! in here.

wasmtime::component::bindgen!({
    path: "../../wit",
    // All that a component may export; each interface is looked for on its own.
    inline: "
        package signalbox:host;
        world guest {
            export signalbox:policy/routing@0.1.0;
            export signalbox:policy/observer@0.1.0;
            export signalbox:policy/state@0.1.0;
            export signalbox:policy/explainer@0.1.0;
        }
    ",
    world: "signalbox:host/guest",
    // Columns are handed over as slices: no copy before the one into the guest's memory.
    ownership: Borrowing { duplicate_if_necessary: false },
});

pub(crate) use exports::signalbox::policy::{explainer, observer, routing, state};
pub(crate) use signalbox::policy::types;
