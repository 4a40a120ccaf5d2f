//! The event plane within a process.
//!
//! It has one bounded log per worker. A subscription is a position in the log, so that a slow one delays no other and
//! costs no memory; when the log has dropped its next batch, it delivers
//! [`Delivery::Skipped`](crate::Delivery::Skipped). The plane over NATS stores received batches in such a plane, and so
//! has the same subscriptions.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use signalbox_protocol::{KvEventBatch, PlaneStatus, WorkerEpoch, WorkerId};
use tokio::sync::watch;

use crate::{
    plane::{EventPlane, Subscription},
    retained::Retention,
};

mod log;
#[cfg(test)]
mod tests;

use log::WorkerLog;

/// The greatest age of the snapshot that a subscriber starts from. So for this long after a loss, the snapshot behind
/// the first subscription to a worker may be older than the loss.
const OLDEST_SNAPSHOT: Duration = Duration::from_secs(60);

/// The event plane within a process, with the semantics of [`NatsPlane`](crate::NatsPlane). Clone = handle.
#[derive(Debug, Clone)]
pub struct MemoryPlane {
    inner: Arc<PlaneLogs>,
}

#[derive(Debug)]
struct PlaneLogs {
    retention: Retention,
    max_workers: usize,
    workers: Mutex<Workers>,
    status: watch::Sender<PlaneStatus>,
}

#[derive(Debug, Default)]
struct Workers {
    logs: HashMap<WorkerId, Arc<WorkerLog>>,
    /// The number of published batches of all workers.
    published: u64,
    /// When a batch was last lost that may be of a worker without a log.
    last_loss: Option<Instant>,
}

impl MemoryPlane {
    /// An empty plane.
    pub fn new() -> Arc<Self> {
        Self::with_retention(Retention::default())
    }

    /// An empty plane with another retention than the default.
    pub fn with_retention(retention: Retention) -> Arc<Self> {
        Arc::new(Self::bounded(retention, usize::MAX))
    }

    /// An empty plane for at most `max_workers` names, including names that no real worker has. Beyond that number it
    /// drops the logs without subscriptions that have been silent for longest.
    pub(crate) fn bounded(retention: Retention, max_workers: usize) -> Self {
        Self {
            inner: Arc::new(PlaneLogs {
                retention,
                max_workers,
                workers: Mutex::default(),
                status: watch::Sender::new(PlaneStatus::in_process("memory")),
            }),
        }
    }

    /// Reports that batches of any worker may be lost: every subscription delivers `Skipped`. When a worker has none,
    /// its next subscription does.
    pub(crate) fn skip_all(&self) {
        let mut workers = self.inner.workers.lock();
        workers.last_loss = Some(Instant::now());
        workers.logs.values().for_each(|log| log.skip());
    }

    /// Reports that batches of this worker are lost.
    pub(crate) fn skip(&self, worker: &WorkerId) {
        if let Some(log) = self.inner.workers.lock().logs.get(worker) {
            log.skip();
        }
    }
}

impl EventPlane for MemoryPlane {
    fn publish(&self, worker: &WorkerId, batch: Arc<KvEventBatch>) {
        let mut workers = self.inner.workers.lock();
        workers.published += 1;
        let now = workers.published;
        if !workers.logs.contains_key(worker) && !workers.make_room(self.inner.max_workers) {
            return;
        }
        let log = workers.log(worker, self.inner.retention);
        drop(workers);
        log.push(batch, now);
    }

    fn subscribe(&self, worker: &WorkerId, from: Option<(WorkerEpoch, u64)>) -> Subscription {
        // Under the lock, so that no other thread drops the log because it has no subscription yet.
        let mut workers = self.inner.workers.lock();
        workers.log(worker, self.inner.retention).follow(from)
    }

    fn forget(&self, worker: &WorkerId) {
        let log = self.inner.workers.lock().logs.remove(worker);
        if let Some(log) = log {
            log.close();
        }
    }

    fn status(&self) -> watch::Receiver<PlaneStatus> {
        self.inner.status.subscribe()
    }
}

impl Workers {
    fn log(&mut self, worker: &WorkerId, retention: Retention) -> Arc<WorkerLog> {
        let after_loss = self
            .last_loss
            .is_some_and(|loss| loss.elapsed() < OLDEST_SNAPSHOT);
        self.logs
            .entry(worker.clone())
            .or_insert_with(|| Arc::new(WorkerLog::new(retention, after_loss)))
            .clone()
    }

    /// Makes room for one more log. Returns whether there is room. It drops a quarter of all logs at once, so that a
    /// flood of workers that do not exist costs little for each.
    fn make_room(&mut self, max_workers: usize) -> bool {
        if self.logs.len() < max_workers {
            return true;
        }
        let mut silent: Vec<(u64, WorkerId)> = self
            .logs
            .iter()
            .filter(|(_, log)| !log.is_followed())
            .map(|(worker, log)| (log.last_published(), worker.clone()))
            .collect();
        silent.sort_unstable();
        silent.truncate((max_workers / 4).max(1));
        for (_, worker) in silent {
            self.logs.remove(&worker);
            self.last_loss = Some(Instant::now());
        }
        self.logs.len() < max_workers
    }
}
