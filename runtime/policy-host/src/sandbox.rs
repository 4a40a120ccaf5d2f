//! The bounds around one instance: its memory, and the time of each call.
//!
//! A call has a budget, which is the time that it may take, and deadlines, which are the ticks of wasmtime's epoch (a
//! counter, see `ticker.rs`) at which the host looks at the call. [`Sandbox::arm`] turns the budget into deadlines, one
//! for each half of the budget. Time also passes for a call while the operating system runs other threads, and such a
//! call must not be mistaken for a loop. At the first deadline the call continues. At the second deadline it is stopped
//! if its thread ran for a whole half since the first. If the thread hardly ran, the call continues, one tick after the
//! other, up to a bound. A call that was only held up returns in microseconds once its thread runs again. `limits.rs`
//! states when a loop is stopped in all.

use std::time::Duration;

use crate::diagnostics::Diagnostics;
use rustix::time::{ClockId, clock_gettime};

use wasmtime::{Engine, ResourceLimiter, Store, UpdateDeadline};

/// Most entries of a table. An entry takes 8 bytes of host memory; a policy's tables hold some hundred functions.
const MAX_TABLE_ELEMENTS: usize = 20_000;

/// Most ticks that a call continues after its second deadline because its thread hardly ran. A loop in a decision takes
/// 14 ms at most and these ticks 20 ms, together 34 ms. No request should hold an HTTP thread for more than 50 ms.
const MAX_STALLED_TICKS: u64 = 20;

/// Most bytes that a policy hands to the host in one call of `diagnostics.log`, and in one answer: the largest snapshot is
/// 1 MiB. The host copies them, during which no deadline stops the call.
const MAX_HANDED_OVER: usize = 4 << 20;

/// The store data of every instance.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// What the policy writes to the log.
    pub(crate) diagnostics: Diagnostics,
    max_memory_bytes: usize,
    /// Size of all linear memories together.
    memory_bytes: usize,
    /// By how much the last growth of a memory was to increase that.
    last_growth: usize,
    /// Length of the second half of the current call's budget, in milliseconds.
    second_half: u64,
    /// How long the thread of the current call had run at the call's first deadline; `None` before that deadline.
    ran_at_first_deadline: Option<Duration>,
    /// Ticks that the current call can still continue because its thread hardly ran.
    stalled_ticks_left: u64,
}

/// The guest requested more memory than its limit.
#[derive(Debug, thiserror::Error)]
#[error("requested {requested} bytes of memory; the limit is {limit}")]
pub(crate) struct MemoryRefused {
    pub(crate) requested: usize,
    pub(crate) limit: usize,
}

impl Sandbox {
    /// An empty store with this bound on its memory. No call may run before [`Sandbox::arm`] sets its deadlines.
    pub(crate) fn store(engine: &Engine, max_memory_bytes: usize) -> Store<Self> {
        let mut store = Store::new(
            engine,
            Self {
                diagnostics: Diagnostics::default(),
                max_memory_bytes,
                memory_bytes: 0,
                last_growth: 0,
                second_half: 0,
                ran_at_first_deadline: Some(Duration::ZERO),
                stalled_ticks_left: 0,
            },
        );
        store.limiter(|sandbox| sandbox);
        store.set_hostcall_fuel(MAX_HANDED_OVER);
        store.epoch_deadline_callback(|mut context| {
            let sandbox = context.data_mut();
            // Only a late call comes here, so an ordinary one does not pay for the system call.
            let ran = thread_time();
            let Some(before) = sandbox.ran_at_first_deadline else {
                sandbox.ran_at_first_deadline = Some(ran);
                return Ok(UpdateDeadline::Continue(sandbox.second_half + 1));
            };
            let ran_a_half = ran.saturating_sub(before) >= Duration::from_millis(sandbox.second_half);
            if ran_a_half || sandbox.stalled_ticks_left == 0 {
                return Ok(UpdateDeadline::Interrupt);
            }
            sandbox.stalled_ticks_left -= 1;
            Ok(UpdateDeadline::Continue(1))
        });
        store
    }

    /// Size of all linear memories together.
    pub(crate) const fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Sets the deadlines of the next call, which has a budget of `budget_ms`, counted in ticks of 1 ms. Each half has
    /// one tick more, because it can begin just before a tick.
    pub(crate) fn arm(store: &mut Store<Self>, budget_ms: u64) {
        let second_half = budget_ms / 2;
        let sandbox = store.data_mut();
        sandbox.ran_at_first_deadline = None;
        sandbox.stalled_ticks_left = MAX_STALLED_TICKS;
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
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.last_growth = desired.saturating_sub(current);
        let requested = self.memory_bytes.saturating_add(self.last_growth);
        if requested > self.max_memory_bytes {
            // An error, not a refusal: the guest would turn a refusal into a trap that looks like a bug.
            return Err(MemoryRefused {
                requested,
                limit: self.max_memory_bytes,
            }
            .into());
        }
        self.memory_bytes = requested;
        Ok(true)
    }

    /// The memory stays as it was: beyond the guest's own maximum, for example.
    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory_bytes -= std::mem::take(&mut self.last_growth);
        Ok(())
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
