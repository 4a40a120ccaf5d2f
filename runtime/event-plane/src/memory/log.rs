//! The log of one worker, and the subscriptions to it.

use std::{pin::Pin, sync::Arc};

use parking_lot::Mutex;
use signalbox_protocol::{KvEventBatch, WorkerEpoch};
use tokio::sync::watch;

use crate::{
    codec::{HEADER_LEN, event_len},
    plane::{Delivery, DeliverySource, Subscription},
    retained::{Lookup, RetainedLog, Retention},
};

/// The newest batches of a worker.
#[derive(Debug)]
pub(super) struct WorkerLog {
    contents: Mutex<Contents>,
    /// Whether the worker was forgotten. Sent again with each batch, to wake the subscriptions.
    forgotten: watch::Sender<bool>,
}

#[derive(Debug)]
struct Contents {
    batches: RetainedLog<Arc<KvEventBatch>>,
    /// The number of losses: times when batches were lost before they came into `batches`.
    losses: u64,
    /// Whether no subscription has reported the last loss. Then the next subscription reports it.
    loss_is_unreported: bool,
    /// The plane's count of batches at this worker's last batch.
    last_published: u64,
}

impl WorkerLog {
    /// An empty log. `after_loss`: batches may have been lost before.
    pub(super) fn new(retention: Retention, after_loss: bool) -> Self {
        let contents = Contents {
            batches: RetainedLog::new(retention),
            losses: u64::from(after_loss),
            loss_is_unreported: after_loss,
            last_published: 0,
        };
        Self {
            contents: Mutex::new(contents),
            forgotten: watch::Sender::new(false),
        }
    }

    /// Appends a batch, which is number `count` of the plane.
    pub(super) fn push(&self, batch: Arc<KvEventBatch>, count: u64) {
        let bytes = HEADER_LEN + batch.events.iter().map(event_len).sum::<usize>();
        let mut contents = self.contents.lock();
        contents.batches.push(batch, bytes);
        contents.last_published = count;
        drop(contents);
        self.forgotten.send_modify(|_unchanged| {});
    }

    /// Records that batches were lost.
    pub(super) fn skip(&self) {
        let mut contents = self.contents.lock();
        contents.losses += 1;
        contents.loss_is_unreported |= !self.is_followed();
        drop(contents);
        self.forgotten.send_modify(|_unchanged| {});
    }

    pub(super) fn close(&self) {
        self.forgotten.send_replace(true);
    }

    pub(super) fn is_followed(&self) -> bool {
        self.forgotten.receiver_count() > 0
    }

    /// The plane's count of batches at this worker's last batch.
    pub(super) fn last_published(&self) -> u64 {
        self.contents.lock().last_published
    }

    pub(super) fn follow(self: Arc<Self>, from: Option<(WorkerEpoch, u64)>) -> Subscription {
        let mut contents = self.contents.lock();
        let position = match from {
            Some(wanted) => contents
                .batches
                .first(|batch| (batch.epoch, batch.sequence) >= wanted),
            None => contents.batches.next(),
        };
        // A subscription to future batches only does not report a past loss.
        let reports_last_loss = contents.loss_is_unreported && from.is_some();
        let reported_losses = contents.losses - u64::from(reports_last_loss);
        contents.loss_is_unreported &= from.is_none();
        let forgotten = self.forgotten.subscribe();
        drop(contents);
        Subscription::new(LogSubscription {
            log: self,
            position,
            expected: from,
            held_back: None,
            reported_losses,
            forgotten,
        })
    }
}

/// A subscription: a position in a worker's log.
#[derive(Debug)]
struct LogSubscription {
    log: Arc<WorkerLog>,
    position: u64,
    /// The batch up to which none is missing, if known.
    expected: Option<(WorkerEpoch, u64)>,
    /// The next delivery, after the `Skipped` that was delivered for it.
    held_back: Option<Arc<KvEventBatch>>,
    /// The losses that this subscription has reported.
    reported_losses: u64,
    forgotten: watch::Receiver<bool>,
}

impl DeliverySource for LogSubscription {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Delivery> + Send + '_>> {
        Box::pin(async {
            loop {
                // Marked as seen before the lookup, so that a batch that comes in between wakes the subscription.
                if *self.forgotten.borrow_and_update() {
                    return Delivery::Closed;
                }
                if let Some(delivery) = self.poll_log() {
                    return delivery;
                }
                // An error would mean that the log is gone, but this subscription keeps it.
                _ = self.forgotten.changed().await;
            }
        })
    }
}

impl LogSubscription {
    /// The next delivery, if there is one now.
    fn poll_log(&mut self) -> Option<Delivery> {
        let contents = self.log.contents.lock();
        if contents.losses > self.reported_losses {
            self.reported_losses = contents.losses;
            self.expected = None;
            return Some(Delivery::Skipped);
        }
        let found = match self.held_back.take() {
            Some(batch) => {
                drop(contents);
                return Some(self.deliver(batch));
            }
            None => contents.batches.get(self.position),
        };
        drop(contents);
        match found {
            Lookup::NotWritten => None,
            Lookup::Dropped { oldest } => {
                self.position = oldest;
                self.expected = None;
                Some(Delivery::Skipped)
            }
            Lookup::Entry(batch) => {
                self.position += 1;
                if self.follows(&batch) {
                    return Some(self.deliver(batch));
                }
                self.held_back = Some(batch);
                Some(Delivery::Skipped)
            }
        }
    }

    /// Whether no batch is missing before `batch`. With a new epoch, missing batches of the old one no longer matter.
    fn follows(&self, batch: &KvEventBatch) -> bool {
        self.expected.is_none_or(|(epoch, sequence)| {
            batch.sequence == 0 || (batch.epoch, batch.sequence) <= (epoch, sequence)
        })
    }

    fn deliver(&mut self, batch: Arc<KvEventBatch>) -> Delivery {
        // A repeated batch does not move the expectation back.
        self.expected = self.expected.max(Some((batch.epoch, batch.sequence + 1)));
        Delivery::Batch(batch)
    }
}

impl Drop for LogSubscription {
    /// The next subscription reports a loss that this one has not reported: it may belong to the same subscriber, with
    /// a snapshot from before the loss.
    fn drop(&mut self) {
        let mut contents = self.log.contents.lock();
        contents.loss_is_unreported |= contents.losses > self.reported_losses;
    }
}
