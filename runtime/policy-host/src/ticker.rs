//! The clock of deadlines: a thread that advances the engine's epoch every millisecond while a policy is running. A call
//! takes a microsecond, so hardly any is met: then it looks less often, and not at all when none came for a while. An
//! idle router wakes nobody, and a busy one hardly anybody.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
    thread::{self, Thread},
    time::Duration,
};

use wasmtime::Engine;

/// One tick: the unit budgets are counted in. Finer ticks cost wake-ups, coarser ones delay the end of a loop.
const TICK: Duration = Duration::from_millis(1);
/// Until the next look where no call is met: what a loop may run on for beyond its budget, and a tenth of the wake-ups.
const REST: Duration = Duration::from_millis(10);
/// Looks without any call since the one before until the thread sleeps: a second's worth.
const IDLE_LOOKS: u32 = 100;

/// A handle on the ticking thread, which ends with its engine.
#[derive(Debug)]
pub(crate) struct Ticker(Arc<TickerState>);

#[derive(Debug, Default)]
struct TickerState {
    /// Calls under way.
    running: AtomicU32,
    /// Calls begun so far.
    begun: AtomicU64,
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

/// A call under way; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Running<'a>(&'a TickerState);

impl Ticker {
    /// Starts ticking for `engine`.
    pub(crate) fn start(engine: &Engine) -> std::io::Result<Self> {
        let shared = Arc::new(TickerState::default());
        let (engine, state) = (engine.weak(), Arc::downgrade(&shared));
        let ticking = move || {
            let (mut pause, mut seen, mut idle) = (TICK, 0, 0);
            loop {
                thread::sleep(pause);
                let (Some(engine), Some(shared)) = (engine.upgrade(), state.upgrade()) else {
                    return;
                };
                engine.increment_epoch();
                let begun = shared.begun.load(Relaxed);
                let is_running = shared.running.load(Relaxed) > 0;
                pause = if is_running { TICK } else { REST };
                idle = if is_running || begun != seen { 0 } else { idle + 1 };
                seen = begun;
                if idle < IDLE_LOOKS {
                    continue;
                }
                // A call either sees `asleep` and wakes this thread, or is seen here.
                shared.asleep.store(true, SeqCst);
                let is_running = shared.running.load(SeqCst) > 0;
                drop((engine, shared));
                if !is_running {
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

    /// To be held from before a guest is entered until it has returned, so that its deadline will come.
    pub(crate) fn enter(&self) -> Running<'_> {
        self.0.begun.fetch_add(1, Relaxed);
        self.0.running.fetch_add(1, SeqCst);
        if self.0.asleep.load(SeqCst) {
            self.unpark();
        }
        Running(&self.0)
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

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.unpark();
    }
}
