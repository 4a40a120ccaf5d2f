//! One worker's log, and those who follow it.

use std::{pin::Pin, sync::Arc};

use parking_lot::Mutex;
use signalbox_protocol::{KvEventBatch, WorkerEpoch};
use tokio::sync::watch;

use crate::{
    Delivery, DeliverySource, Retention, Subscription,
    codec::{HEADER_LEN, event_len},
    retained::{At, RetainedLog},
};

/// What a worker published last.
#[derive(Debug)]
pub(super) struct WorkerLog {
    state: Mutex<State>,
    /// Whether the worker was forgotten; sent again at each change, to wake the subscriptions.
    forgotten: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    batches: RetainedLog<Arc<KvEventBatch>>,
    /// How often something was lost that never came into `batches`.
    losses: u64,
    /// Nobody was told of the last loss: the next one to follow is.
    untold: bool,
    /// What the plane's count of batches was at this worker's last one.
    spoke: u64,
}

impl WorkerLog {
    /// An empty log; `after_loss`: something may have been lost before it.
    pub(super) fn new(retention: Retention, after_loss: bool) -> Self {
        let state = State {
            batches: RetainedLog::new(retention),
            losses: u64::from(after_loss),
            untold: after_loss,
            spoke: 0,
        };
        Self {
            state: Mutex::new(state),
            forgotten: watch::Sender::new(false),
        }
    }

    pub(super) fn push(&self, batch: Arc<KvEventBatch>, now: u64) {
        let bytes = HEADER_LEN + batch.events.iter().map(event_len).sum::<usize>();
        let mut state = self.state.lock();
        state.batches.push(batch, bytes);
        state.spoke = now;
        drop(state);
        self.forgotten.send_modify(|_unchanged| {});
    }

    pub(super) fn skip(&self) {
        let mut state = self.state.lock();
        state.losses += 1;
        state.untold |= !self.is_followed();
        drop(state);
        self.forgotten.send_modify(|_unchanged| {});
    }

    pub(super) fn close(&self) {
        self.forgotten.send_replace(true);
    }

    pub(super) fn is_followed(&self) -> bool {
        self.forgotten.receiver_count() > 0
    }

    /// When it last got a batch, as the plane counts them.
    pub(super) fn spoke(&self) -> u64 {
        self.state.lock().spoke
    }

    pub(super) fn follow(self: Arc<Self>, after: Option<(WorkerEpoch, u64)>) -> Subscription {
        let mut state = self.state.lock();
        let position = match after {
            Some(wanted) => state
                .batches
                .first(|batch| (batch.epoch, batch.sequence) >= wanted),
            None => state.batches.next(),
        };
        // Whoever wants only what comes from now on misses nothing that was.
        let told = state.losses - u64::from(state.untold && after.is_some());
        state.untold &= after.is_none();
        let forgotten = self.forgotten.subscribe();
        drop(state);
        Subscription::new(Follower {
            log: self,
            position,
            expected: after,
            held_back: None,
            told,
            forgotten,
        })
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
    /// The losses told of.
    told: u64,
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
        let state = self.log.state.lock();
        if state.losses > self.told {
            self.told = state.losses;
            self.expected = None;
            return Some(Delivery::Skipped);
        }
        let found = match self.held_back.take() {
            Some(batch) => {
                drop(state);
                return Some(self.deliver(batch));
            }
            None => state.batches.at(self.position),
        };
        drop(state);
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
                    return Some(self.deliver(batch));
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

    fn deliver(&mut self, batch: Arc<KvEventBatch>) -> Delivery {
        // An old batch published again takes nothing back.
        self.expected = self.expected.max(Some((batch.epoch, batch.sequence + 1)));
        Delivery::Batch(batch)
    }
}

impl Drop for Follower {
    /// A loss that this one was not told of is told to the next: it may be the same subscriber, who asked for a
    /// snapshot before the loss.
    fn drop(&mut self) {
        let mut state = self.log.state.lock();
        state.untold |= state.losses > self.told;
    }
}
