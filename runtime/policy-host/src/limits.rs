//! The limits of a policy, and the reasons for their values.
//!
//! # When a loop is stopped
//!
//! **A decision that does not return is stopped at most 12 ms after its budget of 2 ms.** All other documents state
//! this figure. It is the sum of:
//!
//! - up to 10 ms until the clock of deadlines makes its first tick, because the clock rests between calls
//!   (`ticker.rs`). It then ticks every millisecond, and the first tick counts for the budget;
//! - 1 ms, because each half of the budget has a tick more than its milliseconds (`sandbox.rs`);
//! - up to 1 ms, because each tick is late by some 0.06 ms.
//!
//! A decision that begins while the clock ticks is stopped 1 to 2 ms after its budget. Any other call has 22 ticks in
//! place of 4, and is stopped at most 13 ms after its budget of 20 ms.
//!
//! The figures hold on a machine that runs the clock and the thread of the call. A call whose thread hardly runs,
//! because the machine is overloaded, gets up to 20 ms more (`sandbox.rs`): it would probably return if its thread ran.

/// The limits of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyLimits {
    /// Largest component that is admitted, in bytes. Policies in Rust or C have tens of kilobytes; a mebibyte takes
    /// about half a second to compile.
    pub max_component_bytes: usize,
    /// Largest linear memory of one instance, in bytes. A decision on 1,024 candidates needs some 200 KiB.
    pub max_memory_bytes: usize,
    /// Budget of one decision, in milliseconds. An ordinary decision takes 1 to 5 microseconds. The module's doc states
    /// when a loop is stopped.
    pub decide_budget_ms: u64,
    /// Budget of every other call, in milliseconds. It is short because, after a fault, the fresh instance starts and
    /// is configured on the thread of the next request.
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
