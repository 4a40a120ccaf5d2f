//! One engine on its thread, with its open requests and the time of its next step.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use signalbox_event_plane::EventLog;
use signalbox_protocol::{ErrorKind, LoadReport, WireError};
use signalbox_tokenize::ModelText;
use tokio::sync::watch;

use super::{
    RunnerState,
    gauges::Gauges,
    intake::{PreparedRequest, engine_stopped},
    open_requests::OpenRequests,
};
use crate::{
    engine::{SequenceId, StepEngine, StepOutput, StepStatus},
    step_rates::StepRates,
};

/// Interval between checks for closed streams and passed deadlines during a simulated step. Well below the 50 ms in
/// which a cancelled request must free the engine.
const REAP_INTERVAL: Duration = Duration::from_millis(10);

/// How much of a delay a simulated engine makes up for in its next step. More would give bursts of steps without any
/// time between them.
const MAX_CATCH_UP: Duration = Duration::from_millis(20);

/// One engine with its open requests.
pub(super) struct EngineRun {
    engine: Box<dyn StepEngine>,
    text: Arc<ModelText>,
    log: EventLog,
    stopping: Arc<AtomicBool>,
    requests: OpenRequests,
    /// Sequences to cancel in the engine, collected while requests end. Empty between calls.
    cancels: Vec<SequenceId>,
    output: StepOutput,
    /// The status that the last step returned.
    status: StepStatus,
    /// The duration of the simulated step in progress. Its results are delivered at its end.
    step_in_progress: Option<Duration>,
    /// The end of the simulated step in progress, or of the last one.
    step_end: Instant,
    /// The time of the next check for closed streams and passed deadlines.
    next_reap: Instant,
    load: watch::Sender<LoadReport>,
    state: watch::Sender<RunnerState>,
    gauges: Gauges,
    rates: StepRates,
}

/// When to call [`EngineRun::advance`] again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextAdvance {
    Now,
    At(Instant),
    /// When the next request arrives.
    OnRequest,
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
            step_in_progress: None,
            step_end: now,
            next_reap: now,
            load: load_sender,
            state: state_sender,
            gauges: Gauges::new(),
            rates: StepRates::default(),
        };
        (run, load, state)
    }

    /// Starts the engine's next step, or delivers the results of a simulated step that has ended. Call it at the time
    /// that the last call returned.
    pub(super) fn advance(&mut self, now: Instant) -> NextAdvance {
        if self.step_in_progress.is_some() {
            if now < self.step_end {
                if now >= self.next_reap {
                    self.reap(now);
                }
                return NextAdvance::At(self.step_end.min(self.next_reap));
            }
            self.finish_step();
        }
        if self.is_idle() {
            return NextAdvance::OnRequest;
        }
        self.reap(now);
        if self.status == StepStatus::Idle {
            self.step_end = now;
        }
        let started = Instant::now();
        self.status = self.engine.step(&mut self.output);
        if let StepStatus::BusyFor(duration) = self.status {
            // Counted from the planned end of the last step, so that late wake-ups do not add up.
            let earliest = now.checked_sub(MAX_CATCH_UP).unwrap_or(now);
            self.step_end = self.step_end.max(earliest).min(now) + duration;
            self.step_in_progress = Some(duration);
            return NextAdvance::At(self.step_end.min(self.next_reap));
        }
        self.deliver(started.elapsed());
        match self.status {
            StepStatus::Idle if self.requests.is_empty() => NextAdvance::OnRequest,
            // The engine is idle and has lost these requests. They end at their deadlines.
            StepStatus::Idle => NextAdvance::At(self.next_reap),
            _ => NextAdvance::Now,
        }
    }

    /// Takes a request and submits its sequences to the engine.
    pub(super) fn accept(&mut self, prepared: PreparedRequest) {
        let number = prepared.number;
        let Some((request, sequences)) = prepared.into_parts() else {
            return;
        };
        self.requests.insert(number, request);
        let choices = sequences.len();
        for sequence in sequences {
            if let Err(error) = self.engine.submit(sequence) {
                let error = refused_choices(error, choices);
                self.requests.fail(number, error, &mut self.cancels);
                self.cancel();
                return;
            }
        }
    }

    /// Whether the engine is requested to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Whether there is nothing to do until the next request.
    pub(super) fn is_idle(&self) -> bool {
        self.status == StepStatus::Idle && self.requests.is_empty()
    }

    /// Delivers the results of the simulated step in progress, if there is one.
    pub(super) fn finish_step(&mut self) {
        if let Some(step_time) = self.step_in_progress.take() {
            self.deliver(step_time);
        }
    }

    /// Fails all open requests.
    pub(super) fn fail_all(&mut self) {
        self.requests.fail_all(&engine_stopped());
    }

    /// Publishes the engine's state. Usable after the engine is dropped.
    pub(super) fn state_sender(&self) -> watch::Sender<RunnerState> {
        self.state.clone()
    }

    /// Delivers the results of a step: first the KV events to the event log, then the tokens to the requests.
    fn deliver(&mut self, step_time: Duration) {
        if !self.output.kv_events.is_empty() {
            self.log.publish(std::mem::take(&mut self.output.kv_events));
        }
        self.requests.deliver(&self.text, &self.output, &mut self.cancels);
        self.cancel();
        let active = self.engine.load().active_kv_blocks;
        self.rates.add(step_time, &self.output, active);
        self.output.clear();
        self.gauges.record_step(step_time);
        self.publish_load();
    }

    fn publish_load(&mut self) {
        let load = self.rates.report(self.engine.load());
        let changed = self.load.send_if_modified(|published| {
            let changed = *published != load;
            *published = load;
            changed
        });
        if changed {
            self.gauges.set_load(load);
        }
    }

    /// Ends the requests whose caller has closed the stream or whose deadline has passed.
    fn reap(&mut self, now: Instant) {
        self.next_reap = now + REAP_INTERVAL;
        self.requests.reap(now, &mut self.cancels);
        self.cancel();
    }

    /// Cancels the collected sequences in the engine.
    fn cancel(&mut self) {
        for id in self.cancels.drain(..) {
            self.engine.cancel(id);
        }
    }
}

/// The engine's error for a request with several choices, of which it has no room for all.
fn refused_choices(mut error: WireError, choices: usize) -> WireError {
    if choices > 1 && error.kind == ErrorKind::Overloaded {
        let reason = error.message;
        error.message =
            format!("n is {choices}, and there is no room for all of them: {reason}, or ask for fewer");
    }
    error
}
