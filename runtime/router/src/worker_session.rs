//! What a router runs for each present worker beside its requests: a control link, the load watch, the source of its
//! credit in the KV index and, where no NATS carries the KV events, their feed. All of it ends when the session is
//! dropped.

use std::{
    cell::{Cell, RefCell},
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
use signalbox_protocol::{Call, LoraAdapter, WorkerCard, WorkerEpoch, WorkerId, WorkerReport};
use signalbox_request_plane::{LinkConfig, LinkError, LinkEvent, LinkHandle, LinkState};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use crate::{
    affinity::AffinityTable,
    event_stream::EventStreamConfig,
    fetch::watch,
    kv_source::KvSource,
    latency::{LatencyGauges, LatencyTable, MeasuredLatency},
    load::LoadTable,
    parity::ParityTable,
};

/// Wait before a watch that ended is opened again. While the worker cannot be reached the wait doubles, up to the longest:
/// with thousands of workers that do not answer, short waits would take a core.
const WATCH_RETRY: Duration = Duration::from_millis(100);
const WATCH_RETRY_MAX: Duration = Duration::from_secs(2);

/// Shortest time between two load reports of a worker. A router counts its own requests at once. The reports add the
/// engine's waiting requests and its use of the KV cache, which change slowly.
const LOAD_INTERVAL_MS: u64 = 200;
/// About the most load reports of all workers together in a second. The workers of a large fleet report less often each:
/// reading more reports would cost as much as routing.
const REPORTS_PER_SECOND: u64 = 1_000;

/// One present worker.
#[derive(Debug)]
pub(crate) struct WorkerSession {
    pub(crate) card: Arc<WorkerCard>,
    pub(crate) slot: WorkerSlot,
    pub(crate) link: LinkHandle,
    shared: SessionContext,
    reports: Rc<Reports>,
    _watches: Vec<AbortOnDropHandle<()>>,
}

/// What the sessions of all workers have in common.
#[derive(Debug, Clone)]
pub(crate) struct SessionContext {
    pub(crate) plane: Arc<dyn EventPlane>,
    /// Whether to copy events from the worker's request plane into `plane`, where no NATS carries them.
    pub(crate) feeds_plane: bool,
    pub(crate) index: SharedKvIndex,
    pub(crate) load: LoadTable,
    pub(crate) parity: ParityTable,
    pub(crate) latency: LatencyTable,
    pub(crate) affinity: AffinityTable,
    pub(crate) links: LinkConfig,
    /// How many workers are present.
    pub(crate) present: Arc<AtomicU64>,
}

/// What the load reports of one worker change.
#[derive(Debug)]
struct Reports {
    slot: WorkerSlot,
    source: RefCell<KvSource>,
    latency_gauges: LatencyGauges,
    card: Arc<WorkerCard>,
    roster: Recipient<AdaptersReported>,
    /// Whether a report has come before.
    reported: Cell<bool>,
}

/// A worker reported the LoRA adapters that its engine has loaded. Sent for the first report of each session, and after each
/// change.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct AdaptersReported {
    pub(crate) id: WorkerId,
    pub(crate) epoch: WorkerEpoch,
    pub(crate) adapters: Vec<LoraAdapter>,
}

impl WorkerSession {
    /// Dials the worker, and follows its load reports and KV events.
    pub(crate) fn start(
        card: Arc<WorkerCard>,
        slot: WorkerSlot,
        shared: SessionContext,
        watcher: Recipient<LinkEvent>,
        roster: Recipient<AdaptersReported>,
    ) -> Self {
        let link = LinkHandle::start(card.address.clone(), shared.links.clone(), Some(watcher));
        // A request of the slot's previous worker may have ended after that worker left.
        shared.latency.forget(slot);
        shared.load.health().join(slot, &card);
        let stream = EventStreamConfig {
            card: card.clone(),
            slot,
            link: link.clone(),
            plane: shared.plane.clone(),
            index: shared.index.clone(),
            load: shared.load.clone(),
            stopped: Rc::default(),
        };
        let reports = Rc::new(Reports {
            slot,
            source: RefCell::new(KvSource::start(stream, shared.parity.clone())),
            latency_gauges: LatencyGauges::new(&card),
            card: card.clone(),
            roster,
            reported: Cell::new(false),
        });
        let mut watches = vec![spawn(watch_load(link.clone(), reports.clone(), shared.clone()))];
        if card.kv_events && shared.feeds_plane {
            watches.push(spawn(feed_events(
                link.clone(),
                card.clone(),
                shared.plane.clone(),
            )));
        }
        Self {
            card,
            slot,
            link,
            shared,
            reports,
            _watches: watches,
        }
    }
}

impl Drop for WorkerSession {
    fn drop(&mut self) {
        self.link.close();
        self.reports.source.borrow_mut().end();
        self.reports.latency_gauges.set(MeasuredLatency::default());
        self.shared.load.forget_reports(self.slot);
        self.shared.load.health().leave(self.slot);
        self.shared.latency.forget(self.slot);
        self.shared.affinity.forget(self.slot);
        self.shared.plane.forget(&self.card.id);
    }
}

impl Reports {
    fn receive(&self, mut report: WorkerReport, shared: &SessionContext) {
        let at_ms = shared.load.clock_ms(std::time::Instant::now());
        shared.load.report(self.slot, &report, at_ms);
        self.source.borrow_mut().report(&report.parity);
        if let Some(digest) = report.kv_digest {
            self.source.borrow().report_held(report.next_kv_batch, digest);
        }
        // The figures are this router's own. A report is only the moment to export them.
        self.latency_gauges.set(shared.latency.get(self.slot));
        let is_first = !self.reported.replace(true);
        if let Some(adapters) = report.adapters.take().or_else(|| is_first.then(Vec::new)) {
            // A control message, which must not be lost: a worker sends the next list only after the next change.
            self.roster.do_send(AdaptersReported {
                id: self.card.id.clone(),
                epoch: self.card.epoch,
                adapters,
            });
        }
    }
}

fn spawn(task: impl Future<Output = ()> + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(actix_rt::spawn(task))
}

async fn watch_load(link: LinkHandle, reports: Rc<Reports>, shared: SessionContext) {
    let ideal_interval = || report_interval_ms(shared.present.load(Relaxed));
    let mut wait = WATCH_RETRY;
    loop {
        let interval_ms = ideal_interval();
        shared.load.set_report_interval(interval_ms);
        let receive = |bytes: bytes::Bytes| {
            match serde_json::from_slice::<WorkerReport>(&bytes) {
                Ok(report) => reports.receive(report, &shared),
                Err(error) => debug!(%error, "a load report cannot be read"),
            }
            if is_about(interval_ms, ideal_interval()) {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        match watch(&link, Call::WatchLoad { interval_ms }, receive).await {
            // The fleet grew or shrank: request another interval.
            Ok(ControlFlow::Break(())) => continue,
            Ok(ControlFlow::Continue(())) => {}
            Err(error) => debug!(%error, "load reports interrupted"),
        }
        wait = next_wait(wait, link.state());
        tokio::time::sleep(wait).await;
    }
}

fn report_interval_ms(workers: u64) -> u64 {
    LOAD_INTERVAL_MS.max(workers * 1000 / REPORTS_PER_SECOND)
}

/// Whether the requested interval is still close enough to the ideal one: at most an eighth too short, and at most twice
/// as long.
fn is_about(requested_ms: u64, ideal_ms: u64) -> bool {
    (requested_ms / 2..=requested_ms + requested_ms / 8).contains(&ideal_ms)
}

/// Copies the worker's batches into the plane, starting after the last batch copied. If the worker no longer keeps the
/// next batch, copying continues with the next one published: the event stream finds the gap and fetches a snapshot.
async fn feed_events(link: LinkHandle, card: Arc<WorkerCard>, plane: Arc<dyn EventPlane>) {
    let next: Rc<Cell<Option<(WorkerEpoch, u64)>>> = Rc::default();
    let mut wait = WATCH_RETRY;
    loop {
        let receive = |bytes: bytes::Bytes| {
            match decode_batch(&bytes) {
                Ok(batch) if batch.epoch == card.epoch => {
                    next.set(Some((batch.epoch, batch.sequence + 1)));
                    plane.publish(&card.id, Arc::new(batch));
                }
                Ok(batch) => {
                    debug!(worker.id = %card.id, epoch = %batch.epoch, "a batch of another epoch is ignored")
                }
                Err(error) => warn!(worker.id = %card.id, %error, "a KV event batch cannot be read"),
            }
            ControlFlow::Continue(())
        };
        let from = next.get();
        match watch(&link, Call::WatchKvEvents { from }, receive).await {
            Err(LinkError::Refused(error)) if from.is_some() => {
                warn!(worker.id = %card.id, %error, "KV events are missing");
                next.set(None);
            }
            Err(error) => debug!(worker.id = %card.id, %error, "KV events interrupted"),
            Ok(_) => {}
        }
        wait = next_wait(wait, link.state());
        tokio::time::sleep(wait).await;
    }
}

/// The wait before a watch is opened again, after the last wait.
fn next_wait(last: Duration, link: LinkState) -> Duration {
    match link {
        LinkState::Up | LinkState::Draining => WATCH_RETRY,
        LinkState::Connecting | LinkState::Backoff | LinkState::Closed => (last * 2).min(WATCH_RETRY_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_of_a_worker_that_does_not_answer_is_opened_less_often() {
        let mut wait = WATCH_RETRY;
        for _ in 0..10 {
            wait = next_wait(wait, LinkState::Backoff);
        }
        assert_eq!(wait, WATCH_RETRY_MAX);
        assert_eq!(next_wait(wait, LinkState::Up), WATCH_RETRY);
    }

    #[test]
    fn a_large_fleet_reports_less_often() {
        assert_eq!([1, 200].map(report_interval_ms), [LOAD_INTERVAL_MS; 2]);
        for workers in [500, 4_096] {
            assert!(workers * 1000 / report_interval_ms(workers) <= REPORTS_PER_SECOND);
        }
    }

    #[test]
    fn the_reports_stay_near_their_bound_while_a_fleet_grows_and_shrinks() {
        let mut requested = LOAD_INTERVAL_MS;
        for workers in (1..4_096).chain((1..4_096).rev()) {
            let ideal = report_interval_ms(workers);
            if !is_about(requested, ideal) {
                requested = ideal;
            }
            let reports = workers * 1000 / requested;
            assert!(
                reports <= REPORTS_PER_SECOND * 9 / 8,
                "{reports}/s of {workers} workers"
            );
            assert!(
                requested <= 2 * ideal + 1,
                "{requested} ms where {ideal} ms is enough"
            );
        }
    }
}
