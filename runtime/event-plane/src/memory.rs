//! The event plane within a process.
//!
//! The twin of NATS JetStream: one bounded log for each worker; a subscription is a position in it, so a slow one
//! holds nobody up and costs no memory. It skips what the log dropped, and says so. The plane over NATS keeps what
//! it received in one of these: its subscriptions are the same.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use signalbox_protocol::{KvEventBatch, PlaneStatus, WorkerEpoch, WorkerId};
use tokio::sync::watch;

use crate::{EventPlane, Retention, Subscription};

mod log;
#[cfg(test)]
mod tests;

use log::WorkerLog;

/// A subscriber starts from a snapshot that is at most this old. So for this long after a loss, a worker met for the
/// first time is one whose snapshot may be from before the loss.
const OLDEST_SNAPSHOT: Duration = Duration::from_secs(60);

/// The in-process twin of NATS JetStream: one bounded log a worker. Cloning makes another handle.
#[derive(Debug, Clone)]
pub struct MemoryPlane {
    shared: Arc<PlaneLogs>,
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
    /// Counts the batches of all, to tell who has been silent longest.
    published: u64,
    /// When something was last lost that a worker without a log may have said.
    lost: Option<Instant>,
}

impl MemoryPlane {
    /// An empty plane.
    pub fn new() -> Arc<Self> {
        Self::with_retention(Retention::default())
    }

    /// An empty plane that keeps more or less of each worker than by default.
    pub fn with_retention(retention: Retention) -> Arc<Self> {
        Arc::new(Self::bounded(retention, usize::MAX))
    }

    /// An empty plane for workers that need not exist: past `max_workers`, those are forgotten that nobody follows
    /// and that have been silent longest.
    pub(crate) fn bounded(retention: Retention, max_workers: usize) -> Self {
        Self {
            shared: Arc::new(PlaneLogs {
                retention,
                max_workers,
                workers: Mutex::default(),
                status: watch::Sender::new(PlaneStatus::in_process("memory")),
            }),
        }
    }

    /// Something that any worker said may be lost: every subscription is told, or the next one where a worker has
    /// none.
    pub(crate) fn skip_all(&self) {
        let mut workers = self.shared.workers.lock();
        workers.lost = Some(Instant::now());
        workers.logs.values().for_each(|log| log.skip());
    }

    /// Something that this worker said is lost.
    pub(crate) fn skip(&self, worker: &WorkerId) {
        if let Some(log) = self.shared.workers.lock().logs.get(worker) {
            log.skip();
        }
    }
}

impl EventPlane for MemoryPlane {
    fn publish(&self, worker: &WorkerId, batch: Arc<KvEventBatch>) {
        let mut workers = self.shared.workers.lock();
        workers.published += 1;
        let now = workers.published;
        if !workers.logs.contains_key(worker) && !workers.make_room(self.shared.max_workers) {
            return;
        }
        let log = workers.log(worker, self.shared.retention);
        drop(workers);
        log.push(batch, now);
    }

    fn subscribe(&self, worker: &WorkerId, after: Option<(WorkerEpoch, u64)>) -> Subscription {
        // Under the lock, so that nobody takes the log for one that is not followed.
        let mut workers = self.shared.workers.lock();
        workers.log(worker, self.shared.retention).follow(after)
    }

    fn forget(&self, worker: &WorkerId) {
        let log = self.shared.workers.lock().logs.remove(worker);
        if let Some(log) = log {
            log.close();
        }
    }

    fn status(&self) -> watch::Receiver<PlaneStatus> {
        self.shared.status.subscribe()
    }
}

impl Workers {
    fn log(&mut self, worker: &WorkerId, retention: Retention) -> Arc<WorkerLog> {
        let after_loss = self.lost.is_some_and(|lost| lost.elapsed() < OLDEST_SNAPSHOT);
        self.logs
            .entry(worker.clone())
            .or_insert_with(|| Arc::new(WorkerLog::new(retention, after_loss)))
            .clone()
    }

    /// Makes room for one more; whether there is. A quarter goes at once, so that a flood of made-up workers costs
    /// little for each.
    fn make_room(&mut self, max_workers: usize) -> bool {
        if self.logs.len() < max_workers {
            return true;
        }
        let mut silent: Vec<(u64, WorkerId)> = self
            .logs
            .iter()
            .filter(|(_, log)| !log.is_followed())
            .map(|(worker, log)| (log.spoke(), worker.clone()))
            .collect();
        silent.sort_unstable();
        silent.truncate((max_workers / 4).max(1));
        for (_, worker) in silent {
            self.logs.remove(&worker);
            self.lost = Some(Instant::now());
        }
        self.logs.len() < max_workers
    }
}
