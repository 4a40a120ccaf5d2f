//! The engine's thread: requests in, steps, pieces of answers out.
//!
//! An engine is stepped on a thread of its own, which nothing else may block. Everything reaches it through one
//! bounded queue and leaves it through the requests' sinks, once a step: first what changed in the KV cache, then all
//! tokens of the step, then one flush a request. So a router that reads a token may already know where its prompt
//! lies. The runner promises:
//!
//! - every request it was given ends once: with its answer, an error, or because its caller left;
//! - a caller that left costs the engine nothing after the step at hand, and in a simulated step not 50 ms;
//! - a fault of the engine, panics included, ends in an error for everybody and in [`RunnerState::Failed`]. The
//!   process is expected to exit then and be started again: a worker without its engine is of no use.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use signalbox_event_plane::EventLog;
use signalbox_protocol::{ErrorKind, GenerateRequest, LoadReport, WireError};
use signalbox_tokenize::ModelText;
use tokio::sync::watch;

use crate::engine::{EngineInfo, SequenceId, StepEngine, StepOutput, StepStatus};

use self::{
    gauges::Gauges,
    intake::{Intake, Job, engine_is_gone},
    open_requests::OpenRequests,
};

mod choice;
mod gauges;
mod intake;
mod open_requests;
mod sink;
#[cfg(test)]
mod tests;

pub use self::{intake::MAX_CHOICES, sink::AnswerSink};

/// Requests that may lie between the network and the engine's thread: what can arrive during one long step. The
/// engine's own queue comes after it.
const JOB_BACKLOG: usize = 1_024;

/// While a simulated step lasts, callers that left and deadlines are looked for this often: well within the 50 ms in
/// which a cancelled request must stop costing anything.
const REAP_INTERVAL: Duration = Duration::from_millis(10);

/// How far a paced engine may catch up after it came late: more would make bursts of steps without any time between.
const MAX_CATCH_UP: Duration = Duration::from_millis(20);

/// Starts engine threads.
#[derive(Debug)]
pub struct Runner;

/// What has become of an engine thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerState {
    /// It takes requests.
    Running,
    /// It was told to stop, or nobody can reach it any more.
    Stopped,
    /// Its engine panicked. It never comes back.
    Failed,
}

/// Handle of an engine thread; clones name the same one. When the last is dropped, the thread finishes what it has
/// and ends.
#[derive(Debug, Clone)]
pub struct RunnerHandle {
    jobs: SyncSender<Message>,
    intake: Arc<Intake>,
    stopping: Arc<AtomicBool>,
    load: watch::Receiver<LoadReport>,
    state: watch::Receiver<RunnerState>,
}

/// What the thread is told.
enum Message {
    Job(Box<Job>),
    /// Look at the stop flag.
    Wake,
}

impl Runner {
    /// Starts the thread of `engine`. `model` salts the identities of KV blocks and must be the name on the worker's
    /// card; `text` is the model's; the engine's KV events go to `log`.
    ///
    /// # Errors
    /// The operating system grants no thread.
    pub fn start(
        engine: Box<dyn StepEngine>,
        model: &str,
        text: Arc<ModelText>,
        log: EventLog,
    ) -> std::io::Result<RunnerHandle> {
        let (jobs, queue) = sync_channel(JOB_BACKLOG);
        let (load_sender, load) = watch::channel(engine.load());
        let (state_sender, state) = watch::channel(RunnerState::Running);
        let stopping = Arc::new(AtomicBool::new(false));
        let info = engine.info();
        let intake = Arc::new(Intake::new(info.clone(), model, text.clone()));
        let engine_thread = EngineThread {
            engine,
            text,
            log,
            queue,
            stopping: stopping.clone(),
            requests: OpenRequests::default(),
            cancels: Vec::new(),
            output: StepOutput::default(),
            load: load_sender,
            gauges: Gauges::new(),
        };
        thread::Builder::new()
            .name(format!("engine-{}", info.name))
            .spawn(move || engine_thread.run_to_end(&state_sender))?;
        Ok(RunnerHandle {
            jobs,
            intake,
            stopping,
            load,
            state,
        })
    }
}

impl RunnerHandle {
    /// Hands a request to the engine. Never waits; what cannot be taken is failed through `sink` with the reason.
    pub fn submit(&self, request: &GenerateRequest, tokens: Vec<u32>, sink: impl AnswerSink + 'static) {
        let job = match self.intake.prepare(request, tokens, Box::new(sink)) {
            Ok(job) => job,
            Err((sink, error)) => return sink.fail(error),
        };
        let (job, error) = match self.jobs.try_send(Message::Job(Box::new(job))) {
            Ok(()) => return,
            Err(TrySendError::Full(job)) => {
                let message = "This worker takes no more requests at the moment; try again soon.";
                (job, WireError::new(ErrorKind::Overloaded, message))
            }
            Err(TrySendError::Disconnected(job)) => (job, engine_is_gone()),
        };
        if let Message::Job(job) = job {
            job.fail(error);
        }
    }

    /// What the engine is.
    pub fn info(&self) -> &EngineInfo {
        self.intake.info()
    }

    /// The engine's load, as of its last step.
    pub fn load(&self) -> watch::Receiver<LoadReport> {
        self.load.clone()
    }

    /// What has become of the thread.
    pub fn state(&self) -> watch::Receiver<RunnerState> {
        self.state.clone()
    }

    /// Tells the thread to end after the step at hand, failing what is open, and waits until it has.
    pub async fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // Full: then the thread is awake anyway. Disconnected: it has ended.
        let _ = self.jobs.try_send(Message::Wake);
        let mut state = self.state.clone();
        // An error means that the sender is gone, and with it the thread.
        let _ = state.wait_for(|state| *state != RunnerState::Running).await;
    }
}

/// All that lives on the engine's thread.
struct EngineThread {
    engine: Box<dyn StepEngine>,
    text: Arc<ModelText>,
    log: EventLog,
    queue: Receiver<Message>,
    stopping: Arc<AtomicBool>,
    requests: OpenRequests,
    /// Sequences the engine is to be told of, collected while requests end. Empty between uses.
    cancels: Vec<SequenceId>,
    output: StepOutput,
    load: watch::Sender<LoadReport>,
    gauges: Gauges,
}

/// Whether anybody can still send requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Callers {
    Some,
    None,
}

impl EngineThread {
    fn run_to_end(mut self, state: &watch::Sender<RunnerState>) {
        // What a panic may have left half done is only failed and dropped afterwards.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run()));
        let end = if outcome.is_ok() {
            RunnerState::Stopped
        } else {
            RunnerState::Failed
        };
        if end == RunnerState::Failed {
            tracing::error!("the engine panicked; this worker can answer nothing any more");
        }
        self.requests.fail_all(&engine_is_gone());
        // With the queue go the requests in it, each with an error: none can arrive unseen any more.
        drop(self);
        state.send_replace(end);
    }

    fn run(&mut self) {
        let mut due = Instant::now();
        let mut status = StepStatus::Idle;
        loop {
            let was_idle = status == StepStatus::Idle;
            let callers = match status {
                StepStatus::Idle if self.requests.is_empty() => self.wait_for_work(),
                // An engine at rest with requests open has lost them: they end by their deadlines.
                StepStatus::Idle => self.take_jobs_until(Instant::now() + REAP_INTERVAL),
                StepStatus::Busy | StepStatus::BusyFor(_) => self.take_jobs(),
            };
            let abandoned = callers == Callers::None && self.requests.is_empty();
            if abandoned || self.stopping.load(Ordering::Acquire) {
                return;
            }
            self.reap();
            let began = Instant::now();
            if was_idle {
                due = began;
            }
            status = self.engine.step(&mut self.output);
            let mut step_time = began.elapsed();
            if let StepStatus::BusyFor(duration) = status {
                // Counted from when the last step was due, so that waking late does not add up.
                due = due
                    .max(began.checked_sub(MAX_CATCH_UP).unwrap_or(began))
                    .min(began)
                    + duration;
                step_time = duration;
                self.take_jobs_until(due);
            }
            self.deliver(step_time);
        }
    }

    /// What the step did: to the event log, then to the requests.
    fn deliver(&mut self, step_time: Duration) {
        if !self.output.kv_events.is_empty() {
            self.log.publish(std::mem::take(&mut self.output.kv_events));
        }
        self.requests.deliver(&self.text, &self.output, &mut self.cancels);
        self.cancel();
        self.output.prefilled.clear();
        self.output.tokens.clear();
        self.output.finished.clear();
        self.output.failed.clear();
        self.gauges.step(step_time);
        self.tell_load();
    }

    fn tell_load(&mut self) {
        let load = self.engine.load();
        let changed = self.load.send_if_modified(|told| {
            let changed = *told != load;
            *told = load;
            changed
        });
        if changed {
            self.gauges.load(load);
        }
    }

    fn reap(&mut self) {
        self.requests.reap(Instant::now(), &mut self.cancels);
        self.cancel();
    }

    fn cancel(&mut self) {
        for id in self.cancels.drain(..) {
            self.engine.cancel(id);
        }
    }

    fn wait_for_work(&mut self) -> Callers {
        // Nothing is open, so nothing can be cancelled or late: only a message can change that.
        match self.queue.recv() {
            Ok(message) => {
                self.take(message);
                self.take_jobs()
            }
            Err(_) => Callers::None,
        }
    }

    fn take_jobs(&mut self) -> Callers {
        // As many as the queue holds, so that senders cannot keep the engine from stepping.
        for _ in 0..JOB_BACKLOG {
            match self.queue.try_recv() {
                Ok(message) => self.take(message),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Callers::None,
            }
        }
        Callers::Some
    }

    /// Takes requests, and ends those that are over, until `due` or a stop.
    fn take_jobs_until(&mut self, due: Instant) -> Callers {
        let mut next_reap = Instant::now() + REAP_INTERVAL;
        loop {
            let now = Instant::now();
            if now >= next_reap {
                self.reap();
                next_reap = now + REAP_INTERVAL;
            }
            if now >= due || self.stopping.load(Ordering::Acquire) {
                return Callers::Some;
            }
            match self
                .queue
                .recv_timeout(due.min(next_reap).saturating_duration_since(now))
            {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    // Nothing can arrive any more: waiting on the queue would return at once.
                    thread::sleep(due.min(next_reap).saturating_duration_since(now));
                    if Instant::now() >= due {
                        return Callers::None;
                    }
                }
            }
        }
    }

    fn take(&mut self, message: Message) {
        let Message::Job(job) = message else { return };
        let number = job.number;
        let Some((request, sequences)) = job.open() else {
            return;
        };
        self.requests.insert(number, request);
        for sequence in sequences {
            if let Err(error) = self.engine.submit(sequence) {
                self.requests.refuse(number, error, &mut self.cancels);
                self.cancel();
                return;
            }
        }
    }
}
