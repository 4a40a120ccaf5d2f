//! What stands around one instance: its memory limit and its deadline.
//!
//! A deadline is two deadlines. Time passes for a policy also while the operating system runs something else, so a
//! call that is only unlucky must not be taken for one that loops: at the first deadline, half way, it is let run on;
//! at the second it is stopped, unless its thread has hardly run in between: then it has that time again, tick by tick,
//! within a bound. An innocent call that was held up finishes in microseconds once it runs again.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{Engine, ResourceLimiter, Store, UpdateDeadline};

/// A table entry takes 8 bytes of host memory; a policy's tables hold its indirect functions, some hundreds.
const MAX_TABLE_ELEMENTS: usize = 20_000;

/// Ticks a call may stay beyond its second deadline because its thread was kept from running. With the budget of a
/// decision that is half of the 50 ms a request may be delayed by a policy, however busy the machine is.
const MAX_STALLED_TICKS: u64 = 20;

/// The store data of every instance.
#[derive(Debug)]
pub(crate) struct Sandbox {
    max_memory_bytes: usize,
    /// Milliseconds the second half of the current call's budget has.
    second_half: u64,
    /// Once the current call has passed its first deadline: how long its thread had run by then.
    late: Option<Duration>,
    /// Ticks that may still be added for time in which the thread did not run.
    stalled_ticks: u64,
}

/// The guest asked for more memory than it may have.
#[derive(Debug, thiserror::Error)]
#[error("asked for {asked} bytes of memory; the limit is {limit}")]
pub(crate) struct MemoryRefused {
    pub(crate) asked: usize,
    pub(crate) limit: usize,
}

impl Sandbox {
    /// An empty store with the limits in force. Its deadline is in the past until [`Sandbox::arm`] sets one.
    pub(crate) fn store(engine: &Engine, max_memory_bytes: usize) -> Store<Self> {
        let mut store = Store::new(
            engine,
            Self {
                max_memory_bytes,
                second_half: 0,
                late: Some(Duration::ZERO),
                stalled_ticks: 0,
            },
        );
        store.limiter(|sandbox| sandbox);
        store.epoch_deadline_callback(|mut context| {
            let sandbox = context.data_mut();
            // Only late calls ask: others do not pay for the system call.
            let run = thread_time();
            let Some(before) = sandbox.late else {
                sandbox.late = Some(run);
                return Ok(UpdateDeadline::Continue(sandbox.second_half + 1));
            };
            let has_run = run.saturating_sub(before) >= Duration::from_millis(sandbox.second_half);
            if has_run || sandbox.stalled_ticks == 0 {
                return Ok(UpdateDeadline::Interrupt);
            }
            sandbox.stalled_ticks -= 1;
            Ok(UpdateDeadline::Continue(1))
        });
        store
    }

    /// Gives the next call `budget_ms`, counted in ticks of 1 ms. The tick under way when a half begins is not a
    /// whole one, hence one more each, and the ticker may rest when the call begins: a loop is stopped at most 12 ms
    /// after its budget, where its thread can run.
    pub(crate) fn arm(store: &mut Store<Self>, budget_ms: u64) {
        let second_half = budget_ms / 2;
        let sandbox = store.data_mut();
        sandbox.late = None;
        sandbox.stalled_ticks = MAX_STALLED_TICKS;
        sandbox.second_half = second_half;
        store.set_epoch_deadline(budget_ms - second_half + 1);
    }
}

/// How long this thread has run so far.
fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

impl ResourceLimiter for Sandbox {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > self.max_memory_bytes {
            // An error, not a refusal: the guest would turn a refusal into an abort nobody can tell from a bug.
            return Err(MemoryRefused {
                asked: desired,
                limit: self.max_memory_bytes,
            }
            .into());
        }
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= MAX_TABLE_ELEMENTS)
    }
}
