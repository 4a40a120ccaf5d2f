//! A thread, and the engines it steps in turn.
//!
//! A real engine has a thread to itself. Simulated ones share: a thousand threads, each woken for every request, would
//! cost more than what they simulate.

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
    engine_run::{EngineRun, Next},
    intake::{Intake, Job},
};
use crate::engine::StepEngine;

/// Messages that may lie between the network and the thread: what can arrive during one long step, or while a thousand
/// engines are stepped once. The engines' own queues come after it.
const BACKLOG: usize = 4_096;

/// Steps engines. The thread ends when this and all handles of its engines are dropped and what was open is finished.
#[derive(Debug)]
pub struct EngineThread {
    to_thread: ToThread,
    started: AtomicUsize,
}

/// The way to a thread.
#[derive(Debug, Clone)]
pub(super) struct ToThread {
    pub(super) messages: SyncSender<Message>,
    /// Some engine is to stop.
    pub(super) stops: Arc<AtomicBool>,
}

/// What the thread is told; engines are numbered from 0.
pub(super) enum Message {
    Engine(usize, Box<EngineRun>),
    Job(usize, Box<Job>),
    /// Look at the stop flag.
    Wake,
}

impl EngineThread {
    /// Starts a thread without engines; `name` says what for.
    ///
    /// # Errors
    /// The operating system grants no thread.
    pub fn start(name: &str) -> io::Result<Self> {
        let (messages, queue) = sync_channel(BACKLOG);
        let stops = Arc::new(AtomicBool::new(false));
        let stepping = Stepping {
            queue,
            callers: Callers::Some,
            stops: stops.clone(),
            engines: Vec::new(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
        };
        thread::Builder::new()
            .name(format!("engine-{name}"))
            .spawn(move || stepping.run())?;
        Ok(Self {
            to_thread: ToThread { messages, stops },
            started: AtomicUsize::new(0),
        })
    }

    /// Steps `engine` from now on. `model` salts the identities of KV blocks and must be the name on the worker's card;
    /// `text` is the model's; the engine's KV events go to `log`.
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
        // It waits where the queue is full; the thread is there as long as this handle is.
        let _ = self
            .to_thread
            .messages
            .send(Message::Engine(number, Box::new(run)));
        RunnerHandle {
            to_thread: self.to_thread.clone(),
            number,
            intake,
            stopping,
            load,
            state,
        }
    }
}

/// Whether anybody can still send messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Callers {
    Some,
    None,
}

/// All that lives on the thread.
struct Stepping {
    queue: Receiver<Message>,
    callers: Callers,
    stops: Arc<AtomicBool>,
    /// By number; `None` once it has ended.
    engines: Vec<Option<Stepped>>,
    /// Those to be stepped now, in turn.
    ready: VecDeque<usize>,
    /// Those to be stepped later.
    timers: BTreeSet<(Instant, usize)>,
}

struct Stepped {
    run: Box<EngineRun>,
    next: Next,
}

impl Stepping {
    fn run(mut self) {
        loop {
            self.take_messages();
            if self.stops.swap(false, Ordering::AcqRel) {
                self.end_where(EngineRun::is_stopping);
            }
            let now = Instant::now();
            while self.timers.first().is_some_and(|(due, _)| *due <= now) {
                let due = self.timers.pop_first();
                self.ready.extend(due.map(|(_, number)| number));
            }
            // Each once, so that messages are taken in between.
            for _ in 0..self.ready.len() {
                if let Some(number) = self.ready.pop_front() {
                    self.advance(number);
                }
            }
            if self.callers == Callers::None {
                self.end_where(EngineRun::is_done);
                if self.engines.iter().all(Option::is_none) {
                    return;
                }
            }
        }
    }

    /// Takes what lies in the queue. Waits for something to do where there is nothing.
    fn take_messages(&mut self) {
        let Some(first) = self.wait() else { return };
        self.take(first);
        // As many as the queue holds, so that senders cannot keep the engines from stepping.
        for _ in 1..BACKLOG {
            let Ok(message) = self.queue.try_recv() else {
                return;
            };
            self.take(message);
        }
    }

    fn wait(&mut self) -> Option<Message> {
        let due = self.timers.first().map(|(due, _)| *due);
        let patience = |due: Instant| due.saturating_duration_since(Instant::now());
        if self.callers == Callers::None {
            // Waiting on the queue would return at once.
            if let Some(due) = due.filter(|_| self.ready.is_empty()) {
                thread::sleep(patience(due));
            }
            return None;
        }
        let received = match due {
            _ if !self.ready.is_empty() => return self.queue.try_recv().ok(),
            Some(due) => self.queue.recv_timeout(patience(due)),
            None => self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        if matches!(received, Err(RecvTimeoutError::Disconnected)) {
            self.callers = Callers::None;
        }
        received.ok()
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Engine(number, run) => {
                self.engines
                    .resize_with(self.engines.len().max(number + 1), || None);
                let next = Next::OnJob;
                self.engines[number] = Some(Stepped { run, next });
            }
            // One for an engine that has ended is dropped, and fails with that.
            Message::Job(number, job) => self.with(number, |stepped| {
                stepped.run.take(*job);
                // Otherwise its time comes anyway.
                (stepped.next == Next::OnJob).then_some(Next::Now)
            }),
            Message::Wake => {}
        }
    }

    fn advance(&mut self, number: usize) {
        self.with(number, |stepped| Some(stepped.run.advance(Instant::now())));
    }

    /// Does something with an engine that may change when its time comes.
    fn with(&mut self, number: usize, call: impl FnOnce(&mut Stepped) -> Option<Next>) {
        let Some(stepped) = self.engines.get_mut(number).and_then(Option::as_mut) else {
            return;
        };
        // What a panic may have left half done is only failed and dropped afterwards.
        let Ok(next) = catch_unwind(AssertUnwindSafe(|| call(stepped))) else {
            tracing::error!(
                engine = number,
                "the engine panicked; its worker can answer nothing any more"
            );
            return self.end(number, RunnerState::Failed);
        };
        let Some(next) = next else { return };
        stepped.next = next;
        match next {
            Next::Now => self.ready.push_back(number),
            Next::At(due) => _ = self.timers.insert((due, number)),
            Next::OnJob => {}
        }
    }

    fn end_where(&mut self, is_over: impl Fn(&EngineRun) -> bool) {
        for number in 0..self.engines.len() {
            let stepped = self.engines[number].as_ref();
            if stepped.is_some_and(|stepped| is_over(&stepped.run)) {
                self.end(number, RunnerState::Stopped);
            }
        }
    }

    /// Ends an engine. Foreign code runs there, in sinks and in the engine's drop: neighbours must not fall with it.
    fn end(&mut self, number: usize, end: RunnerState) {
        let Some(mut stepped) = self.engines.get_mut(number).and_then(Option::take) else {
            return;
        };
        let state = stepped.run.state();
        let ended = catch_unwind(AssertUnwindSafe(|| {
            if end == RunnerState::Stopped {
                stepped.run.finish_step();
            }
            stepped.run.fail_all();
            drop(stepped);
        }));
        state.send_replace(if ended.is_ok() { end } else { RunnerState::Failed });
    }
}
