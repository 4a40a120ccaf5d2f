//! The workers of a process, from the moment when routers can find them to their end.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::ensure;
use futures_util::future::{join_all, select_all};
use signalbox_discovery::{Discovery, EtcdDiscovery, MAX_CARD_BYTES, Registration};
use signalbox_protocol::{WorkerCard, WorkerEpoch, WorkerId};
use signalbox_worker::service::{self, RunningWorker};
use tokio::task::JoinHandle;

use crate::{planes::Events, settings::WorkerPlace};

/// One run of an engine, as routers see it: a worker, or one for each simulated engine or data-parallel rank.
pub(super) struct Incarnation {
    /// At least one.
    workers: Vec<RunningWorker>,
    registrations: Vec<Registration>,
    /// The tasks that publish KV events over NATS.
    publishing: Vec<JoinHandle<()>>,
}

/// The epochs of the workers' last incarnations, as far as etcd knows.
pub(super) async fn last_epochs(
    etcd: Option<&EtcdDiscovery>,
    model: &str,
    workers: &[WorkerPlace],
) -> BTreeMap<WorkerId, WorkerEpoch> {
    let ids: Vec<_> = workers.iter().map(|place| place.id.clone()).collect();
    match etcd {
        Some(etcd) => etcd.known_epochs(model, &ids).await,
        None => BTreeMap::new(),
    }
}

impl Incarnation {
    /// Registers the workers, and publishes their KV events where the event plane needs that.
    pub(super) fn announce(
        workers: Vec<RunningWorker>,
        etcd: Option<&EtcdDiscovery>,
        events: &Events,
    ) -> anyhow::Result<Self> {
        if etcd.is_some() {
            workers.iter().try_for_each(|worker| check_size(worker.card()))?;
        }
        let publishing = workers
            .iter()
            .filter(|_| events.nats.is_some())
            .map(|worker| {
                actix_rt::spawn(service::publish_events(
                    worker.card().id.clone(),
                    worker.event_log().clone(),
                    events.plane.clone(),
                ))
            })
            .collect();
        let registrations = match etcd {
            Some(etcd) => workers
                .iter()
                .map(|worker| etcd.register(worker.card().clone()))
                .collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        Ok(Self {
            workers,
            registrations,
            publishing,
        })
    }

    /// The card of the first worker. The others differ in name and address.
    pub(super) fn card(&self) -> &Arc<WorkerCard> {
        self.workers[0].card()
    }

    /// Where routers reach the workers.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.workers
            .iter()
            .map(|worker| worker.card().address.clone())
            .collect()
    }

    /// Returns the reason when one of the workers has failed.
    pub(super) async fn failed(&self) -> String {
        let (reason, ..) = select_all(self.workers.iter().map(|worker| Box::pin(worker.failed()))).await;
        reason
    }

    /// Drains the workers. Open requests have `grace` to finish.
    pub(super) async fn end(self, grace: Duration) {
        // Routers with an open link also get a drain message; this keeps new routers from connecting.
        drop(self.registrations);
        join_all(self.workers.iter().map(|worker| worker.drain(grace))).await;
        for task in self.publishing {
            task.abort();
        }
    }
}

/// Refuses a card that routers would skip.
fn check_size(card: &WorkerCard) -> anyhow::Result<()> {
    let bytes = serde_json::to_vec(card)?.len();
    ensure!(
        bytes <= MAX_CARD_BYTES,
        "the card of worker {} has {bytes} bytes, and routers read {MAX_CARD_BYTES} at most; give fewer or shorter --label",
        card.id
    );
    Ok(())
}
