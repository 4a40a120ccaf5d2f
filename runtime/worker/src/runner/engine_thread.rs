//! A thread that steps engines in turn.
//!
//! A real engine has a thread of its own. Simulated engines share a thread: a thousand threads, each woken for every
//! request, would cost more than the simulation.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Instant,
};

use signalbox_event_plane::EventLog;
use signalbox_tokenize::ModelText;

use super::{
    RunnerHandle, RunnerState,
    engine_run::{EngineRun, NextAdvance},
    intake::{Intake, PreparedRequest},
};
use crate::engine::StepEngine;

/// Most messages in the queue to the thread: enough for the messages that arrive during one long step, or while a
/// thousand engines are stepped once. Each engine has its own queue of sequences after this one.
const BACKLOG: usize = 4_096;

/// A thread that steps engines. The thread ends when this value and all handles of its engines are dropped and all open
/// requests have ended.
#[derive(Debug)]
pub struct EngineThread {
    mailbox: EngineMailbox,
    /// Number of engines started on the thread, which is the number of the next engine.
    started: AtomicUsize,
}

/// Sends messages to a thread.
#[derive(Debug, Clone)]
pub(super) struct EngineMailbox {
    pub(super) messages: SyncSender<Message>,
    /// Set when an engine of the thread is requested to stop.
    pub(super) stop_requested: Arc<AtomicBool>,
}

/// A message to the thread. Engines are numbered from 0.
pub(super) enum Message {
    /// Start to step this engine.
    Engine(usize, Box<EngineRun>),
    /// Submit a request to an engine.
    Request(usize, Box<PreparedRequest>),
    /// Check whether an engine is requested to stop.
    Wake,
}

impl EngineThread {
    /// Starts a thread without engines. The thread is called `engine-` and `name`.
    ///
    /// # Errors
    /// The operating system cannot start a thread.
    pub fn start(name: &str) -> io::Result<Self> {
        let (messages, queue) = sync_channel(BACKLOG);
        let stop_requested = Arc::new(AtomicBool::new(false));
        let step_loop = StepLoop {
            queue,
            senders: Senders::Connected,
            stop_requested: stop_requested.clone(),
            engines: Vec::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
        };
        thread::Builder::new()
            .name(format!("engine-{name}"))
            .spawn(move || step_loop.run())?;
        Ok(Self {
            mailbox: EngineMailbox {
                messages,
                stop_requested,
            },
            started: AtomicUsize::new(0),
        })
    }

    /// Steps `engine` from now on. `model` salts the hashes of KV blocks and must be the model's name on the worker's
    /// card. `text` is the model's tokenizer. The engine's KV events go to `log`.
    pub fn run(
        &self,
        engine: Box<dyn StepEngine>,
        model: &str,
        text: Arc<ModelText>,
        log: EventLog,
    ) -> RunnerHandle {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let intake = Arc::new(Intake::new(engine.info(), model, text.clone()));
        let stopping = Arc::new(AtomicBool::new(false));
        let (run, load, state) = EngineRun::new(engine, text, log, stopping.clone());
        // Waits if the queue is full. Does not fail: the thread runs as long as this value exists.
        let _ = self.mailbox.messages.send(Message::Engine(number, Box::new(run)));
        RunnerHandle {
            mailbox: self.mailbox.clone(),
            number,
            intake,
            stopping,
            load,
            state,
        }
    }
}

/// Whether a sender of the queue still exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Senders {
    Connected,
    Dropped,
}

/// The state of the thread.
struct StepLoop {
    queue: Receiver<Message>,
    senders: Senders,
    stop_requested: Arc<AtomicBool>,
    /// The engines by number; `None` for an engine that has ended.
    engines: Vec<Option<EngineSlot>>,
    /// Engines to advance now, in turn.
    ready: VecDeque<usize>,
    /// Engines to advance later, by time.
    timers: BTreeSet<(Instant, usize)>,
}

struct EngineSlot {
    run: Box<EngineRun>,
    next: NextAdvance,
}

impl StepLoop {
    fn run(mut self) {
        loop {
            self.take_messages();
            if self.stop_requested.swap(false, Ordering::AcqRel) {
                self.end_engines(EngineRun::is_stopping);
            }
            let now = Instant::now();
            while self.timers.first().is_some_and(|(due, _)| *due <= now) {
                let due = self.timers.pop_first();
                self.ready.extend(due.map(|(_, number)| number));
            }
            // Advances each ready engine once, then takes messages again.
            for _ in 0..self.ready.len() {
                if let Some(number) = self.ready.pop_front() {
                    self.advance(number);
                }
            }
            if self.senders == Senders::Dropped {
                self.end_engines(EngineRun::is_idle);
                if self.engines.iter().all(Option::is_none) {
                    return;
                }
            }
        }
    }

    /// Takes the messages in the queue. Waits for a message or a timer if there is nothing to do.
    fn take_messages(&mut self) {
        let Some(first) = self.wait() else { return };
        self.take(first);
        // At most as many as the queue holds, so that senders cannot keep the engines from stepping.
        for _ in 1..BACKLOG {
            let Ok(message) = self.queue.try_recv() else {
                return;
            };
            self.take(message);
        }
    }

    /// The first message of the queue. Waits for it until the next timer, or not at all if an engine is ready.
    fn wait(&mut self) -> Option<Message> {
        let due = self.timers.first().map(|(due, _)| *due);
        let until = |due: Instant| due.saturating_duration_since(Instant::now());
        if self.senders == Senders::Dropped {
            // Waiting on a queue without senders returns at once.
            if let Some(due) = due.filter(|_| self.ready.is_empty()) {
                thread::sleep(until(due));
            }
            return None;
        }
        let received = match due {
            _ if !self.ready.is_empty() => return self.queue.try_recv().ok(),
            Some(due) => self.queue.recv_timeout(until(due)),
            None => self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        if matches!(received, Err(RecvTimeoutError::Disconnected)) {
            self.senders = Senders::Dropped;
        }
        received.ok()
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Engine(number, run) => {
                self.engines
                    .resize_with(self.engines.len().max(number + 1), || None);
                let next = NextAdvance::OnRequest;
                self.engines[number] = Some(EngineSlot { run, next });
            }
            // If the engine has ended, the request is dropped, which fails it.
            Message::Request(number, request) => self.call(number, |slot| {
                slot.run.accept(*request);
                // Any other engine is in `ready` or `timers` already.
                (slot.next == NextAdvance::OnRequest).then_some(NextAdvance::Now)
            }),
            Message::Wake => {}
        }
    }

    fn advance(&mut self, number: usize) {
        self.call(number, |slot| Some(slot.run.advance(Instant::now())));
    }

    /// Calls `operation` on an engine and schedules the engine as the result says. A panic ends the engine.
    fn call(&mut self, number: usize, operation: impl FnOnce(&mut EngineSlot) -> Option<NextAdvance>) {
        let Some(slot) = self.engines.get_mut(number).and_then(Option::as_mut) else {
            return;
        };
        // After a panic the engine may be in an inconsistent state. Its requests are failed and it is dropped.
        let Ok(next) = catch_unwind(AssertUnwindSafe(|| operation(slot))) else {
            tracing::error!(
                engine = number,
                "the engine panicked; its worker can answer no more requests"
            );
            return self.end(number, RunnerState::Failed);
        };
        let Some(next) = next else { return };
        slot.next = next;
        match next {
            NextAdvance::Now => self.ready.push_back(number),
            NextAdvance::At(due) => _ = self.timers.insert((due, number)),
            NextAdvance::OnRequest => {}
        }
    }

    /// Ends the engines for which `condition` holds.
    fn end_engines(&mut self, condition: impl Fn(&EngineRun) -> bool) {
        for number in 0..self.engines.len() {
            let slot = self.engines[number].as_ref();
            if slot.is_some_and(|slot| condition(&slot.run)) {
                self.end(number, RunnerState::Stopped);
            }
        }
    }

    /// Ends an engine in the state `end`. A panic in a sink or in the engine's drop does not affect other engines.
    fn end(&mut self, number: usize, end: RunnerState) {
        let Some(mut slot) = self.engines.get_mut(number).and_then(Option::take) else {
            return;
        };
        let state = slot.run.state_sender();
        let ended = catch_unwind(AssertUnwindSafe(|| {
            if end == RunnerState::Stopped {
                slot.run.finish_step();
            }
            slot.run.fail_all();
            drop(slot);
        }));
        state.send_replace(if ended.is_ok() { end } else { RunnerState::Failed });
    }
}
