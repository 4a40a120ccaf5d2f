//! What every event plane offers: publish a worker's batches, subscribe to them.

use std::{fmt::Debug, pin::Pin, sync::Arc};

use signalbox_protocol::{KvEventBatch, PlaneStatus, WorkerEpoch, WorkerId};
use tokio::sync::watch;

#[cfg(test)]
pub(crate) mod conformance;

/// Carries the KV events of workers to subscribers.
///
/// A worker's batches arrive in the order of publication, each at least once; a gap is reported as
/// [`Delivery::Skipped`]. No call waits. A batch that cannot be sent is lost, and the subscriber's
/// [`StreamCursor`](crate::StreamCursor) finds the gap.
pub trait EventPlane: Send + Sync + Debug + 'static {
    /// Publishes a batch of `worker`.
    fn publish(&self, worker: &WorkerId, batch: Arc<KvEventBatch>);

    /// Subscribes to a worker, which need not have published yet. `from` is the first batch to deliver; `None` means
    /// batches published from now on.
    fn subscribe(&self, worker: &WorkerId, from: Option<(WorkerEpoch, u64)>) -> Subscription;

    /// Drops the batches of a worker that has left, and closes its subscriptions. If it publishes again, it counts as a
    /// new worker.
    fn forget(&self, worker: &WorkerId);

    /// The state of the transport, and every change of it.
    fn status(&self) -> watch::Receiver<PlaneStatus>;
}

/// The batches of one worker, as they arrive.
#[derive(Debug)]
pub struct Subscription {
    source: Box<dyn DeliverySource>,
}

/// What a subscription delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// The next batch, or one that was delivered before.
    Batch(Arc<KvEventBatch>),
    /// Batches before the next one may be missing.
    Skipped,
    /// The worker was forgotten; no batch follows.
    Closed,
}

/// The source of a subscription's deliveries: one for each kind of plane.
pub trait DeliverySource: Send + Debug + 'static {
    /// Waits for the next delivery. Dropping the future loses nothing; after `Closed`, every call returns `Closed`.
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Delivery> + Send + '_>>;
}

impl Subscription {
    /// A subscription that reads from `source`.
    pub fn new(source: impl DeliverySource) -> Self {
        Self {
            source: Box::new(source),
        }
    }

    /// Waits for the next delivery. Dropping the future loses nothing; after `Closed`, every call returns `Closed`.
    pub async fn next(&mut self) -> Delivery {
        self.source.next().await
    }
}
