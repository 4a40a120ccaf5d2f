//! The limits of a policy, and the reasons for their values.
//!
//! A *limit* is a bound in [`PolicyLimits`]. A limit on time is a *budget*: the time that a call may take. A *deadline*
//! is a tick of the clock at which the host looks at a call (`sandbox.rs`): at the last one a call over its budget is
//! stopped. The clock is wasmtime's epoch, a counter that `ticker.rs` increments. The limits are part of the release: no
//! option changes them. Only the number of instances depends on the number of router threads.
//!
//! # When a loop is stopped
//!
//! **A decision that does not return is stopped at most 12 ms after its budget of 2 ms.** All other documents state
//! this figure. A decision gets 4 ticks: each half of its budget has 1 ms and one tick more (`sandbox.rs`). The first
//! tick comes after up to 10 ms, because the clock polls that seldom between calls (`ticker.rs`). Three more ticks
//! follow, 1 ms each. Every tick is late by some 0.06 ms, together up to 1 ms. The sum is 14 ms = 2 + 12.
//!
//! A decision that begins while the clock ticks is stopped 1 to 2 ms after its budget. Every other call gets 22 ticks:
//! the first after up to 10 ms, 21 more of 1 ms each, up to 2 ms late. It is stopped at most 13 ms after its budget of
//! 20 ms.
//!
//! The figures hold on a machine that runs the clock and the thread of the call. A call whose thread hardly runs,
//! because the machine is overloaded, gets up to 20 ms more (`sandbox.rs`): it would probably return if its thread ran.

/// Most instances that one router thread keeps, one for each model that it decided for lately. A thread that decides for
/// more models starts an instance anew, which takes some 30 µs, in place of the one that it used least recently. An
/// instance holds some 200 KiB.
pub const MAX_INSTANCES_PER_THREAD: usize = 256;
/// Places of the pool for what is not a thread's own: policies on trial, and instances that wait to be dropped.
const SPARE_INSTANCES: usize = 512;
/// Most instances at the same time. Each takes 64 MiB of address space (`engine.rs`), of which a process has 128 TiB.
const MAX_INSTANCES: usize = 1 << 18;

/// The limits of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyLimits {
    /// Largest component that is admitted, in bytes. Policies in Rust or C have tens of kilobytes; a mebibyte takes
    /// about half a second to compile.
    pub max_component_bytes: usize,
    /// Most bytes of all linear memories of one instance together. A decision on 1,024 candidates needs some 200 KiB.
    pub max_memory_bytes: usize,
    /// Budget of one decision, in milliseconds. An ordinary decision takes 1 to 5 microseconds. The module's doc states
    /// when a loop is stopped.
    pub decide_budget_ms: u64,
    /// Budget of every call but a decision, in milliseconds: starting, configuring and describing a policy. It is short
    /// because, after a fault, the fresh instance starts and is configured on the thread of the next request.
    pub configure_budget_ms: u64,
    /// Most instances at the same time, of all policies and threads. A higher number costs only address space.
    pub max_instances: u32,
}

impl PolicyLimits {
    /// The limits with places for all instances that this many router threads keep, and for their successors while the
    /// policies of all models are swapped.
    #[must_use]
    pub fn for_threads(threads: usize) -> Self {
        let of_threads = threads.saturating_mul(2 * MAX_INSTANCES_PER_THREAD);
        let instances = of_threads.saturating_add(SPARE_INSTANCES);
        Self {
            max_instances: instances.min(MAX_INSTANCES) as u32,
            ..Self::default()
        }
    }
}

impl Default for PolicyLimits {
    fn default() -> Self {
        Self {
            max_component_bytes: 1 << 20,
            max_memory_bytes: 16 << 20,
            decide_budget_ms: 2,
            configure_budget_ms: 20,
            max_instances: SPARE_INSTANCES as u32,
        }
    }
}
