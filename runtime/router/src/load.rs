//! How busy each worker is: the requests that this router has in flight on it, and what the worker reports.
//!
//! The process has one table, indexed by [`WorkerSlot`]. Decisions on every HTTP thread read it without a lock. A
//! [`Reservation`] changes it when it is made, at the first token, with each KV block that the answer grows by, and at
//! its end. The end is its `Drop`: a request that fails, is cancelled or panics is released like one that finished.
//!
//! The table also holds what other routers have in flight; replica sync keeps that part. Each change of this router's
//! own part raises a signal for replica sync. Raising it never waits, and costs one read while it is raised already.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU8, AtomicU32, AtomicU64,
            Ordering::{Relaxed, SeqCst},
            fence,
        },
    },
    time::{Duration, Instant},
};

use signalbox_kv_index::{SharedKvIndex, WorkerSlot};
use signalbox_protocol::{ReplicaLoad, WorkerReport};
use tokio::sync::Notify;

pub(crate) use self::reservation::Reservation;
use crate::{breaker::BreakerConfig, health::HealthTable};

mod reservation;

/// Most workers of one router. The table is allocated whole, 64 bytes for each.
pub(crate) const MAX_WORKERS: u32 = 4_096;

/// The load of all workers. Clone = handle.
#[derive(Debug, Clone)]
pub(crate) struct LoadTable {
    own: Arc<[OwnLoad]>,
    reported: Arc<[ReportedLoad]>,
    changes: Arc<ChangeSignal>,
    /// Other routers whose load counts here, or that discovery lists.
    other_routers: Arc<AtomicU32>,
    /// Which workers are ejected, and the failures that count as load.
    health: HealthTable,
    /// How often a worker reports its load, in milliseconds.
    report_interval_ms: Arc<AtomicU64>,
    /// Where the router's monotonic clock begins.
    epoch: Instant,
}

/// Wakes one listener when this router's load has changed since the listener last returned.
#[derive(Debug, Default)]
struct ChangeSignal {
    raised: AtomicBool,
    listener: Notify,
}

/// What every decision reads of every worker. It is as small as possible: with a thousand workers, fetching the cache
/// lines that other threads changed is most of the time of a decision.
#[derive(Debug, Default)]
struct OwnLoad {
    prefill_tokens: AtomicU32,
    decode_blocks: AtomicU32,
    requests: AtomicU32,
    /// The greater of `reported_used_blocks` and `indexed_blocks` in [`ReportedLoad`].
    used_blocks: AtomicU32,
}

/// What other processes report about a worker. One thread writes all of it.
#[derive(Debug, Default)]
struct ReportedLoad {
    others_prefill_tokens: AtomicU32,
    others_decode_blocks: AtomicU32,
    others_requests: AtomicU32,
    reported_waiting: AtomicU32,
    reported_running: AtomicU32,
    reported_active_blocks: AtomicU32,
    reported_used_blocks: AtomicU32,
    reported_prefill_rate: AtomicU32,
    reported_decode_step_us: AtomicU32,
    reported_prefill_step_tokens: AtomicU32,
    reported_decode_step_blocks: AtomicU32,
    reported_steps: AtomicU64,
    /// When a report last stated another number of steps; 0 before the first.
    progressed_at_ms: AtomicU64,
    /// When the worker last reported, on the router's clock; 0 before its first report.
    reported_at_ms: AtomicU64,
    /// KV blocks that the index credits the worker with.
    indexed_blocks: AtomicU32,
    /// The sequence number of the worker's next batch of KV events, as it last reported.
    reported_next_batch: AtomicU64,
    /// The number of the latest [`LearningPeriod`].
    learning_period: AtomicU32,
    event_state: AtomicU8,
}

/// How well the KV index matches a worker's KV cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum EventState {
    /// The slot has no worker.
    #[default]
    None = 0,
    /// Batches are missing. The index holds no credit of the worker until a snapshot arrives.
    Resyncing = 1,
    /// The index equals the worker's KV cache, except for batches under way.
    Following = 2,
    /// The worker's events are not used. The index holds what this router learned from its own decisions.
    Approximate = 3,
}

/// One period in which this router learns a worker's KV blocks from its own decisions. What was learned in an earlier
/// period, or of an earlier worker of the slot, does not count in a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LearningPeriod(u32);

/// A worker's load at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct WorkerLoad {
    pub(crate) prefill_tokens: u32,
    pub(crate) decode_blocks: u32,
    pub(crate) requests: u32,
    /// What other routers have in flight on the worker.
    pub(crate) others: ReplicaLoad,
    pub(crate) reported_waiting: u32,
    pub(crate) event_state: EventState,
}

/// What a worker reported last about its own load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LastReport {
    pub(crate) running: u32,
    /// KV blocks of running sequences.
    pub(crate) active_blocks: u32,
    /// KV blocks in use.
    pub(crate) used_blocks: u32,
    /// The worker's own measurements; 0 where it reports none.
    pub(crate) prefill_tokens_per_s: u32,
    pub(crate) decode_step_us: u32,
    pub(crate) prefill_step_tokens: u32,
    pub(crate) decode_step_blocks: u32,
    /// When it arrived, on the router's clock; 0 before the first.
    pub(crate) at_ms: u64,
}

impl WorkerLoad {
    /// What this router has in flight on the worker.
    pub(crate) fn own(&self) -> ReplicaLoad {
        ReplicaLoad {
            prefill_tokens: self.prefill_tokens,
            decode_blocks: self.decode_blocks,
            requests: self.requests,
        }
    }
}

impl Default for LoadTable {
    fn default() -> Self {
        Self::new(BreakerConfig::default())
    }
}

impl LoadTable {
    /// A table without load, whose workers are ejected as `breakers` says.
    pub(crate) fn new(breakers: BreakerConfig) -> Self {
        Self {
            own: (0..MAX_WORKERS).map(|_| OwnLoad::default()).collect(),
            reported: (0..MAX_WORKERS).map(|_| ReportedLoad::default()).collect(),
            changes: Arc::default(),
            other_routers: Arc::default(),
            health: HealthTable::new(breakers, MAX_WORKERS),
            report_interval_ms: Arc::default(),
            epoch: Instant::now(),
        }
    }

    /// The same table, whose clock began at another time.
    #[cfg(test)]
    pub(crate) fn since(self, epoch: Instant) -> Self {
        Self { epoch, ..self }
    }

    /// The health of the workers.
    pub(crate) fn health(&self) -> &HealthTable {
        &self.health
    }

    /// A worker's load now; zero for a slot past the table's end.
    pub(crate) fn get(&self, worker: WorkerSlot) -> WorkerLoad {
        let (Some((own, _)), Some((others, reported_waiting))) = (self.own(worker), self.others(worker))
        else {
            return WorkerLoad::default();
        };
        WorkerLoad {
            prefill_tokens: own.prefill_tokens,
            decode_blocks: own.decode_blocks,
            requests: own.requests,
            others,
            reported_waiting,
            event_state: self.event_state(worker),
        }
    }

    /// What this router has in flight on a worker, and the number of KV blocks in use on it. The latter is the greater
    /// of what the worker last reported and what the index credits it with; the index changes with every prompt, and
    /// reports are slower. `None` for a slot past the table's end.
    pub(crate) fn own(&self, worker: WorkerSlot) -> Option<(ReplicaLoad, u32)> {
        let slot = self.own.get(worker.0 as usize)?;
        let own = ReplicaLoad {
            prefill_tokens: slot.prefill_tokens.load(Relaxed),
            decode_blocks: slot.decode_blocks.load(Relaxed),
            requests: slot.requests.load(Relaxed),
        };
        Some((own, slot.used_blocks.load(Relaxed)))
    }

    /// What other routers have in flight on a worker, and the number of requests that wait in its engine. `None` for a
    /// slot past the table's end.
    pub(crate) fn others(&self, worker: WorkerSlot) -> Option<(ReplicaLoad, u32)> {
        let reported = self.reported(worker)?;
        let others = ReplicaLoad {
            prefill_tokens: reported.others_prefill_tokens.load(Relaxed),
            decode_blocks: reported.others_decode_blocks.load(Relaxed),
            requests: reported.others_requests.load(Relaxed),
        };
        Some((others, reported.reported_waiting.load(Relaxed)))
    }

    /// Counts a request on `worker` until the reservation is dropped.
    pub(crate) fn reserve(&self, worker: WorkerSlot, prefill_tokens: u32, decode_blocks: u32) -> Reservation {
        if let Some(own) = self.own.get(worker.0 as usize) {
            own.prefill_tokens.fetch_add(prefill_tokens, SeqCst);
            own.decode_blocks.fetch_add(decode_blocks, SeqCst);
            own.requests.fetch_add(1, SeqCst);
            self.changes.raise();
        }
        Reservation::new(self.clone(), worker, prefill_tokens, decode_blocks)
    }

    /// Milliseconds of the router's monotonic clock at `now`; at least 1.
    pub(crate) fn clock_ms(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// What a worker reported last about its own load.
    pub(crate) fn last_report(&self, worker: WorkerSlot) -> Option<LastReport> {
        let reported = self.reported(worker)?;
        Some(LastReport {
            running: reported.reported_running.load(Relaxed),
            active_blocks: reported.reported_active_blocks.load(Relaxed),
            used_blocks: reported.reported_used_blocks.load(Relaxed),
            prefill_tokens_per_s: reported.reported_prefill_rate.load(Relaxed),
            decode_step_us: reported.reported_decode_step_us.load(Relaxed),
            prefill_step_tokens: reported.reported_prefill_step_tokens.load(Relaxed),
            decode_step_blocks: reported.reported_decode_step_blocks.load(Relaxed),
            at_ms: reported.reported_at_ms.load(Relaxed),
        })
    }

    /// Stores what a worker reports about itself at `at_ms` of the router's clock; 0 for a report that does not count.
    pub(crate) fn report(&self, worker: WorkerSlot, report: &WorkerReport, at_ms: u64) {
        if let Some(reported) = self.reported(worker) {
            reported.reported_at_ms.store(at_ms, Relaxed);
            let steps = report.load.steps_done;
            if reported.reported_steps.swap(steps, Relaxed) != steps {
                reported.progressed_at_ms.store(at_ms, Relaxed);
            }
            reported
                .reported_prefill_rate
                .store(report.load.prefill_tokens_per_s, Relaxed);
            reported
                .reported_decode_step_us
                .store(report.load.decode_step_us, Relaxed);
            reported
                .reported_prefill_step_tokens
                .store(report.load.prefill_step_tokens, Relaxed);
            reported
                .reported_decode_step_blocks
                .store(report.load.decode_step_blocks, Relaxed);
            reported.reported_waiting.store(report.load.waiting, Relaxed);
            reported.reported_running.store(report.load.running, Relaxed);
            reported
                .reported_active_blocks
                .store(report.load.active_kv_blocks, Relaxed);
            reported
                .reported_used_blocks
                .store(report.load.used_kv_blocks, Relaxed);
            reported.reported_next_batch.store(report.next_kv_batch, Relaxed);
            self.count_used_blocks(worker);
        }
    }

    /// How long ago the worker's engine made progress, at `now`; `None` if its steps are not known.
    pub(crate) fn since_progress(&self, worker: WorkerSlot, now: Instant) -> Option<Duration> {
        let reported = self.reported(worker)?;
        if reported.reported_steps.load(Relaxed) == 0 {
            return None;
        }
        let at_ms = reported.progressed_at_ms.load(Relaxed);
        Some(Duration::from_millis(self.clock_ms(now).saturating_sub(at_ms)))
    }

    /// How often workers report.
    pub(crate) fn report_interval(&self) -> Duration {
        Duration::from_millis(self.report_interval_ms.load(Relaxed))
    }

    pub(crate) fn set_report_interval(&self, interval_ms: u64) {
        self.report_interval_ms.store(interval_ms, Relaxed);
    }

    /// Stores how many blocks the index credits a worker with. Called after each change of the index for that worker.
    pub(crate) fn refresh_indexed_blocks(&self, worker: WorkerSlot, index: &SharedKvIndex) {
        self.set_indexed_blocks(worker, index.read(|index| index.blocks_of(worker)));
    }

    fn set_indexed_blocks(&self, worker: WorkerSlot, blocks: usize) {
        if let Some(reported) = self.reported(worker) {
            let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
            reported.indexed_blocks.store(blocks, Relaxed);
            self.count_used_blocks(worker);
        }
    }

    fn count_used_blocks(&self, worker: WorkerSlot) {
        if let (Some(own), Some(reported)) = (self.own.get(worker.0 as usize), self.reported(worker)) {
            let used_blocks = reported.reported_used_blocks.load(Relaxed);
            let used = used_blocks.max(reported.indexed_blocks.load(Relaxed));
            // Stored only when it changes: each store takes the cache line from every thread that decides.
            if own.used_blocks.load(Relaxed) != used {
                own.used_blocks.store(used, Relaxed);
            }
        }
    }

    /// The sequence number of the worker's next batch of KV events, as it last reported; 0 before its first report.
    pub(crate) fn reported_next_batch(&self, worker: WorkerSlot) -> u64 {
        self.reported(worker)
            .map_or(0, |reported| reported.reported_next_batch.load(Relaxed))
    }

    /// Stores what all other routers together have in flight on a worker.
    pub(crate) fn set_others(&self, worker: WorkerSlot, others: ReplicaLoad) {
        if let Some(reported) = self.reported(worker) {
            reported
                .others_prefill_tokens
                .store(others.prefill_tokens, Relaxed);
            reported.others_decode_blocks.store(others.decode_blocks, Relaxed);
            reported.others_requests.store(others.requests, Relaxed);
        }
    }

    /// How many other routers send requests to the same workers, as far as replica sync knows.
    pub(crate) fn other_routers(&self) -> u32 {
        self.other_routers.load(Relaxed)
    }

    pub(crate) fn set_other_routers(&self, routers: usize) {
        let routers = u32::try_from(routers).unwrap_or(u32::MAX);
        self.other_routers.store(routers, Relaxed);
    }

    /// Waits until this router's load has changed since the last return of this method. For one listener.
    pub(crate) async fn changed(&self) {
        self.changes.listener.notified().await;
        self.changes.lower();
    }

    pub(crate) fn event_state(&self, worker: WorkerSlot) -> EventState {
        self.reported(worker)
            .map_or(EventState::None, ReportedLoad::event_state)
    }

    pub(crate) fn set_event_state(&self, worker: WorkerSlot, state: EventState) {
        if let Some(reported) = self.reported(worker) {
            reported.event_state.store(state as u8, Relaxed);
        }
    }

    /// From now on this router learns the worker's KV blocks from its own decisions, until the event state changes.
    pub(crate) fn begin_learning(&self, worker: WorkerSlot) {
        if let Some(reported) = self.reported(worker) {
            reported.learning_period.fetch_add(1, Relaxed);
        }
        self.set_event_state(worker, EventState::Approximate);
    }

    /// The period in which this router learns the worker's KV blocks; `None` if it does not learn them.
    pub(crate) fn learning_period(&self, worker: WorkerSlot) -> Option<LearningPeriod> {
        let reported = self.reported(worker)?;
        (reported.event_state() == EventState::Approximate)
            .then(|| LearningPeriod(reported.learning_period.load(Relaxed)))
    }

    /// The workers whose KV blocks this router learns. Costs one pass over the table.
    pub(crate) fn learned_workers(&self) -> impl Iterator<Item = WorkerSlot> {
        (0..MAX_WORKERS)
            .map(WorkerSlot)
            .filter(|worker| self.learning_period(*worker).is_some())
    }

    /// Forgets all reports about a worker that left. Reservations that are still held release themselves.
    pub(crate) fn forget_reports(&self, worker: WorkerSlot) {
        self.report(worker, &WorkerReport::default(), 0);
        self.set_others(worker, ReplicaLoad::default());
        self.set_indexed_blocks(worker, 0);
        self.set_event_state(worker, EventState::None);
    }

    fn reported(&self, worker: WorkerSlot) -> Option<&ReportedLoad> {
        self.reported.get(worker.0 as usize)
    }
}

impl ReportedLoad {
    fn event_state(&self) -> EventState {
        match self.event_state.load(Relaxed) {
            1 => EventState::Resyncing,
            2 => EventState::Following,
            3 => EventState::Approximate,
            _ => EventState::None,
        }
    }
}

impl ChangeSignal {
    /// Called after a change, each of which is a `SeqCst` operation. Either the listener reads the change after it has
    /// lowered the signal, or this reads the lowered signal: no change is lost. With weaker orders, both sides could read
    /// what was there before the other side's write.
    fn raise(&self) {
        // Read first: while the signal is raised, all threads share the flag's cache line instead of taking it in turns.
        if !self.raised.load(SeqCst) && !self.raised.swap(true, SeqCst) {
            self.listener.notify_one();
        }
    }

    /// Called before the listener reads the load.
    fn lower(&self) {
        self.raised.store(false, SeqCst);
        // Orders the listener's reads, which are `Relaxed`, after the store.
        fence(SeqCst);
    }
}

#[cfg(test)]
mod tests;
