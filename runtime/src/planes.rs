//! From settings to planes: what carries membership, events and policies for this process.
//!
//! Nothing here waits for a server. A NATS or etcd that cannot be reached is dialled until it can, and meanwhile the
//! process serves with what it has. Each change of a plane's state is logged once and shown by a gauge.

use std::{path::Path, sync::Arc};

use signalbox_discovery::EtcdDiscovery;
use signalbox_event_plane::{
    Broadcast, EventPlane, MemoryPlane, NatsBroadcast, NatsPlane, NatsPlaneConfig, Retention,
};
use signalbox_nats::{NatsConnection, Replicas};
use signalbox_policy_store::{DirectoryStore, MemoryStore, NatsStore, SharedStore};
use signalbox_protocol::{PlaneState, PlaneStatus};
use tokio::sync::watch;

use crate::settings::PlaneSettings;
use outage_log::{OutageLine, OutageLog};

mod outage_log;

/// The state of a plane and its changes.
pub(crate) type Status = watch::Receiver<PlaneStatus>;

/// Registers this process at etcd, if its settings name one.
pub(crate) async fn start_etcd(settings: &PlaneSettings) -> anyhow::Result<Option<Arc<EtcdDiscovery>>> {
    match &settings.etcd {
        Some(config) => Ok(Some(EtcdDiscovery::start(config.clone()).await?)),
        None => Ok(None),
    }
}

/// What carries events, and whatever else goes the same way.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) plane: Arc<dyn EventPlane>,
    /// The connection, if events go over NATS.
    pub(crate) nats: Option<NatsConnection>,
    replicas: Replicas,
}

impl Events {
    /// Those of a router, which keeps the streams' number of copies. Connects to NATS if the settings name it; `name` is
    /// shown in the server's list of connections.
    pub(crate) async fn of_router(settings: &PlaneSettings, name: &str) -> anyhow::Result<Self> {
        let replicas = settings.nats.as_ref().and_then(|nats| nats.replicas);
        Self::start(settings, name, Replicas::raised_to(replicas)).await
    }

    /// Those of a worker, or of a command that only looks.
    pub(crate) async fn of_worker(settings: &PlaneSettings, name: &str) -> anyhow::Result<Self> {
        let replicas = settings.nats.as_ref().and_then(|nats| nats.replicas);
        Self::start(settings, name, Replicas::at_creation(replicas)).await
    }

    async fn start(settings: &PlaneSettings, name: &str, replicas: Replicas) -> anyhow::Result<Self> {
        let Some(nats) = &settings.nats else {
            return Ok(Self::in_process());
        };
        let connection = NatsConnection::start(&nats.connection, name).await?;
        let plane = NatsPlaneConfig {
            namespace: settings.namespace.clone(),
            replicas: replicas.clone(),
            ..NatsPlaneConfig::default()
        };
        Ok(Self {
            plane: NatsPlane::start(connection.clone(), plane),
            nats: Some(connection),
            replicas,
        })
    }

    /// Within this process.
    fn in_process() -> Self {
        Self {
            plane: MemoryPlane::with_retention(Retention::OF_A_ROUTER),
            nats: None,
            replicas: Replicas::default(),
        }
    }

    /// Carries messages between routers; `None` without NATS, where this router is the only one.
    pub(crate) fn broadcast(&self, namespace: &str) -> Option<Arc<dyn Broadcast>> {
        let nats = self.nats.clone()?;
        Some(NatsBroadcast::start(nats, namespace))
    }

    /// The store of uploaded policies: in NATS for all routers, in a folder, or in memory only.
    pub(crate) fn policy_store(
        &self,
        namespace: &str,
        folder: Option<&Path>,
    ) -> anyhow::Result<Arc<dyn SharedStore>> {
        match (&self.nats, folder) {
            (Some(nats), _) => Ok(NatsStore::start(nats.clone(), namespace, self.replicas.clone())),
            (None, Some(folder)) => Ok(DirectoryStore::open(folder)?),
            (None, None) => Ok(MemoryStore::new()),
        }
    }
}

/// Logs the losses and returns of a plane and sets its gauge, until the plane is dropped.
pub(crate) fn report(name: &'static str, mut status: Status) {
    metrics::describe_gauge!(
        "signalbox_plane_up",
        "1 while the plane works, 0 while it does not, by plane and by what carries it"
    );
    actix_rt::spawn(async move {
        let mut log = OutageLog::default();
        loop {
            let now = status.borrow_and_update().clone();
            let gauge = metrics::gauge!("signalbox_plane_up", "plane" => name, "kind" => now.kind.clone());
            gauge.set(if now.state == PlaneState::Up { 1.0 } else { 0.0 });
            match log.line(&now) {
                Some(OutageLine::Works) => tracing::info!(plane = name, kind = now.kind, "plane works"),
                // At the level at which the failure was logged.
                Some(OutageLine::WorksAgain) => {
                    tracing::warn!(plane = name, kind = now.kind, "plane works again")
                }
                Some(OutageLine::Fails) => tracing::warn!(
                    plane = name, kind = now.kind, state = %now.state, reason = now.detail,
                    "plane does not work; serving continues with the last known state, and the connection is retried"
                ),
                None => {}
            }
            if status.changed().await.is_err() {
                return;
            }
        }
    });
}

/// The status of a plane within the process. Its sender is dropped: the status never changes.
pub(crate) fn always_up(kind: &str) -> Status {
    watch::channel(PlaneStatus::in_process(kind)).1
}
