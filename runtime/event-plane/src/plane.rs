//! What carries events from workers to routers.

use std::{fmt::Debug, pin::Pin, sync::Arc};

use signalbox_protocol::{KvEventBatch, PlaneStatus, WorkerEpoch, WorkerId};
use tokio::sync::watch;

#[cfg(test)]
pub(crate) mod conformance;

/// Carries the KV events of workers to whoever subscribes.
///
/// Batches of a worker arrive in the order they were published, each at least once, or the hole is told as
/// [`Delivery::Skipped`]. Nothing here waits: what cannot be sent is lost, and found by the subscriber's
/// [`StreamCursor`](crate::StreamCursor).
pub trait EventPlane: Send + Sync + Debug + 'static {
    /// Hands over a batch of `worker`.
    fn publish(&self, worker: &WorkerId, batch: Arc<KvEventBatch>);

    /// Follows a worker, which need not have published yet. `after`: the first batch wanted; `None`: what is
    /// published from now on.
    fn subscribe(&self, worker: &WorkerId, after: Option<(WorkerEpoch, u64)>) -> Subscription;

    /// The worker left for good: what it said is dropped and its subscriptions are closed. Should it publish again,
    /// it is a new one.
    fn forget(&self, worker: &WorkerId);

    /// How whatever carries the events is doing, and every change of that.
    fn status(&self) -> watch::Receiver<PlaneStatus>;
}

/// One worker's batches as they arrive.
#[derive(Debug)]
pub struct Subscription {
    source: Box<dyn DeliverySource>,
}

/// What a subscription gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// The next batch; perhaps one that came before.
    Batch(Arc<KvEventBatch>),
    /// Some before the next one may be missing.
    Skipped,
    /// The worker was forgotten: nothing comes any more.
    Closed,
}

/// Where a plane's subscriptions get their deliveries from.
pub trait DeliverySource: Send + Debug + 'static {
    /// Waits for the next delivery. Dropping the future loses nothing; after `Closed` comes `Closed`.
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Delivery> + Send + '_>>;
}

impl Subscription {
    /// A subscription to a plane of one's own.
    pub fn new(source: impl DeliverySource) -> Self {
        Self {
            source: Box::new(source),
        }
    }

    /// Waits for the next delivery. Loses nothing when cancelled; after `Closed` comes `Closed`.
    pub async fn next(&mut self) -> Delivery {
        self.source.next().await
    }
}
