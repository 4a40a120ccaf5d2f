//! Keeps the KV index equal to one worker's KV cache.
//!
//! One [`EventStream`] actor follows the KV events of one worker on the event plane. It starts from a snapshot that it
//! fetches from the worker over the request plane, and applies every later batch in order (K-2). When a batch is
//! missing, it drops all credit of the worker and fetches a new snapshot: a credit is exact or absent, never stale.
//! It works with any event plane, and does not depend on the plane to report a loss: the worker reports its own position
//! over the request plane, and a stream that stands still short of that position is rebuilt too. So is one that is ahead
//! of it, and one whose credit is not what the worker reports to hold. A resync that follows another one closely waits.
//!
//! Batches arrive on the plane by `Reader::receive` of the event plane (over NATS) or by `feed_events` in
//! `worker_session.rs` (over the request plane). The subscription that `EventStream::follow` opens brings them here.
//!
//! [`StreamState`] decides, without an actor, a clock or an index; the actor performs what it decides.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use actix::prelude::*;
use futures_util::stream;
use signalbox_event_plane::{Delivery, EventPlane, decode_snapshot};
use signalbox_kv_index::{SharedKvIndex, WorkerSlot};
use signalbox_protocol::{
    Call, KvDigest, KvEvent, KvSnapshot, PlaneState, WorkerCard, WorkerEpoch, WorkerId,
};
use signalbox_request_plane::LinkHandle;
use tracing::{debug, info, warn};

use crate::{
    fetch::fetch,
    load::{EventState, LoadTable},
};
use state::{Action, Credit, Resync, ResyncReason, StreamState};

mod state;

/// Largest snapshot accepted: thirty million blocks.
const MAX_SNAPSHOT_BYTES: usize = 256 << 20;

/// Time between two checks for a lag. Events take milliseconds to arrive: a batch that was reported at the previous
/// check and has not arrived by this one is lost.
const LAG_CHECK: Duration = Duration::from_secs(2);

/// What an event stream works on.
#[derive(Debug, Clone)]
pub(crate) struct EventStreamConfig {
    pub(crate) card: Arc<WorkerCard>,
    pub(crate) slot: WorkerSlot,
    pub(crate) link: LinkHandle,
    pub(crate) plane: Arc<dyn EventPlane>,
    pub(crate) index: SharedKvIndex,
    pub(crate) load: LoadTable,
    /// Set when the stream has to stop: the actor may still receive a batch before [`StopFollowing`].
    pub(crate) stopped: Rc<Cell<bool>>,
}

/// The actor; [`StopFollowing`] ends it.
#[derive(Debug)]
pub(crate) struct EventStream {
    config: EventStreamConfig,
    state: StreamState,
    /// The subscription that is read; `None` until a snapshot is here.
    subscription: Option<SpawnHandle>,
}

/// What a subscription delivered.
struct StreamDelivery {
    /// The resync that the subscription belongs to.
    resync: Resync,
    delivery: Delivery,
}

/// The worker left, or its events are not used any more: the actor stops and changes the index no more.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct StopFollowing;

/// The worker reports what it holds by the batches before `next_batch`. One that is lost is followed by another.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct KvReport {
    pub(crate) next_batch: u64,
    pub(crate) digest: KvDigest,
}

impl EventStream {
    pub(crate) fn new(config: EventStreamConfig) -> Self {
        Self {
            state: StreamState::new(config.card.epoch),
            config,
            subscription: None,
        }
    }

    /// Gives the state a fact and performs the action that follows from it.
    fn handle_fact<'a>(
        &mut self,
        ctx: &mut Context<Self>,
        fact: impl FnOnce(&mut StreamState) -> Option<Action<'a>>,
    ) {
        if self.config.stopped.get() {
            self.state.stop();
        }
        if let Some(action) = fact(&mut self.state) {
            self.perform(ctx, action);
        }
    }

    fn perform(&mut self, ctx: &mut Context<Self>, action: Action<'_>) {
        let worker = &self.config.card.id;
        match action {
            Action::Resync {
                resync,
                reason,
                delay,
            } => {
                log_resync(worker, reason, delay);
                metrics::counter!("signalbox_kv_resyncs_total", "reason" => reason.label()).increment(1);
                if let Some(subscription) = self.subscription.take() {
                    ctx.cancel_future(subscription);
                }
                self.config
                    .load
                    .set_event_state(self.config.slot, EventState::Resyncing);
                self.change_index(SharedKvIndex::remove_worker);
                if delay.is_zero() {
                    return self.fetch_snapshot(ctx, resync);
                }
                ctx.run_later(delay, move |actor, ctx| {
                    actor.handle_fact(ctx, |state| state.on_retry(resync));
                });
            }
            Action::FetchSnapshot { resync } => self.fetch_snapshot(ctx, resync),
            Action::RetryAfter {
                resync,
                delay,
                reason,
            } => {
                debug!(worker.id = %worker, reason, retry_in = ?delay, "the KV snapshot was not fetched");
                ctx.run_later(delay, move |actor, ctx| {
                    actor.handle_fact(ctx, |state| state.on_retry(resync));
                });
            }
            Action::Follow { resync, stored, next } => self.follow(ctx, resync, stored, next),
            Action::Apply(events) => {
                self.change_index(|index, slot| index.apply_all(slot, events));
                self.report_credit(ctx);
            }
            // The roster starts a stream for the later incarnation as soon as discovery reports it.
            Action::LogLaterEpoch(epoch) => {
                info!(worker.id = %worker, %epoch, "the KV events of a later incarnation are ignored until discovery lists it");
            }
        }
    }

    fn fetch_snapshot(&self, ctx: &mut Context<Self>, resync: Resync) {
        let link = self.config.link.clone();
        let fetched = async move { fetch_snapshot(&link).await };
        ctx.spawn(fetched.into_actor(self).map(move |snapshot, actor, ctx| {
            actor.handle_fact(ctx, |state| match &snapshot {
                Ok(snapshot) => state.on_snapshot(resync, Ok(snapshot)),
                Err(reason) => state.on_snapshot(resync, Err(reason.clone())),
            });
        }));
    }

    /// Credits the blocks of a snapshot and reads the plane from the snapshot's end on.
    fn follow(
        &mut self,
        ctx: &mut Context<Self>,
        resync: Resync,
        stored: &[KvEvent],
        next: (WorkerEpoch, u64),
    ) {
        self.change_index(|index, slot| index.apply_all(slot, stored));
        let EventStreamConfig {
            card,
            slot,
            plane,
            load,
            ..
        } = &self.config;
        load.set_event_state(*slot, EventState::Following);
        let subscription = plane.subscribe(&card.id, Some(next));
        let deliveries = stream::unfold(subscription, move |mut subscription| async move {
            match subscription.next().await {
                Delivery::Closed => None,
                delivery => Some((StreamDelivery { resync, delivery }, subscription)),
            }
        });
        self.subscription = Some(ctx.add_stream(deliveries));
        self.report_credit(ctx);
    }

    /// Gives the state what the index holds now.
    fn report_credit(&mut self, ctx: &mut Context<Self>) {
        let slot = self.config.slot;
        let credit = self.config.index.read(|index| Credit {
            digest: index.digest(slot),
            is_partial: index.is_partial(slot),
        });
        self.handle_fact(ctx, |state| state.on_applied(credit));
    }

    /// Changes the index for the worker, and updates the block count that decisions read.
    fn change_index(&self, change: impl FnOnce(&SharedKvIndex, WorkerSlot)) {
        let EventStreamConfig {
            index, load, slot, ..
        } = &self.config;
        change(index, *slot);
        load.refresh_indexed_blocks(*slot, index);
    }
}

/// One line for each resync but the first. They are bounded by their back-off.
fn log_resync(worker: &WorkerId, reason: ResyncReason, delay: Duration) {
    if reason == ResyncReason::Start {
        debug!(worker.id = %worker, "the worker's KV index is built from a snapshot");
    } else if delay.is_zero() {
        info!(worker.id = %worker, %reason, "the worker's KV index is rebuilt from a snapshot");
    } else {
        warn!(
            worker.id = %worker, %reason, snapshot_in = ?delay,
            "the worker's KV index is rebuilt again; it is credited with nothing until then"
        );
    }
}

async fn fetch_snapshot(link: &LinkHandle) -> Result<KvSnapshot, String> {
    let bytes = fetch(link, Call::FetchKvSnapshot, MAX_SNAPSHOT_BYTES)
        .await
        .map_err(|error| error.to_string())?;
    decode_snapshot(&bytes).map_err(|error| error.to_string())
}

impl Actor for EventStream {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.handle_fact(ctx, StreamState::start);
        ctx.run_interval(LAG_CHECK, |actor, ctx| {
            let plane_is_up = actor.config.plane.status().borrow().state == PlaneState::Up;
            let reported = actor.config.load.reported_next_batch(actor.config.slot);
            actor.handle_fact(ctx, |state| state.on_tick(plane_is_up, reported));
        });
    }
}

impl StreamHandler<StreamDelivery> for EventStream {
    fn handle(&mut self, StreamDelivery { resync, delivery }: StreamDelivery, ctx: &mut Self::Context) {
        match &delivery {
            Delivery::Batch(batch) => self.handle_fact(ctx, |state| state.on_batch(resync, batch)),
            Delivery::Skipped => self.handle_fact(ctx, |state| state.on_skipped(resync)),
            Delivery::Closed => {}
        }
    }

    /// The subscription ended; the actor runs until the roster stops it.
    fn finished(&mut self, _: &mut Self::Context) {}
}

impl Handler<KvReport> for EventStream {
    type Result = ();

    fn handle(&mut self, KvReport { next_batch, digest }: KvReport, ctx: &mut Self::Context) {
        self.handle_fact(ctx, |state| state.on_report(next_batch, digest));
    }
}

impl Handler<StopFollowing> for EventStream {
    type Result = ();

    fn handle(&mut self, _: StopFollowing, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
