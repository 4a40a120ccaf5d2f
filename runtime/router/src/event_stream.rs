//! Keeps the index true to one worker's KV cache.
//!
//! One [`EventStream`] actor follows one worker's KV events on the event plane. It starts from a snapshot fetched
//! from the worker over the request plane and applies every later batch in order (K-2). When batches are missing,
//! it drops all credit of the worker first and takes a new snapshot: a credit is exact or absent, never stale.
//! It does not know which plane carries the events, and does not trust it to tell of every loss: the worker itself
//! says over the request plane how far its stream is, and a stream that stands still short of that is rebuilt too.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use actix::prelude::*;
use futures_util::stream;
use signalbox_event_plane::{BatchCheck, Delivery, EventPlane, StreamCursor, decode_snapshot};
use signalbox_kv_index::{SharedKvIndex, WorkerSlot};
use signalbox_protocol::{Call, KvEventBatch, KvSnapshot, PlaneState, WorkerCard};
use signalbox_request_plane::LinkHandle;
use tracing::{debug, warn};

use crate::{
    fetch::{FetchError, fetch},
    load::{EventState, LoadTable},
};

/// Largest snapshot taken: thirty million blocks.
const MAX_SNAPSHOT_BYTES: usize = 256 << 20;

/// Wait before a snapshot is asked for again, doubled up to the longest after each failure. A worker that is
/// leaving answers none, and it is the roster that ends this actor then.
const SNAPSHOT_RETRY: Duration = Duration::from_millis(50);
const SNAPSHOT_RETRY_MAX: Duration = Duration::from_secs(2);

/// How often it is looked whether the stream stands still although the worker has said more. Events take milliseconds;
/// what the worker had reported one look ago and is still not here has been lost.
const LAG_CHECK: Duration = Duration::from_secs(2);

/// What an event stream works on.
#[derive(Debug)]
pub(crate) struct EventStreamConfig {
    pub(crate) card: Arc<WorkerCard>,
    pub(crate) slot: WorkerSlot,
    pub(crate) link: LinkHandle,
    pub(crate) plane: Arc<dyn EventPlane>,
    pub(crate) index: SharedKvIndex,
    pub(crate) load: LoadTable,
    /// Set when the worker left: before the actor hears of it, it may be handed a batch more.
    pub(crate) is_over: Rc<Cell<bool>>,
}

/// The actor; stopped by its address's last drop or [`StopFollowing`].
#[derive(Debug)]
pub(crate) struct EventStream {
    config: EventStreamConfig,
    cursor: StreamCursor,
    /// The subscription being read; none while a snapshot is on its way.
    subscription: Option<SpawnHandle>,
    retry: Duration,
    /// Counts the resyncs. What was on its way here when one began, a batch as well as a snapshot, is of the past:
    /// applied to the emptied index it would be credit for what may be gone.
    resync: u64,
    /// What the last look at the stream's progress saw.
    last_progress: Progress,
    /// Whether a batch was applied since the last snapshot. Until then the plane delivers what the snapshot contains,
    /// perhaps more of it than it keeps, and what it skips of that is not missing; a real hole shows in the next
    /// batch's number, or at the next look at the progress.
    applied_since_snapshot: bool,
}

/// How far the stream was at one look.
#[derive(Debug, Default, Clone, Copy)]
struct Progress {
    plane_was_up: bool,
    /// The next batch wanted.
    position: u64,
    /// The next batch of the worker, in its own words.
    reported: u64,
}

impl Progress {
    /// Whether batches were lost between this look and `now`: what was said by this one is still not here, and
    /// nothing else came, although the plane worked.
    fn shows_loss(self, now: Self) -> bool {
        self.plane_was_up && now.plane_was_up && now.position == self.position && now.position < self.reported
    }
}

/// What a subscription gave.
struct StreamDelivery {
    /// The actor's when it subscribed.
    resync: u64,
    delivery: Delivery,
}

/// The worker left: touch the index no more.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct StopFollowing;

impl EventStream {
    pub(crate) fn new(config: EventStreamConfig) -> Self {
        Self {
            config,
            cursor: StreamCursor::default(),
            subscription: None,
            retry: SNAPSHOT_RETRY,
            resync: 0,
            last_progress: Progress::default(),
            applied_since_snapshot: false,
        }
    }

    /// Whether what began in this resync still matters.
    fn is_current(&self, resync: u64) -> bool {
        resync == self.resync && !self.config.is_over.get()
    }

    /// Finds losses that nothing else tells of: the last batches before a worker fell silent.
    fn check_lag(&mut self, ctx: &mut Context<Self>) {
        let EventStreamConfig {
            load, plane, slot, ..
        } = &self.config;
        let now = Progress {
            plane_was_up: plane.status().borrow().state == PlaneState::Up,
            position: self.cursor.position().map_or(0, |(_, next)| next),
            reported: load.reported_next_batch(*slot),
        };
        let is_following = load.event_state(*slot) == EventState::Following;
        let before = std::mem::replace(&mut self.last_progress, now);
        if is_following && !self.config.is_over.get() && before.shows_loss(now) {
            self.resync(ctx, "the worker has said more than arrived here");
        }
    }

    /// Drops all credit and starts again from a snapshot.
    fn resync(&mut self, ctx: &mut Context<Self>, reason: &str) {
        debug!(worker.id = %self.config.card.id, reason, "KV index of the worker is rebuilt from a snapshot");
        self.resync += 1;
        if let Some(subscription) = self.subscription.take() {
            ctx.cancel_future(subscription);
        }
        self.config
            .load
            .set_event_state(self.config.slot, EventState::Resyncing);
        self.change_index(SharedKvIndex::remove_worker);
        metrics::counter!("signalbox_kv_resyncs_total").increment(1);
        self.fetch_snapshot(ctx);
    }

    fn fetch_snapshot(&self, ctx: &mut Context<Self>) {
        let (link, resync) = (self.config.link.clone(), self.resync);
        let snapshot = async move { fetch(&link, Call::FetchKvSnapshot, MAX_SNAPSHOT_BYTES).await };
        ctx.spawn(snapshot.into_actor(self).map(move |answer, actor, ctx| {
            if actor.is_current(resync) {
                actor.snapshot_fetched(ctx, answer);
            }
        }));
    }

    fn snapshot_fetched(&mut self, ctx: &mut Context<Self>, answer: Result<Vec<u8>, FetchError>) {
        let decoded = answer
            .map_err(|error| error.to_string())
            .and_then(|bytes| decode_snapshot(&bytes).map_err(|error| error.to_string()));
        match decoded {
            Ok(snapshot) if snapshot.epoch == self.config.card.epoch => {
                self.retry = SNAPSHOT_RETRY;
                self.follow(ctx, &snapshot);
            }
            Ok(snapshot) => self.retry_snapshot(ctx, &format!("epoch {} answered", snapshot.epoch)),
            Err(reason) => self.retry_snapshot(ctx, &reason),
        }
    }

    fn retry_snapshot(&mut self, ctx: &mut Context<Self>, reason: &str) {
        debug!(worker.id = %self.config.card.id, reason, "KV snapshot could not be had; asking again");
        let resync = self.resync;
        ctx.run_later(self.retry, move |actor, ctx| {
            if actor.is_current(resync) {
                actor.fetch_snapshot(ctx);
            }
        });
        self.retry = (self.retry * 2).min(SNAPSHOT_RETRY_MAX);
    }

    /// Credits the snapshot and reads on from its end.
    fn follow(&mut self, ctx: &mut Context<Self>, snapshot: &KvSnapshot) {
        let slot = self.config.slot;
        self.change_index(|index, slot| index.apply_all(slot, &snapshot.stored));
        self.cursor.resume(snapshot.epoch, snapshot.next_sequence);
        self.applied_since_snapshot = false;
        self.config.load.set_event_state(slot, EventState::Following);
        let subscription = self
            .config
            .plane
            .subscribe(&self.config.card.id, self.cursor.position());
        let resync = self.resync;
        let deliveries = stream::unfold(subscription, move |mut subscription| async move {
            match subscription.next().await {
                Delivery::Closed => None,
                delivery => Some((StreamDelivery { resync, delivery }, subscription)),
            }
        });
        self.subscription = Some(ctx.add_stream(deliveries));
    }

    /// Changes what the index says of the worker, and tells decisions how much that is now.
    fn change_index(&self, change: impl FnOnce(&SharedKvIndex, WorkerSlot)) {
        let EventStreamConfig {
            index, load, slot, ..
        } = &self.config;
        change(index, *slot);
        load.refresh_indexed_blocks(*slot, index);
    }

    fn receive(&mut self, ctx: &mut Context<Self>, batch: &KvEventBatch) {
        match self.cursor.check(batch.epoch, batch.sequence) {
            BatchCheck::Apply => {
                self.applied_since_snapshot = true;
                self.change_index(|index, slot| index.apply_all(slot, &batch.events));
            }
            BatchCheck::Duplicate | BatchCheck::OldEpoch => {}
            BatchCheck::Gap { expected } => {
                let reason = format!("batch {expected} is missing: {} came", batch.sequence);
                self.resync(ctx, &reason);
            }
            // The next life of the worker gets a stream of its own as soon as discovery tells of it.
            BatchCheck::NewEpoch => {
                warn!(worker.id = %self.config.card.id, "a later life of the worker speaks")
            }
        }
    }
}

impl Actor for EventStream {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.resync(ctx, "first look");
        ctx.run_interval(LAG_CHECK, Self::check_lag);
    }
}

impl StreamHandler<StreamDelivery> for EventStream {
    fn handle(&mut self, StreamDelivery { resync, delivery }: StreamDelivery, ctx: &mut Self::Context) {
        // A stream that was cancelled hands over what it has ready all the same.
        if !self.is_current(resync) {
            return;
        }
        match delivery {
            Delivery::Batch(batch) => self.receive(ctx, &batch),
            Delivery::Skipped if self.applied_since_snapshot => {
                self.resync(ctx, "the plane no longer keeps what is missing")
            }
            Delivery::Skipped | Delivery::Closed => {}
        }
    }

    /// The subscription ended; the actor goes on until the roster stops it.
    fn finished(&mut self, _: &mut Self::Context) {}
}

impl Handler<StopFollowing> for EventStream {
    type Result = ();

    fn handle(&mut self, _: StopFollowing, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_stands_still_short_of_what_was_said_has_lost_something() {
        let at = |position, reported| Progress {
            plane_was_up: true,
            position,
            reported,
        };
        assert!(at(5, 7).shows_loss(at(5, 9)));
        assert!(!at(5, 7).shows_loss(at(6, 9)), "it moves");
        assert!(!at(5, 5).shows_loss(at(5, 9)), "what is new may be under way");
        assert!(
            !at(5, 7).shows_loss(Progress {
                plane_was_up: false,
                ..at(5, 9)
            }),
            "it will come"
        );
    }
}
