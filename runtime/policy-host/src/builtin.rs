//! The policies inside the binary. They are committed as components, so that the binary builds without a wasm
//! toolchain. `make policies` builds them from `policies/`; CI verifies that the committed ones decide as newly built
//! ones do.

/// The built-in components, each with its name.
#[must_use]
pub const fn builtin_policies() -> [(&'static str, &'static [u8]); 9] {
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
            "kv-linear",
            include_bytes!("../../../policies/built/kv-linear.wasm"),
        ),
        (
            "replica-synced",
            include_bytes!("../../../policies/built/replica-synced.wasm"),
        ),
        (
            "least-loaded",
            include_bytes!("../../../policies/built/least-loaded.wasm"),
        ),
        (
            "power-of-two",
            include_bytes!("../../../policies/built/power-of-two.wasm"),
        ),
        ("random", include_bytes!("../../../policies/built/random.wasm")),
        (
            "session-affinity",
            include_bytes!("../../../policies/built/session-affinity.wasm"),
        ),
        (
            "prefix-hash",
            include_bytes!("../../../policies/built/prefix-hash.wasm"),
        ),
    ]
}
