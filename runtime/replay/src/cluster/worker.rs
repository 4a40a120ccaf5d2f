//! A worker in virtual time: the engine of `runtime worker --engine sim`, and where its step stands.

use std::{sync::Arc, time::Duration};

use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{LoadReport, WireError, WorkerCard, WorkerEpoch, WorkerRole};
use signalbox_worker::{
    engine::{NewSequence, StepEngine as _, StepOutput, StepStatus},
    sim::{SimConfig, SimEngine},
};

use signalbox_worker::step_rates::StepRates;

use super::{ClusterConfig, ReplayError, WorkerShape};
use crate::prompt::MODEL;

#[derive(Debug)]
pub(super) struct VirtualWorker {
    pub(super) card: Arc<WorkerCard>,
    pub(super) presence: Presence,
    engine: SimEngine,
    /// Requests that the engine has.
    in_flight: usize,
    /// The results of the step under way; `None` between steps.
    step: Option<StepOutput>,
    /// The buffers of the step before.
    spare: StepOutput,
    /// How long the step under way takes.
    takes: Duration,
    rates: StepRates,
    last_report: Duration,
    pub(super) record: WorkerRecord,
}

/// Whether a worker gets requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Ready,
    /// It finishes its requests, and gets no further ones.
    Draining,
    Gone,
}

/// What a worker did in a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerRecord {
    /// Requests that it was given.
    pub requests: u32,
    /// Time in which its engine computed.
    pub busy: Duration,
    /// Time in which it was present.
    pub present: Duration,
    /// When it joined.
    pub joined: Duration,
}

impl VirtualWorker {
    pub(super) fn new(
        slot: WorkerSlot,
        shape: WorkerShape,
        config: &ClusterConfig,
        vocabulary: Arc<[u32]>,
        now: Duration,
    ) -> Result<Self, ReplayError> {
        let engine = SimEngine::new(
            SimConfig {
                block_size: config.block_size,
                kv_blocks: shape.kv_blocks,
                // What fits in the KV cache.
                context_length: u32::MAX,
                max_sequences: config.max_sequences,
                max_waiting: config.max_waiting,
                max_batched_tokens: config.max_batched_tokens,
                speedup: shape.speed,
                seed: 0,
                fatal_token: None,
            },
            vocabulary,
        )?;
        let info = engine.info();
        let card = WorkerCard {
            id: format!("worker-{}", slot.0)
                .parse()
                .map_err(|_| ReplayError::TooManyWorkers)?,
            epoch: WorkerEpoch(1),
            model: MODEL.into(),
            address: String::new(),
            engine: info.name.into(),
            block_size: info.block_size,
            context_length: info.context_length,
            artifacts_digest: String::new(),
            role: WorkerRole::Aggregated,
            capacity: info.capacity,
            engine_version: String::new(),
            reads_body: false,
            continues_answers: true,
            abilities: Vec::new(),
            kv_events: true,
            labels: Default::default(),
        };
        Ok(Self {
            card: Arc::new(card),
            presence: Presence::Ready,
            engine,
            in_flight: 0,
            step: None,
            spare: StepOutput::default(),
            takes: Duration::ZERO,
            rates: StepRates::default(),
            last_report: now,
            record: WorkerRecord {
                joined: now,
                ..WorkerRecord::default()
            },
        })
    }

    pub(super) fn submit(&mut self, sequence: NewSequence) -> Result<(), WireError> {
        self.engine.submit(sequence)?;
        self.in_flight += 1;
        self.record.requests += 1;
        Ok(())
    }

    /// Whether it has no request.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Starts a step if none is under way and there is something to do. Returns how long the step takes.
    pub(super) fn start_step(&mut self) -> Option<Duration> {
        if self.step.is_some() || self.is_idle() || self.presence == Presence::Gone {
            return None;
        }
        let mut output = std::mem::take(&mut self.spare);
        let status = self.engine.step(&mut output);
        self.step = Some(output);
        let takes = match status {
            StepStatus::BusyFor(takes) => takes,
            StepStatus::Busy | StepStatus::Idle => Duration::ZERO,
        };
        self.takes = takes;
        self.record.busy += takes;
        Some(takes)
    }

    /// The results of the step that ends now. Give them back with [`Self::reuse`].
    pub(super) fn end_step(&mut self) -> Option<StepOutput> {
        let output = self.step.take()?;
        let active = self.engine.load().active_kv_blocks;
        self.rates.add(self.takes, &output, active);
        self.in_flight -= output.finished.len() + output.failed.len();
        Some(output)
    }

    /// Takes back the buffers of a step.
    pub(super) fn reuse(&mut self, mut output: StepOutput) {
        output.clear();
        self.spare = output;
    }

    /// The engine's load, if the last report is `interval` ago.
    pub(super) fn report_due(&mut self, now: Duration, interval: Duration) -> Option<LoadReport> {
        if now < self.last_report + interval {
            return None;
        }
        self.last_report = now;
        Some(self.rates.report(self.engine.load()))
    }

    /// It has left. A step under way has no results.
    pub(super) fn leave(&mut self, now: Duration) {
        self.presence = Presence::Gone;
        self.step = None;
        self.in_flight = 0;
        self.record.present = now - self.record.joined;
    }
}
