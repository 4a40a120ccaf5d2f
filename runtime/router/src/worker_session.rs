//! What a router keeps running for each present worker beside its requests: a control link, the KV event feed and
//! the load watch. All of it ends when the session is dropped.

use std::{
    cell::Cell,
    ops::ControlFlow,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use actix::prelude::*;
use signalbox_event_plane::{EventPlane, decode_batch};
use signalbox_kv_index::{SharedKvIndex, WorkerSlot};
use signalbox_protocol::{Call, WorkerCard, WorkerEpoch, WorkerReport};
use signalbox_request_plane::{LinkConfig, LinkEvent, LinkHandle};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use crate::{
    event_stream::{EventStream, EventStreamConfig, StopFollowing},
    fetch::watch,
    load::LoadTable,
};

/// Wait before a watch that ended is opened again: the link itself backs off longer where the worker is away.
const WATCH_RETRY: Duration = Duration::from_millis(100);

/// Shortest time between two load reports of a worker. Routers know their own requests at once; the reports add
/// what others send and how the cache fills, which moves slowly.
const LOAD_INTERVAL_MS: u64 = 200;
/// About the most reports of all workers together in a second: in a large fleet each reports less often, or reading them
/// would cost as much as routing.
const REPORTS_PER_SECOND: u64 = 1_000;

/// One present worker.
#[derive(Debug)]
pub(crate) struct WorkerSession {
    pub(crate) card: Arc<WorkerCard>,
    pub(crate) slot: WorkerSlot,
    pub(crate) link: LinkHandle,
    shared: SessionContext,
    events: Option<Addr<EventStream>>,
    worker_left: Rc<Cell<bool>>,
    _watches: Vec<AbortOnDropHandle<()>>,
}

/// What the sessions of all workers have in common.
#[derive(Debug, Clone)]
pub(crate) struct SessionContext {
    pub(crate) plane: Arc<dyn EventPlane>,
    /// Copy events from the worker's request plane into `plane`: where no NATS carries them there.
    pub(crate) feeds_plane: bool,
    pub(crate) index: SharedKvIndex,
    pub(crate) load: LoadTable,
    pub(crate) links: LinkConfig,
    /// How many workers are present.
    pub(crate) present: Arc<AtomicU64>,
}

impl WorkerSession {
    /// Dials the worker and follows what it says.
    pub(crate) fn start(
        card: Arc<WorkerCard>,
        slot: WorkerSlot,
        shared: SessionContext,
        watcher: Recipient<LinkEvent>,
    ) -> Self {
        let link = LinkHandle::start(card.address.clone(), shared.links.clone(), Some(watcher));
        let mut watches = vec![spawn(watch_load(link.clone(), slot, shared.clone()))];
        if card.kv_events && shared.feeds_plane {
            watches.push(spawn(feed_events(
                link.clone(),
                card.clone(),
                shared.plane.clone(),
            )));
        }
        let mut session = Self {
            card,
            slot,
            link,
            shared,
            events: None,
            worker_left: Rc::default(),
            _watches: watches,
        };
        session.follow_events();
        session
    }

    /// Starts the event stream's actor, also where it ended by a panic: its address is closed then, and nothing
    /// else would start it again.
    pub(crate) fn follow_events(&mut self) {
        let is_running = self.events.as_ref().is_some_and(Addr::connected);
        if !self.card.kv_events || is_running {
            return;
        }
        if self.events.is_some() {
            warn!(worker.id = %self.card.id, "the KV event stream's actor failed; starting it again");
        }
        let config = EventStreamConfig {
            card: self.card.clone(),
            slot: self.slot,
            link: self.link.clone(),
            plane: self.shared.plane.clone(),
            index: self.shared.index.clone(),
            load: self.shared.load.clone(),
            worker_left: self.worker_left.clone(),
        };
        self.events = Some(EventStream::new(config).start());
    }
}

impl Drop for WorkerSession {
    fn drop(&mut self) {
        self.worker_left.set(true);
        if let Some(events) = self.events.take() {
            #[expect(
                clippy::disallowed_methods,
                reason = "a control message, once in the actor's life"
            )]
            events.do_send(StopFollowing);
        }
        self.link.close();
        // K-1: the index holds no block of an absent worker. The actor may still be handed a message before it stops,
        // and sees that it is over.
        self.shared.index.remove_worker(self.slot);
        self.shared.load.forget_reports(self.slot);
        self.shared.plane.forget(&self.card.id);
    }
}

fn spawn(task: impl Future<Output = ()> + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(actix_rt::spawn(task))
}

async fn watch_load(link: LinkHandle, slot: WorkerSlot, shared: SessionContext) {
    let right_interval = || report_interval_ms(shared.present.load(Relaxed));
    loop {
        let interval_ms = right_interval();
        let take = |bytes: bytes::Bytes| {
            match serde_json::from_slice::<WorkerReport>(&bytes) {
                Ok(report) => shared.load.report(slot, &report),
                Err(error) => debug!(%error, "a load report could not be read"),
            }
            if is_about(interval_ms, right_interval()) {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        match watch(&link, Call::WatchLoad { interval_ms }, take).await {
            // The fleet grew or shrank: ask for another interval.
            Ok(ControlFlow::Break(())) => continue,
            Ok(ControlFlow::Continue(())) => {}
            Err(error) => debug!(%error, "load reports interrupted"),
        }
        tokio::time::sleep(WATCH_RETRY).await;
    }
}

fn report_interval_ms(workers: u64) -> u64 {
    LOAD_INTERVAL_MS.max(workers * 1000 / REPORTS_PER_SECOND)
}

/// Whether an interval asked for before is still good: hardly too short, and not more than twice as long as it needs to be.
fn is_about(asked_ms: u64, right_ms: u64) -> bool {
    (asked_ms / 2..=asked_ms + asked_ms / 8).contains(&right_ms)
}

/// Copies the worker's batches into the plane, from the one after the last copied. Where the worker no longer keeps
/// it, from the next: the event stream sees the gap and takes a snapshot.
async fn feed_events(link: LinkHandle, card: Arc<WorkerCard>, plane: Arc<dyn EventPlane>) {
    let next: Rc<Cell<Option<(WorkerEpoch, u64)>>> = Rc::default();
    loop {
        let take = |bytes: bytes::Bytes| {
            match decode_batch(&bytes) {
                Ok(batch) if batch.epoch == card.epoch => {
                    next.set(Some((batch.epoch, batch.sequence + 1)));
                    plane.publish(&card.id, Arc::new(batch));
                }
                Ok(batch) => {
                    debug!(worker.id = %card.id, epoch = %batch.epoch, "a batch of another epoch is ignored")
                }
                Err(error) => warn!(worker.id = %card.id, %error, "a KV event batch could not be read"),
            }
            ControlFlow::Continue(())
        };
        let wanted = next.get();
        match watch(&link, Call::WatchKvEvents { after: wanted }, take).await {
            Err(signalbox_request_plane::LinkError::Refused(error)) if wanted.is_some() => {
                warn!(worker.id = %card.id, %error, "KV events were missed");
                next.set(None);
            }
            Err(error) => debug!(worker.id = %card.id, %error, "KV events interrupted"),
            Ok(_) => {}
        }
        tokio::time::sleep(WATCH_RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_fleet_reports_less_often() {
        assert_eq!([1, 200].map(report_interval_ms), [LOAD_INTERVAL_MS; 2]);
        for workers in [500, 4_096] {
            assert!(workers * 1000 / report_interval_ms(workers) <= REPORTS_PER_SECOND);
        }
    }

    #[test]
    fn however_a_fleet_grows_or_shrinks_it_reports_about_as_often_as_it_should() {
        let mut asked = LOAD_INTERVAL_MS;
        for workers in (1..4_096).chain((1..4_096).rev()) {
            let right = report_interval_ms(workers);
            if !is_about(asked, right) {
                asked = right;
            }
            let reports = workers * 1000 / asked;
            assert!(
                reports <= REPORTS_PER_SECOND * 9 / 8,
                "{reports}/s of {workers} workers"
            );
            assert!(asked <= 2 * right + 1, "{asked} ms where {right} would do");
        }
    }
}
