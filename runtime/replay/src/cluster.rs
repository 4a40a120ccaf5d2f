//! A whole cluster in virtual time: routers with their real state, and workers with the simulated engine.
//!
//! ```text
//! trace ─arrivals─▶ router: index, load, policy ─▶ engine ─steps─▶ tokens ─▶ record
//!                     ▲       ▲                      │
//!                     │       └──── replica sync ────│──── other routers
//!                     └── KV events, load reports ◀──┘
//! ```
//!
//! Time is what the engines' steps, the trace and the configured lags say; decisions and the network take none. Each
//! event changes the state at its moment, and what follows from it is scheduled. Everything happens on one thread in
//! one order, so equal arguments give an equal [`RunRecord`] on every machine, the measured time of decisions aside.
//!
//! The engine is that of `runtime worker --engine sim`, and routers decide with the same code and the same policy
//! components as behind the API. What a cluster has beside them is modelled here: the delivery of KV events, reports
//! and replica sync, and what happens to the requests of a worker that fails.

use std::{
    collections::BTreeSet,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{ReplicaLoad, SamplingParams, WorkerReport};
use signalbox_router::{NoCandidate, OfflineRequest, OfflineRouter};
use signalbox_worker::{
    engine::{NewSequence, SequenceId, StepOutput},
    sim::{SimError, scramble},
    token_limits::TokenLimits,
};

use crate::{
    policy::ReplayPolicy,
    prompt::Prompts,
    trace::{Arrival, Trace},
};
use queue::{Event, EventQueue};
use request::RequestState;
use router::{VirtualRouter, milliseconds};
use worker::{Presence, VirtualWorker};

pub use record::{DecisionRecord, RequestOutcome, RequestRecord, RunRecord, TokenGaps};
pub use worker::WorkerRecord;

mod queue;
mod record;
mod request;
mod router;
#[cfg(test)]
mod tests;
mod worker;

/// Tokens of answers. There are enough that two answers are never equal.
const VOCABULARY: u32 = 1 << 16;

/// The cluster to replay on.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterConfig {
    /// The workers that are present at the start.
    pub workers: Vec<WorkerShape>,
    /// Workers that join, drain and fail.
    pub changes: Vec<MembershipChange>,
    /// Routers, at least 1. Requests go to them in turn.
    pub routers: usize,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Most running sequences of an engine.
    pub max_sequences: u32,
    /// Most waiting sequences of an engine.
    pub max_waiting: u32,
    /// Most tokens that an engine computes in one step.
    pub max_batched_tokens: u32,
    /// Time from the end of a step to the arrival of its KV events, and of a load report, at the routers.
    pub event_lag: Duration,
    /// Time from a change of a router's load to its arrival at the other routers.
    pub sync_lag: Duration,
}

/// What distinguishes one worker from another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WorkerShape {
    /// KV blocks of its cache.
    pub kv_blocks: u32,
    /// How many times as fast as the timing model it is: a positive number.
    pub speed: f64,
}

/// A change of the workers that are present.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MembershipChange {
    /// When it takes place.
    pub at: Duration,
    /// What happens.
    pub change: Change,
}

/// What happens to the workers. They are numbered from 0 in the order in which they join.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// A worker joins, with an empty KV cache.
    Join(WorkerShape),
    /// The worker with this number finishes its requests, and then leaves.
    Drain(u32),
    /// The worker with this number is gone at once. Its requests continue at other workers.
    Fail(u32),
}

impl Default for ClusterConfig {
    /// Eight workers as `runtime worker --engine sim` starts them, and one router that receives everything at once.
    fn default() -> Self {
        Self {
            workers: vec![WorkerShape::default(); 8],
            changes: Vec::new(),
            routers: 1,
            block_size: 16,
            max_sequences: 256,
            max_waiting: 1_024,
            max_batched_tokens: 8_192,
            event_lag: Duration::ZERO,
            sync_lag: Duration::ZERO,
        }
    }
}

impl Default for WorkerShape {
    /// The simulated engine's default cache, at the speed of the timing model.
    fn default() -> Self {
        Self {
            kv_blocks: 16_384,
            speed: 1.0,
        }
    }
}

/// A cluster cannot be replayed on.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A worker's engine cannot be created.
    #[error(transparent)]
    Engine(#[from] SimError),
    /// The built-in tokenizer of the routers does not load.
    #[error("a router cannot be created: {0}")]
    Router(String),
    /// More workers than a router's tables have places for.
    #[error("there are more workers than a router can have")]
    TooManyWorkers,
    /// There is no router.
    #[error("the cluster has no router; it needs at least 1")]
    NoRouter,
    /// A worker would compute nothing, or everything at once.
    #[error("a worker's speed is {0}; it must be a positive number")]
    Speed(f64),
    /// An engine has requests and computes nothing.
    #[error("the engine of worker {0} has requests and computes nothing: a fault of the simulation")]
    Stuck(u32),
}

/// Most workers that ever join in one replay: the places of a router's load table.
const MAX_WORKERS: usize = 4_096;

/// How often a worker reports its load: as often as a router asks of a few workers.
const REPORT_INTERVAL: Duration = Duration::from_millis(200);

/// Replays `trace` on the cluster. `policy` decides, and `seed` determines the seeds of its decisions. `ended` counts
/// the requests that have ended, for a progress bar.
///
/// # Errors
/// The cluster has no router or too many workers, or a worker's settings are out of range.
pub fn replay(
    trace: &Trace,
    config: &ClusterConfig,
    policy: &ReplayPolicy,
    seed: u64,
    ended: &AtomicUsize,
) -> Result<RunRecord, ReplayError> {
    let mut simulation = Simulation::new(trace, config, policy, seed, ended)?;
    while let Some(now) = simulation.queue.next_at() {
        simulation.advance(now)?;
    }
    Ok(simulation.finish())
}

struct Simulation<'a> {
    trace: &'a Trace,
    config: &'a ClusterConfig,
    prompts: Prompts<'a>,
    vocabulary: Arc<[u32]>,
    /// For each request, the one that follows its answer.
    successors: Vec<Option<usize>>,
    queue: EventQueue,
    routers: Vec<VirtualRouter>,
    /// By slot.
    workers: Vec<VirtualWorker>,
    requests: Vec<RequestState>,
    /// The slots whose load changed at a router since the last [`Self::synchronise`], with the router.
    changed: BTreeSet<(usize, WorkerSlot)>,
    ended: &'a AtomicUsize,
    record: RunRecord,
    now: Duration,
}

impl<'a> Simulation<'a> {
    fn new(
        trace: &'a Trace,
        config: &'a ClusterConfig,
        policy: &ReplayPolicy,
        seed: u64,
        ended: &'a AtomicUsize,
    ) -> Result<Self, ReplayError> {
        if config.routers == 0 {
            return Err(ReplayError::NoRouter);
        }
        let router = |number: usize| {
            let seed = scramble(seed ^ (number as u64).rotate_left(32));
            OfflineRouter::new(policy.model(), config.block_size, policy.registry(), seed)
                .map(|router| VirtualRouter::new(router, config.routers))
                .map_err(|error| ReplayError::Router(error.to_string()))
        };
        let mut simulation = Self {
            trace,
            config,
            prompts: Prompts::new(trace, config.block_size),
            vocabulary: (0..VOCABULARY).collect(),
            successors: trace.successors(),
            queue: EventQueue::default(),
            routers: (0..config.routers).map(router).collect::<Result<_, _>>()?,
            workers: Vec::new(),
            requests: trace.requests.iter().map(|_| RequestState::default()).collect(),
            changed: BTreeSet::new(),
            ended,
            record: RunRecord::new(trace),
            now: Duration::ZERO,
        };
        for shape in &config.workers {
            simulation.join(*shape)?;
        }
        simulation.publish_ready();
        for (number, change) in config.changes.iter().enumerate() {
            simulation.queue.add(change.at, Event::Membership(number));
        }
        for (index, request) in trace.requests.iter().enumerate() {
            if let Arrival::At(at) = request.arrival {
                simulation.queue.add(at, Event::Arrival(index));
            }
        }
        Ok(simulation)
    }

    /// Everything that happens at `now`, and the start of the steps that follow from it.
    fn advance(&mut self, now: Duration) -> Result<(), ReplayError> {
        self.now = now;
        while let Some(event) = self.queue.take(now) {
            match event {
                Event::StepEnds(slot) => self.end_step(slot),
                Event::Membership(number) => self.change_membership(number)?,
                Event::KvEvents(slot, events) => self.deliver_events(slot, &events),
                Event::Report(slot, load) => self.deliver_report(slot, load),
                Event::Loads { from, loads } => self.deliver_loads(from, &loads),
                Event::Arrival(index) => {
                    self.record.requests[index].arrival = now;
                    self.place(index);
                }
            }
        }
        self.synchronise();
        for slot in 0..self.workers.len() {
            if let Some(takes) = self.workers[slot].start_step() {
                // A step that computes something takes time.
                if takes.is_zero() {
                    return Err(ReplayError::Stuck(slot as u32));
                }
                let ends = Event::StepEnds(WorkerSlot(slot as u32));
                self.queue.add(now + takes, ends);
            }
        }
        Ok(())
    }

    /// A router decides about a request, which is new or was at a worker that failed, and its worker gets it.
    fn place(&mut self, index: usize) {
        let request = &self.trace.requests[index];
        let state = &mut self.requests[index];
        let mut tokens = self.prompts.tokens(index);
        tokens.extend_from_slice(&state.answer);
        let blocks = self.prompts.hashes(&tokens);
        let number = index % self.routers.len();
        let left = request.output_tokens - state.answer.len() as u32;
        let offline = OfflineRequest {
            prompt_tokens: tokens.len() as u32,
            blocks: &blocks,
            expected_output_tokens: left,
            session: request.session,
            attempt: state.attempts,
            now_ms: milliseconds(self.now),
        };
        let placed = self.routers[number].decide(offline, &mut self.record.decisions);
        let placement = match placed {
            Ok(placement) => placement,
            Err(NoCandidate::Busy | NoCandidate::Rejected(_)) => {
                return self.end_request(index, RequestOutcome::Shed);
            }
            Err(
                NoCandidate::Unavailable
                | NoCandidate::Unable(_)
                | NoCandidate::TooManyChoices { .. }
                | NoCandidate::TooLong { .. },
            ) => {
                return self.end_request(index, RequestOutcome::Failed);
            }
        };
        let slot = placement.worker;
        let generated = state.answer.len();
        let sequence = NewSequence {
            id: SequenceId::new(index as u64, 0),
            tokens,
            generated,
            blocks,
            hasher: self.prompts.hasher(),
            sampling: SamplingParams {
                max_tokens: left,
                // Each answer has tokens of its own, as two users' answers to one prompt have.
                seed: Some(index as u64),
                ..SamplingParams::default()
            },
            limits: TokenLimits::default(),
        };
        if self.workers[slot.0 as usize].submit(sequence).is_err() {
            // The prompt is longer than the worker's cache.
            return self.end_request(index, RequestOutcome::Failed);
        }
        let record = &mut self.record.requests[index];
        record.worker = Some(slot.0);
        if generated == 0 {
            record.credited_tokens = placement.overlap_blocks * self.config.block_size;
        }
        state.placement = Some(placement);
        state.placed_at = self.now;
        state.first_token_at = None;
        state.attempts += 1;
        self.note_change(number, slot);
    }

    /// The step of a worker has ended: its events go to the routers, its tokens to the clients.
    fn end_step(&mut self, slot: WorkerSlot) {
        let Some(mut output) = self.workers[slot.0 as usize].end_step() else {
            return;
        };
        self.send_events(slot, &mut output);
        for &(id, cached) in &output.prefilled {
            let record = &mut self.record.requests[id.request() as usize];
            record.cached_tokens.get_or_insert(cached);
        }
        for token in &output.tokens {
            self.deliver_token(token.sequence.request() as usize, token.token, slot);
        }
        for &(id, _) in &output.finished {
            self.end_request(id.request() as usize, RequestOutcome::Completed);
        }
        for (id, _) in &output.failed {
            self.end_request(id.request() as usize, RequestOutcome::Failed);
        }
        let worker = &mut self.workers[slot.0 as usize];
        worker.reuse(output);
        if worker.presence == Presence::Draining && worker.is_idle() {
            self.leave(slot);
        } else if let Some(load) = worker.report_due(self.now, REPORT_INTERVAL) {
            let report = Event::Report(slot, load);
            self.queue.add(self.now + self.config.event_lag, report);
        }
    }

    fn send_events(&mut self, slot: WorkerSlot, output: &mut StepOutput) {
        if output.kv_events.is_empty() {
            return;
        }
        if self.config.event_lag.is_zero() {
            self.deliver_events(slot, &output.kv_events);
        } else {
            let events: Rc<[_]> = output.kv_events.drain(..).collect();
            let arrives = self.now + self.config.event_lag;
            self.queue.add(arrives, Event::KvEvents(slot, events));
        }
    }

    fn deliver_token(&mut self, index: usize, token: u32, slot: WorkerSlot) {
        let (state, record) = (&mut self.requests[index], &mut self.record.requests[index]);
        match state.latest_token.replace(self.now) {
            Some(before) => self.record.gaps.add(self.now - before),
            None => record.first_token = Some(self.now),
        }
        record.generated_tokens += 1;
        state.answer.push(token);
        let number = index % self.routers.len();
        if let Some(placement) = &mut state.placement {
            placement.first_token();
            if state.first_token_at.is_none() {
                let uncached = placement.uncached_tokens;
                let offline = &self.routers[number].offline;
                offline.measure_ttft(slot, self.now - state.placed_at, uncached);
                state.first_token_at = Some((self.now, record.generated_tokens));
            }
        }
        self.note_change(number, slot);
    }

    /// A request has ended, and the session's next one follows.
    fn end_request(&mut self, index: usize, outcome: RequestOutcome) {
        let state = std::mem::take(&mut self.requests[index]);
        if let Some(placement) = &state.placement {
            let number = index % self.routers.len();
            let generated = self.record.requests[index].generated_tokens;
            if let Some((first, before)) = state.first_token_at
                && generated > before
            {
                let itl = (self.now - first) / (generated - before);
                self.routers[number].offline.measure_itl(placement.worker, itl);
            }
            self.note_change(number, placement.worker);
        }
        let record = &mut self.record.requests[index];
        record.end = self.now;
        record.outcome = outcome;
        self.ended.fetch_add(1, Relaxed);
        if let Some(next) = self.successors[index]
            && let Arrival::After { delay, .. } = self.trace.requests[next].arrival
        {
            self.queue.add(self.now + delay, Event::Arrival(next));
        }
    }

    fn deliver_events(&mut self, slot: WorkerSlot, events: &[signalbox_protocol::KvEvent]) {
        // K-1: events of a worker that has left are late.
        if self.workers[slot.0 as usize].presence != Presence::Gone {
            for router in &self.routers {
                router.offline.apply(slot, events);
            }
        }
    }

    fn deliver_report(&mut self, slot: WorkerSlot, load: signalbox_protocol::LoadReport) {
        if self.workers[slot.0 as usize].presence != Presence::Gone {
            let report = WorkerReport {
                load,
                ..WorkerReport::default()
            };
            for router in &self.routers {
                router.offline.report(slot, &report, milliseconds(self.now));
            }
        }
    }

    fn deliver_loads(&mut self, from: usize, loads: &[(WorkerSlot, ReplicaLoad)]) {
        for (number, router) in self.routers.iter_mut().enumerate() {
            if number != from {
                router.receive(from, loads);
            }
        }
    }

    fn note_change(&mut self, router: usize, slot: WorkerSlot) {
        if self.routers.len() > 1 {
            self.changed.insert((router, slot));
        }
    }

    /// Each router sends what it has in flight on the workers where that changed.
    fn synchronise(&mut self) {
        if self.changed.is_empty() {
            return;
        }
        for (from, router) in self.routers.iter().enumerate() {
            let own = self
                .changed
                .range((from, WorkerSlot(0))..(from + 1, WorkerSlot(0)));
            let loads: Vec<_> = own
                .map(|&(_, slot)| (slot, router.offline.in_flight(slot)))
                .collect();
            if !loads.is_empty() {
                let arrives = self.now + self.config.sync_lag;
                self.queue.add(arrives, Event::Loads { from, loads });
            }
        }
        self.changed.clear();
    }

    fn change_membership(&mut self, number: usize) -> Result<(), ReplayError> {
        match self.config.changes[number].change {
            Change::Join(shape) => {
                self.join(shape)?;
                self.publish_ready();
            }
            Change::Drain(worker) => self.drain(WorkerSlot(worker)),
            Change::Fail(worker) => self.fail(WorkerSlot(worker)),
        }
        Ok(())
    }

    fn join(&mut self, shape: WorkerShape) -> Result<(), ReplayError> {
        if self.workers.len() == MAX_WORKERS {
            return Err(ReplayError::TooManyWorkers);
        }
        if !(shape.speed.is_finite() && shape.speed > 0.0) {
            return Err(ReplayError::Speed(shape.speed));
        }
        let slot = WorkerSlot(self.workers.len() as u32);
        let vocabulary = self.vocabulary.clone();
        let worker = VirtualWorker::new(slot, shape, self.config, vocabulary, self.now)?;
        self.workers.push(worker);
        Ok(())
    }

    fn drain(&mut self, slot: WorkerSlot) {
        let Some(worker) = self.workers.get_mut(slot.0 as usize) else {
            return;
        };
        if worker.presence != Presence::Ready {
            return;
        }
        worker.presence = Presence::Draining;
        let is_idle = worker.is_idle();
        self.publish_ready();
        if is_idle {
            self.leave(slot);
        }
    }

    /// The worker is gone. Its requests continue elsewhere, after the tokens that their clients have.
    fn fail(&mut self, slot: WorkerSlot) {
        let is_present = |worker: &VirtualWorker| worker.presence != Presence::Gone;
        if !self.workers.get(slot.0 as usize).is_some_and(is_present) {
            return;
        }
        self.leave(slot);
        self.publish_ready();
        let is_there = |state: &RequestState| {
            let placement = state.placement.as_ref();
            placement.is_some_and(|placement| placement.worker == slot)
        };
        for index in 0..self.requests.len() {
            if is_there(&self.requests[index]) {
                self.requests[index].placement = None;
                self.record.requests[index].moves += 1;
                self.place(index);
            }
        }
    }

    fn leave(&mut self, slot: WorkerSlot) {
        self.workers[slot.0 as usize].leave(self.now);
        for router in &mut self.routers {
            router.forget(slot);
        }
    }

    /// All routers know which workers may be given requests.
    fn publish_ready(&mut self) {
        let ready = |(slot, worker): (usize, &VirtualWorker)| {
            let entry = (WorkerSlot(slot as u32), worker.card.clone());
            (worker.presence == Presence::Ready).then_some(entry)
        };
        let ready: Vec<_> = self.workers.iter().enumerate().filter_map(ready).collect();
        for router in &mut self.routers {
            router.offline.set_ready(ready.iter().cloned());
        }
    }

    fn finish(mut self) -> RunRecord {
        for worker in &mut self.workers {
            if worker.presence != Presence::Gone {
                worker.leave(self.now);
            }
            self.record.workers.push(worker.record.clone());
        }
        self.record.end = self.now;
        self.record
    }
}
