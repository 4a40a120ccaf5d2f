//! The clock of deadlines: a thread that advances the engine's epoch every millisecond while policies are running,
//! and sleeps when none has run for a while, so that an idle router wakes nobody.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst},
    },
    thread::{self, Thread},
    time::Duration,
};

use wasmtime::Engine;

/// One tick: the unit budgets are counted in. Finer ticks cost wake-ups, coarser ones delay the end of a loop.
const TICK: Duration = Duration::from_millis(1);
/// Ticks without any call before the thread sleeps, beyond the longest budget (a call under way must be ended first).
const IDLE_TICKS: u64 = 1_000;

/// A handle on the ticking thread, which ends with its engine.
#[derive(Debug)]
pub(crate) struct Ticker(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// A call began since the last tick. Read by every call, written by few.
    called: AtomicBool,
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Ticker {
    /// Starts ticking for `engine`, whose longest budget is `longest_budget_ms`.
    pub(crate) fn start(engine: &Engine, longest_budget_ms: u64) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (engine, state) = (engine.weak(), Arc::downgrade(&shared));
        let idle_ticks = longest_budget_ms.saturating_mul(2).saturating_add(IDLE_TICKS);
        let ticking = move || {
            let mut idle = 0;
            loop {
                thread::sleep(TICK);
                let (Some(engine), Some(shared)) = (engine.upgrade(), state.upgrade()) else {
                    return;
                };
                engine.increment_epoch();
                idle = if shared.called.swap(false, SeqCst) {
                    0
                } else {
                    idle + 1
                };
                if idle < idle_ticks {
                    continue;
                }
                // A call either sees `asleep` and wakes this thread, or was seen here.
                shared.asleep.store(true, SeqCst);
                let called = shared.called.load(SeqCst);
                drop((engine, shared));
                if !called {
                    thread::park();
                }
                if let Some(shared) = state.upgrade() {
                    shared.asleep.store(false, SeqCst);
                }
                idle = 0;
            }
        };
        let handle = thread::Builder::new()
            .name("policy-ticker".into())
            .spawn(ticking)?;
        shared.thread.get_or_init(|| handle.thread().clone());
        Ok(Self(shared))
    }

    /// To be called before every entry into a guest, so that its deadline will come.
    pub(crate) fn wake(&self) {
        if self.0.called.load(Relaxed) {
            return;
        }
        self.0.called.store(true, SeqCst);
        if self.0.asleep.load(SeqCst) {
            self.unpark();
        }
    }

    /// Waits until the thread sleeps, as it does on an idle host; nobody may call a policy meanwhile.
    #[cfg(test)]
    pub(crate) fn doze(&self) {
        while !self.0.asleep.load(SeqCst) {
            thread::sleep(TICK);
        }
    }

    fn unpark(&self) {
        if let Some(thread) = self.0.thread.get() {
            thread.unpark();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.unpark();
    }
}
