//! Which workers are ejected, and how much their failures count as load: what all threads share of the circuit breakers.
//!
//! A decision reads one number to see that every worker is well, which is usual, and else one number of each candidate. An
//! answer without an error adds to a counter. Only failures, and answers of workers that fail, take the lock.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use metrics::{Gauge, Unit, counter, describe_counter, describe_gauge, gauge};
use parking_lot::Mutex;
use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::WorkerCard;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::breaker::{BreakerConfig, BreakerState, Breakers, Fault, Incarnation, Mark};

#[cfg(test)]
mod tests;

/// How often the breakers are looked at: for probes that are due, and failures that do not count any more.
pub(crate) const TEND_INTERVAL: Duration = Duration::from_millis(100);

/// Longest cause that is kept of a failure, in bytes: it is shown by the admin API.
const MAX_CAUSE_BYTES: usize = 256;

/// The health of all workers, by slot. Clone = handle.
#[derive(Debug, Clone)]
pub(crate) struct HealthTable(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// How many workers have a mark.
    marked: AtomicU32,
    /// Each worker's [`Mark`], packed; 0 for a worker that is well.
    marks: Box<[AtomicU64]>,
    /// Whole answers since the breakers were last looked at.
    answers: Box<[AtomicU32]>,
    /// The incarnation that has the slot; 0 for none.
    generations: Box<[AtomicU32]>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    breakers: Breakers,
    workers: HashMap<WorkerSlot, Described>,
}

/// What is shown and exported of a worker.
struct Described {
    card: Arc<WorkerCard>,
    last_failure: String,
    ejected: Gauge,
}

/// A worker's health, as `/admin/v1/workers` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerHealth {
    /// Whether it gets requests.
    pub state: BreakerState,
    /// Failures of the last ten seconds, which count as load.
    pub recent_failures: u32,
    /// The latest failure in words; empty before the first.
    pub last_failure: String,
}

/// One attempt at a worker, whose end is reported. Dropping it says nothing about the worker: the client left.
#[derive(Debug)]
pub(crate) struct AttemptHealth {
    table: HealthTable,
    worker: WorkerSlot,
    generation: u32,
    prefill_tokens: u32,
}

impl HealthTable {
    /// A table with room for this many workers.
    pub(crate) fn new(config: BreakerConfig, workers: u32) -> Self {
        Self(Arc::new(Shared {
            marked: AtomicU32::new(0),
            marks: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            answers: (0..workers).map(|_| AtomicU32::new(0)).collect(),
            generations: (0..workers).map(|_| AtomicU32::new(0)).collect(),
            state: Mutex::new(State {
                breakers: Breakers::new(config),
                workers: HashMap::new(),
            }),
        }))
    }

    /// A worker joins, in the place of whatever had the slot before.
    pub(crate) fn join(&self, worker: WorkerSlot, card: &Arc<WorkerCard>) {
        let mut state = self.0.state.lock();
        let described = Described {
            card: card.clone(),
            last_failure: String::new(),
            ejected: gauge!(
                "signalbox_worker_ejected",
                "worker" => card.id.to_string(), "model" => card.model.clone()
            ),
        };
        described.ejected.set(0.0);
        state.workers.insert(worker, described);
        let generation = state.breakers.join(worker.0, &card.model, Instant::now());
        if let Some(slot) = self.0.generations.get(worker.0 as usize) {
            slot.store(generation, Relaxed);
        }
        self.mark_worker(worker.0, Mark::default());
    }

    /// A worker left.
    pub(crate) fn leave(&self, worker: WorkerSlot) {
        let mut state = self.0.state.lock();
        if let Some(described) = state.workers.remove(&worker) {
            described.ejected.set(0.0);
        }
        state.breakers.leave(worker.0);
        if let Some(slot) = self.0.generations.get(worker.0 as usize) {
            slot.store(0, Relaxed);
        }
        self.mark_worker(worker.0, Mark::default());
    }

    /// Whether any worker is ejected or has failures that count as load.
    pub(crate) fn has_marks(&self) -> bool {
        self.0.marked.load(Relaxed) > 0
    }

    /// What decisions read of a worker.
    pub(crate) fn mark(&self, worker: WorkerSlot) -> Mark {
        let mark = self.0.marks.get(worker.0 as usize);
        unpack(mark.map_or(0, |mark| mark.load(Relaxed)))
    }

    /// A request is sent to a worker, which has this many prompt tokens to compute for it.
    pub(crate) fn attempt(&self, worker: WorkerSlot, prefill_tokens: u32) -> AttemptHealth {
        let generation = self.0.generations.get(worker.0 as usize);
        AttemptHealth {
            table: self.clone(),
            worker,
            generation: generation.map_or(0, |generation| generation.load(Relaxed)),
            prefill_tokens,
        }
    }

    /// A worker's health.
    pub(crate) fn view(&self, worker: WorkerSlot) -> WorkerHealth {
        let state = self.0.state.lock();
        let last_failure = state.workers.get(&worker).map(|worker| &worker.last_failure);
        WorkerHealth {
            state: state.breakers.state(worker.0),
            recent_failures: state.breakers.mark(worker.0).failures,
            last_failure: last_failure.cloned().unwrap_or_default(),
        }
    }

    /// Looks at all breakers; called every [`TEND_INTERVAL`]. Returns the probes to send now. The result of each goes to
    /// [`HealthTable::probed`].
    pub(crate) fn tend(&self) -> Vec<Incarnation> {
        let now = Instant::now();
        let mut state = self.0.state.lock();
        for (slot, answers) in (0..).zip(&self.0.answers) {
            if answers.load(Relaxed) > 0 {
                state.breakers.answered(slot, answers.swap(0, Relaxed), now);
            }
        }
        let due = state.breakers.due(now);
        if self.has_marks() {
            for (slot, mark) in state.breakers.marks() {
                self.mark_worker(slot, mark);
            }
        }
        due
    }

    /// A probe of an ejected worker has ended: whether the worker answered it.
    pub(crate) fn probed(&self, probe: Incarnation, has_answered: bool) {
        let result = if has_answered { "answered" } else { "failed" };
        counter!("signalbox_worker_probes_total", "result" => result).increment(1);
        let mut state = self.0.state.lock();
        let chance = rand::random();
        let returns = state.breakers.probed(probe, has_answered, Instant::now(), chance);
        self.mark_worker(probe.slot, state.breakers.mark(probe.slot));
        let described = state.workers.get(&WorkerSlot(probe.slot));
        if returns == Some(true)
            && let Some(Described { card, ejected, .. }) = described
        {
            ejected.set(0.0);
            info!(worker.id = %card.id, model = %card.model, "the worker answered a probe and gets requests again");
        }
    }

    fn answered(&self, worker: WorkerSlot) {
        if let Some(answers) = self.0.answers.get(worker.0 as usize) {
            answers.fetch_add(1, Relaxed);
        }
    }

    fn failed(&self, attempt: &AttemptHealth, fault: Fault, cause: &str) {
        let worker = attempt.worker;
        let now = Instant::now();
        let mut state = self.0.state.lock();
        if let Some(answers) = self.0.answers.get(worker.0 as usize) {
            state.breakers.answered(worker.0, answers.swap(0, Relaxed), now);
        }
        let ejected = state
            .breakers
            .failed(attempt.worker(), attempt.prefill_tokens, now, rand::random());
        self.mark_worker(worker.0, state.breakers.mark(worker.0));
        let Some(described) = state.workers.get_mut(&worker) else {
            return;
        };
        let cut = cause.floor_char_boundary(MAX_CAUSE_BYTES);
        described.last_failure = cause[..cut].to_owned();
        let labels = || {
            [
                ("worker", described.card.id.to_string()),
                ("model", described.card.model.clone()),
            ]
        };
        let [id, model] = labels();
        counter!(
            "signalbox_worker_failures_total",
            &[id, model, ("fault", fault.as_str().to_owned())]
        )
        .increment(1);
        if let Some(ejected) = ejected {
            counter!("signalbox_worker_ejections_total", &labels()).increment(1);
            described.ejected.set(1.0);
            let card = &described.card;
            warn!(
                worker.id = %card.id, model = %card.model, fault = fault.as_str(), cause,
                failures_in_a_row = ejected.in_row, probe_in = ?ejected.wait,
                "the worker fails its requests and gets no more until it answers a probe"
            );
        }
    }

    /// Publishes a worker's mark. The state is locked, so that no two threads publish marks of one worker.
    fn mark_worker(&self, slot: u32, mark: Mark) {
        let Some(place) = self.0.marks.get(slot as usize) else {
            return;
        };
        let (before, now) = (place.load(Relaxed), pack(mark));
        if before == now {
            return;
        }
        place.store(now, Relaxed);
        match (before, now) {
            (0, _) => _ = self.0.marked.fetch_add(1, Relaxed),
            (_, 0) => _ = self.0.marked.fetch_sub(1, Relaxed),
            _ => {}
        }
    }
}

impl AttemptHealth {
    /// The worker that the request was sent to.
    pub(crate) fn worker(&self) -> Incarnation {
        Incarnation {
            slot: self.worker.0,
            generation: self.generation,
        }
    }

    /// The answer is whole.
    pub(crate) fn answered(self) {
        self.table.answered(self.worker);
    }

    /// The attempt failed by a fault of the worker. `cause` is for people.
    pub(crate) fn failed(self, fault: Fault, cause: &str) {
        self.table.failed(&self, fault, cause);
    }
}

impl fmt::Debug for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Described")
            .field("worker", &self.card.id)
            .finish_non_exhaustive()
    }
}

const EJECTED: u64 = 1 << 63;

fn pack(mark: Mark) -> u64 {
    let ejected = if mark.is_ejected { EJECTED } else { 0 };
    ejected | u64::from(mark.failures & 0xffff) << 32 | u64::from(mark.prefill_tokens)
}

fn unpack(mark: u64) -> Mark {
    Mark {
        is_ejected: mark & EJECTED != 0,
        failures: (mark >> 32) as u32 & 0xffff,
        prefill_tokens: mark as u32,
    }
}

/// Gives the installed recorder the help text of each metric of this file.
pub(crate) fn describe_metrics() {
    describe_counter!(
        "signalbox_worker_failures_total",
        Unit::Count,
        "Requests that a worker failed by a fault of its own, by fault"
    );
    describe_counter!(
        "signalbox_worker_ejections_total",
        "Times a worker was ejected: it got no requests until it answered a probe"
    );
    describe_gauge!(
        "signalbox_worker_ejected",
        "1 while the worker is ejected, because it failed its requests"
    );
    describe_counter!(
        "signalbox_worker_probes_total",
        "Requests of the router itself to ejected workers, by result"
    );
}
