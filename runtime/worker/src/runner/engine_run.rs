//! One engine on its thread: what it works on, and what is to be done with it next.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use signalbox_event_plane::EventLog;
use signalbox_protocol::LoadReport;
use signalbox_tokenize::ModelText;
use tokio::sync::watch;

use super::{
    RunnerState,
    gauges::Gauges,
    intake::{Job, engine_is_gone},
    open_requests::OpenRequests,
};
use crate::engine::{SequenceId, StepEngine, StepOutput, StepStatus};

/// While a simulated step lasts, callers that left and deadlines are looked for this often: well within the 50 ms in
/// which a cancelled request must stop costing anything.
const REAP_INTERVAL: Duration = Duration::from_millis(10);

/// How far a paced engine may catch up after it came late: more would make bursts of steps without any time between.
const MAX_CATCH_UP: Duration = Duration::from_millis(20);

pub(super) struct EngineRun {
    engine: Box<dyn StepEngine>,
    text: Arc<ModelText>,
    log: EventLog,
    stopping: Arc<AtomicBool>,
    requests: OpenRequests,
    /// Sequences the engine is to be told of, collected while requests end. Empty between uses.
    cancels: Vec<SequenceId>,
    output: StepOutput,
    /// Of the last step.
    status: StepStatus,
    /// A simulated step is under way: how long it takes. What it did is told at its end.
    under_way: Option<Duration>,
    /// When it ends, or the last one ended.
    due: Instant,
    /// When callers that left and deadlines are looked for, at the latest.
    next_reap: Instant,
    load: watch::Sender<LoadReport>,
    state: watch::Sender<RunnerState>,
    gauges: Gauges,
}

/// When an engine is to be [advanced](EngineRun::advance) again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Now,
    At(Instant),
    /// When there is a request.
    OnJob,
}

impl EngineRun {
    pub(super) fn new(
        engine: Box<dyn StepEngine>,
        text: Arc<ModelText>,
        log: EventLog,
        stopping: Arc<AtomicBool>,
    ) -> (Self, watch::Receiver<LoadReport>, watch::Receiver<RunnerState>) {
        let (load_sender, load) = watch::channel(engine.load());
        let (state_sender, state) = watch::channel(RunnerState::Running);
        let now = Instant::now();
        let run = Self {
            engine,
            text,
            log,
            stopping,
            requests: OpenRequests::default(),
            cancels: Vec::new(),
            output: StepOutput::default(),
            status: StepStatus::Idle,
            under_way: None,
            due: now,
            next_reap: now,
            load: load_sender,
            state: state_sender,
            gauges: Gauges::new(),
        };
        (run, load, state)
    }

    /// Steps the engine, or tells what a simulated step did that is over. Call it when [`Next`] says so.
    pub(super) fn advance(&mut self, now: Instant) -> Next {
        if self.under_way.is_some() {
            if now < self.due {
                if now >= self.next_reap {
                    self.reap(now);
                }
                return Next::At(self.due.min(self.next_reap));
            }
            self.finish_step();
        }
        if self.is_done() {
            return Next::OnJob;
        }
        self.reap(now);
        if self.status == StepStatus::Idle {
            self.due = now;
        }
        let began = Instant::now();
        self.status = self.engine.step(&mut self.output);
        if let StepStatus::BusyFor(duration) = self.status {
            // Counted from when the last step was due, so that waking late does not add up.
            let earliest = now.checked_sub(MAX_CATCH_UP).unwrap_or(now);
            self.due = self.due.max(earliest).min(now) + duration;
            self.under_way = Some(duration);
            return Next::At(self.due.min(self.next_reap));
        }
        self.deliver(began.elapsed());
        match self.status {
            StepStatus::Idle if self.requests.is_empty() => Next::OnJob,
            // An engine at rest with requests open has lost them: they end by their deadlines.
            StepStatus::Idle => Next::At(self.next_reap),
            _ => Next::Now,
        }
    }

    /// Takes a request; its sequences go to the engine.
    pub(super) fn take(&mut self, job: Job) {
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

    /// Whether it was told to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Whether there is nothing to do before the next request.
    pub(super) fn is_done(&self) -> bool {
        self.status == StepStatus::Idle && self.requests.is_empty()
    }

    /// Tells what the step at hand did.
    pub(super) fn finish_step(&mut self) {
        if let Some(step_time) = self.under_way.take() {
            self.deliver(step_time);
        }
    }

    /// Fails what is open.
    pub(super) fn fail_all(&mut self) {
        self.requests.fail_all(&engine_is_gone());
    }

    /// Says what became of it, once it is dropped.
    pub(super) fn state(&self) -> watch::Sender<RunnerState> {
        self.state.clone()
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

    fn reap(&mut self, now: Instant) {
        self.next_reap = now + REAP_INTERVAL;
        self.requests.reap(now, &mut self.cancels);
        self.cancel();
    }

    fn cancel(&mut self) {
        for id in self.cancels.drain(..) {
            self.engine.cancel(id);
        }
    }
}
