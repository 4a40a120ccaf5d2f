//! Membership on etcd: keys under leases, and a watch.
//!
//! This process keeps its registrations and the present workers and routers in memory. While etcd is away they do not
//! change; when it is back, etcd is brought up to date. A process that cannot reach etcd stays present until its lease
//! expires.
//!
//! | | |
//! |---|---|
//! | `config` | checks the settings |
//! | `keyspace` | the key of each card |
//! | `session` | connects, again after each failure, and reports the state |
//! | `registrations`, `registrar` | what this process wants in etcd, and the writer |
//! | `own_keys` | the watch of the keys that this process writes |
//! | `observed`, `watcher` | what was read from etcd, and the reader |
//! | `outage` | why etcd cannot be used |

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use signalbox_protocol::{PlaneStatus, RouterCard, RouterId, WorkerCard, WorkerEpoch, WorkerId};
use tokio::{sync::watch, task::AbortHandle};

use self::{
    config::{Endpoint, Settings},
    keyspace::Keyspace,
    outage::{Outage, bounded},
    registrar::Registrar,
    registrations::{Registrations, Wanted},
    session::StatusSender,
    watcher::Watcher,
};
use crate::{
    change::Departure,
    discovery::Discovery,
    error::{DiscoveryError, StaleEpoch},
    membership::{Membership, Registration, Watch},
    routers::Routers,
};

mod config;
mod keyspace;
mod observed;
mod outage;
mod own_keys;
mod registrar;
mod registrations;
mod session;
#[cfg(test)]
mod tests;
mod watcher;

pub use config::{EtcdConfig, EtcdTls};
pub use keyspace::MAX_CARD_BYTES;

/// Longest wait for the last epochs of the workers of a process that starts. They also start without etcd.
const KNOWN_EPOCHS_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest wait for etcd to confirm a withdrawal, when a process exits.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(2);

/// Membership across machines. A process has one, with one connection and one lease.
///
/// Dropping it closes the connection. Registrations stay in etcd until the lease expires, unless they were
/// [withdrawn](Self::withdraw).
#[derive(Debug)]
pub struct EtcdDiscovery {
    keys: Keyspace,
    endpoints: Vec<Endpoint>,
    registrations: Arc<Registrations>,
    membership: Arc<Membership>,
    routers: Arc<Routers>,
    /// Set by the first request for workers or routers. A worker process makes none.
    watching: watch::Sender<bool>,
    status: watch::Receiver<PlaneStatus>,
    sessions: AbortHandle,
}

impl EtcdDiscovery {
    /// Starts to connect, and reconnects for ever. Does not wait for a server. Call it inside a tokio runtime, on which
    /// its task runs; one thread is enough.
    ///
    /// # Errors
    /// See [`DiscoveryError`]. A server that cannot be reached or refuses the user is not an error.
    pub async fn start(config: EtcdConfig) -> Result<Arc<Self>, DiscoveryError> {
        let Settings {
            keys,
            endpoints,
            lease_ttl,
        } = Settings::new(config).await?;
        let registrations = Arc::new(Registrations::default());
        let membership = Arc::new(Membership::new(Departure::LeaseEnded));
        let routers = Arc::new(Routers::default());
        let (watching, needed) = watch::channel(false);
        let (status_sender, status) = StatusSender::new();
        let registrar = Registrar::new(keys.clone(), registrations.clone(), lease_ttl);
        let watcher = Watcher::new(keys.clone(), membership.clone(), routers.clone(), needed);
        let sessions = session::keep_up(keys.clone(), endpoints.clone(), registrar, watcher, status_sender);
        Ok(Arc::new(Self {
            keys,
            endpoints,
            registrations,
            membership,
            routers,
            watching,
            status,
            sessions: tokio::spawn(sessions).abort_handle(),
        }))
    }

    /// Ends all registrations and the lease, and waits at most two seconds for etcd to confirm it. Returns whether it
    /// did. Called before a process exits, so that others receive the change at once.
    pub async fn withdraw(&self) -> bool {
        let withdrawn = tokio::time::timeout(WITHDRAW_TIMEOUT, self.registrations.withdraw_all()).await;
        if withdrawn.is_err() {
            tracing::warn!(
                "etcd did not confirm the withdrawal in time; the registrations end with their lease"
            );
        }
        withdrawn.is_ok()
    }

    /// The epochs of the incarnations of these workers that etcd still lists. Empty if it does not answer within some
    /// seconds.
    ///
    /// A worker whose clock went backwards over a restart starts with a greater epoch by it. With a smaller one it would be
    /// refused, and its KV events ignored, until the lease of the earlier incarnation ends.
    pub async fn known_epochs(&self, model: &str, workers: &[WorkerId]) -> BTreeMap<WorkerId, WorkerEpoch> {
        // Boxed because of the client, which has some 15 KB.
        let read = Box::pin(async {
            for endpoint in &self.endpoints {
                match self.epochs_at(endpoint, model, workers).await {
                    Ok(epochs) => return epochs,
                    Err(outage) => {
                        tracing::debug!(%endpoint, reason = %outage, "the workers' epochs cannot be read");
                    }
                }
            }
            BTreeMap::new()
        });
        let known = tokio::time::timeout(KNOWN_EPOCHS_TIMEOUT, read).await;
        known.unwrap_or_else(|_| {
            tracing::info!(
                "etcd did not answer with the last epochs of the workers; the clock gives the next ones"
            );
            BTreeMap::new()
        })
    }

    /// Asks one server, by a client of its own: a worker asks before it registers.
    async fn epochs_at(
        &self,
        endpoint: &Endpoint,
        model: &str,
        workers: &[WorkerId],
    ) -> Result<BTreeMap<WorkerId, WorkerEpoch>, Outage> {
        let mut client = bounded("connecting", endpoint.connect()).await?;
        let mut epochs = BTreeMap::new();
        for worker in workers {
            let found = bounded("reading", client.get(self.keys.worker_key(model, worker), None)).await?;
            let card = found
                .kvs()
                .first()
                .and_then(|found| serde_json::from_slice::<WorkerCard>(found.value()).ok());
            epochs.extend(card.map(|card| (worker.clone(), card.epoch)));
        }
        Ok(epochs)
    }

    fn register_key(&self, key: String, wanted: Wanted) -> Registration {
        let registrations = self.registrations.clone();
        let number = registrations.begin(key.clone(), wanted);
        Registration::new(move || registrations.end(&key, number))
    }
}

impl Discovery for EtcdDiscovery {
    fn register(&self, card: Arc<WorkerCard>) -> Result<Registration, StaleEpoch> {
        self.membership.check(&card)?;
        self.registrations.check(&card)?;
        let wanted = Wanted {
            incarnation: Some((card.id.clone(), card.epoch)),
            value: json(&*card),
        };
        Ok(self.register_key(self.keys.worker(&card), wanted))
    }

    fn watch(&self) -> Watch {
        self.watching.send_replace(true);
        self.membership.watch()
    }

    fn register_router(&self, card: RouterCard) -> Registration {
        let wanted = Wanted {
            incarnation: None,
            value: json(&card),
        };
        self.register_key(self.keys.router(&card.id), wanted)
    }

    fn routers(&self) -> watch::Receiver<Arc<BTreeMap<RouterId, RouterCard>>> {
        self.watching.send_replace(true);
        self.routers.subscribe()
    }

    fn status(&self) -> watch::Receiver<PlaneStatus> {
        self.status.clone()
    }
}

impl Drop for EtcdDiscovery {
    fn drop(&mut self) {
        self.sessions.abort();
    }
}

/// A card as JSON. Cards consist of text, numbers and maps with text keys, so that this cannot fail.
fn json(card: &impl serde::Serialize) -> Arc<[u8]> {
    serde_json::to_vec(card).unwrap_or_default().into()
}
