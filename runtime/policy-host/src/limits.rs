//! What a policy may use, and why these figures.

/// What a policy may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyLimits {
    /// Largest component that is accepted, in bytes. Policies in Rust or C have tens of kilobytes; compiling takes
    /// about half a second a mebibyte.
    pub max_component_bytes: usize,
    /// Most linear memory of one instance, in bytes. A decision on 1,024 candidates needs some 200 KiB.
    pub max_memory_bytes: usize,
    /// Time for one decision, in milliseconds. A call that never ends is stopped 1 to 2 ms later than this;
    /// on a machine too busy to run it, up to 20 ms later.
    /// An ordinary decision takes 1 to 5 microseconds.
    pub decide_budget_ms: u64,
    /// Time to configure and describe itself, in milliseconds. After a fault the fresh instance is configured on
    /// the thread of the next request, which is why this is not generous.
    pub configure_budget_ms: u64,
}

impl Default for PolicyLimits {
    fn default() -> Self {
        Self {
            max_component_bytes: 1 << 20,
            max_memory_bytes: 16 << 20,
            decide_budget_ms: 2,
            configure_budget_ms: 20,
        }
    }
}
