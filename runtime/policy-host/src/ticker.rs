//! The clock of deadlines: a thread that advances the engine's epoch every millisecond while a policy runs.
//!
//! A call takes a microsecond, so the thread seldom finds one in progress. While no call is in progress it polls every
//! 10 ms, and after a second without any call it sleeps until the next one. So a busy router has few wake-ups and an
//! idle one has none. `limits.rs` states when a loop is stopped.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst},
    },
    thread::{self, Thread},
    time::Duration,
};

use wasmtime::Engine;

/// One tick, the unit of budgets. A shorter tick costs wake-ups, a longer one lets a loop run longer.
const TICK: Duration = Duration::from_millis(1);
/// The poll interval while no call is in progress. A longer one lets a loop run longer; this one saves nine in ten
/// wake-ups.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Polls in a row without any call before the thread sleeps: one second.
const IDLE_POLLS: u32 = 100;

/// A handle on the thread, which ends with its engine.
#[derive(Debug)]
pub(crate) struct Ticker(Arc<TickerState>);

#[derive(Debug, Default)]
struct TickerState {
    /// Calls in progress.
    running: AtomicU32,
    /// Calls that began so far.
    begun: AtomicU64,
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

/// A call in progress. Drop it when the call has ended.
#[derive(Debug)]
pub(crate) struct Running<'a>(&'a TickerState);

impl Ticker {
    /// Starts the thread for `engine`.
    pub(crate) fn start(engine: &Engine) -> std::io::Result<Self> {
        let state = Arc::new(TickerState::default());
        let (weak_engine, weak_state) = (engine.weak(), Arc::downgrade(&state));
        let tick = move || {
            let (mut pause, mut begun_before, mut idle_polls) = (TICK, 0, 0);
            loop {
                thread::sleep(pause);
                let (Some(engine), Some(state)) = (weak_engine.upgrade(), weak_state.upgrade()) else {
                    return;
                };
                engine.increment_epoch();
                let begun = state.begun.load(Relaxed);
                let is_running = state.running.load(Relaxed) > 0;
                pause = if is_running { TICK } else { POLL_INTERVAL };
                let is_idle = !is_running && begun == begun_before;
                idle_polls = if is_idle { idle_polls + 1 } else { 0 };
                begun_before = begun;
                if idle_polls < IDLE_POLLS {
                    continue;
                }
                // Either a call reads `asleep` and wakes this thread, or this thread reads that the call is running.
                state.asleep.store(true, SeqCst);
                let is_running = state.running.load(SeqCst) > 0;
                drop((engine, state));
                if !is_running {
                    thread::park();
                }
                if let Some(state) = weak_state.upgrade() {
                    state.asleep.store(false, SeqCst);
                }
                idle_polls = 0;
            }
        };
        let handle = thread::Builder::new().name("policy-ticker".into()).spawn(tick)?;
        state.thread.get_or_init(|| handle.thread().clone());
        Ok(Self(state))
    }

    /// Notes that a call begins. Hold the result from before the guest is entered until it has returned: the call has
    /// no deadline otherwise.
    pub(crate) fn enter(&self) -> Running<'_> {
        self.0.begun.fetch_add(1, Relaxed);
        self.0.running.fetch_add(1, SeqCst);
        if self.0.asleep.load(SeqCst) {
            self.unpark();
        }
        Running(&self.0)
    }

    /// Waits until the thread sleeps, as it does on an idle host. No policy may be called meanwhile.
    #[cfg(test)]
    pub(crate) fn wait_until_asleep(&self) {
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
