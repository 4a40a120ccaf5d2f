//! The event plane within a process.
//!
//! The twin of NATS JetStream: one bounded log for each worker; a subscription is a position in it, so a slow one
//! holds nobody up and costs no memory. It skips what the log dropped, and says so.

use std::{collections::HashMap, pin::Pin, sync::Arc};

use parking_lot::Mutex;
use signalbox_protocol::{KvEventBatch, WorkerEpoch, WorkerId};
use tokio::sync::watch;

use crate::{
    Delivery, DeliverySource, EventPlane, Retention, Subscription,
    codec::{HEADER_LEN, event_len},
    retained::{At, RetainedLog},
};

/// The in-process twin of NATS JetStream: one bounded log a worker. Cloning makes another handle.
#[derive(Debug, Default, Clone)]
pub struct MemoryPlane {
    retention: Retention,
    workers: Arc<Mutex<HashMap<WorkerId, Arc<WorkerLog>>>>,
}

#[derive(Debug)]
struct WorkerLog {
    batches: Mutex<RetainedLog<Arc<KvEventBatch>>>,
    /// Whether the worker was forgotten; sent again for each batch, to wake the subscriptions.
    forgotten: watch::Sender<bool>,
}

impl MemoryPlane {
    /// An empty plane.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// An empty plane that keeps more or less of each worker than by default.
    pub fn with_retention(retention: Retention) -> Arc<Self> {
        Arc::new(Self {
            retention,
            workers: Arc::default(),
        })
    }

    fn log(&self, worker: &WorkerId) -> Arc<WorkerLog> {
        let new = || {
            let batches = Mutex::new(RetainedLog::new(self.retention));
            Arc::new(WorkerLog {
                batches,
                forgotten: watch::Sender::new(false),
            })
        };
        self.workers
            .lock()
            .entry(worker.clone())
            .or_insert_with(new)
            .clone()
    }
}

impl EventPlane for MemoryPlane {
    fn publish(&self, worker: &WorkerId, batch: &KvEventBatch) {
        let log = self.log(worker);
        let bytes = HEADER_LEN + batch.events.iter().map(event_len).sum::<usize>();
        log.batches.lock().push(Arc::new(batch.clone()), bytes);
        log.forgotten.send_modify(|_unchanged| {});
    }

    fn subscribe(&self, worker: &WorkerId, after: Option<(WorkerEpoch, u64)>) -> Subscription {
        let log = self.log(worker);
        let position = {
            let batches = log.batches.lock();
            match after {
                Some(wanted) => batches.first(|batch| (batch.epoch, batch.sequence) >= wanted),
                None => batches.next(),
            }
        };
        let forgotten = log.forgotten.subscribe();
        Subscription::new(Follower {
            log,
            position,
            expected: after,
            held_back: None,
            forgotten,
        })
    }

    fn forget(&self, worker: &WorkerId) {
        if let Some(log) = self.workers.lock().remove(worker) {
            log.forgotten.send_replace(true);
        }
    }
}

/// A position in a worker's log.
#[derive(Debug)]
struct Follower {
    log: Arc<WorkerLog>,
    position: u64,
    /// The first batch that nothing was missed before, where that is known.
    expected: Option<(WorkerEpoch, u64)>,
    /// Comes next: a `Skipped` went before it.
    held_back: Option<Arc<KvEventBatch>>,
    forgotten: watch::Receiver<bool>,
}

impl DeliverySource for Follower {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Delivery> + Send + '_>> {
        Box::pin(async {
            loop {
                // Marked as seen before looking, so that what comes in between wakes us.
                if *self.forgotten.borrow_and_update() {
                    return Delivery::Closed;
                }
                if let Some(delivery) = self.look() {
                    return delivery;
                }
                // The sender lives as long as we hold the log, so this only ever waits.
                _ = self.forgotten.changed().await;
            }
        })
    }
}

impl Follower {
    fn look(&mut self) -> Option<Delivery> {
        if let Some(batch) = self.held_back.take() {
            return Some(self.deliver(&batch));
        }
        let found = self.log.batches.lock().at(self.position);
        match found {
            At::Ahead => None,
            At::Gone { oldest } => {
                self.position = oldest;
                self.expected = None;
                Some(Delivery::Skipped)
            }
            At::Entry(batch) => {
                self.position += 1;
                if self.follows(&batch) {
                    return Some(self.deliver(&batch));
                }
                self.held_back = Some(batch);
                Some(Delivery::Skipped)
            }
        }
    }

    /// Whether nothing is missing before `batch`. A new epoch makes what is missing of the old one irrelevant.
    fn follows(&self, batch: &KvEventBatch) -> bool {
        self.expected.is_none_or(|(epoch, sequence)| {
            batch.sequence == 0 || (batch.epoch, batch.sequence) <= (epoch, sequence)
        })
    }

    fn deliver(&mut self, batch: &KvEventBatch) -> Delivery {
        // An old batch published again takes nothing back.
        self.expected = self.expected.max(Some((batch.epoch, batch.sequence + 1)));
        Delivery::Batch(batch.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plane::behaviour;

    #[tokio::test]
    async fn it_behaves_as_an_event_plane() {
        let retained = 8;
        behaviour::of(retained, || {
            MemoryPlane::with_retention(Retention {
                batches: retained,
                bytes: 1 << 20,
            })
        })
        .await;
    }

    #[tokio::test]
    async fn what_takes_too_many_bytes_is_skipped_too() {
        let plane = MemoryPlane::with_retention(Retention {
            batches: 100,
            bytes: 3 * HEADER_LEN,
        });
        let worker = behaviour::worker("a");
        for sequence in 0..10 {
            plane.publish(
                &worker,
                &KvEventBatch {
                    epoch: WorkerEpoch(1),
                    sequence,
                    events: vec![],
                },
            );
        }
        let mut subscription = plane.subscribe(&worker, Some((WorkerEpoch(1), 0)));
        assert_eq!(subscription.next().await, Delivery::Skipped);
        let Delivery::Batch(batch) = subscription.next().await else {
            panic!("three are kept")
        };
        assert_eq!(batch.sequence, 7);
    }
}
