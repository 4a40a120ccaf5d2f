//! The policies inside the binary, so that building the host alone makes a complete one. `make policies` builds them
//! from `policies/`; CI verifies that what is committed decides as what is built.

/// The components built into the binary: (name, bytes).
#[must_use]
pub const fn builtin_policies() -> [(&'static str, &'static [u8]); 3] {
    [
        (
            "round-robin",
            include_bytes!("../../../policies/built/round-robin.wasm"),
        ),
        (
            "kv-aware",
            include_bytes!("../../../policies/built/kv-aware.wasm"),
        ),
        (
            "replica-synced",
            include_bytes!("../../../policies/built/replica-synced.wasm"),
        ),
    ]
}
