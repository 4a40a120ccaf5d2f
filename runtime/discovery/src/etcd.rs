//! Membership on etcd: keys under leases, and a watch.
//!
//! What is registered and who is present are kept here, in memory, and outlive any server: an etcd that is away
//! changes nothing, and one that is back is brought up to date. A process that cannot reach etcd counts as present
//! for the rest of its lease.
//!
//! | | |
//! |---|---|
//! | `config` | settings, checked |
//! | `keyspace` | which card is under which key |
//! | `session` | connects, again and again, and says how that goes |
//! | `registrations`, `registrar` | what should be in etcd, and putting it there |
//! | `picture`, `watcher` | what is in etcd, and reading it |
//! | `outage` | what can go wrong |

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use signalbox_protocol::{PlaneStatus, RouterCard, RouterId, WorkerCard};
use tokio::{sync::watch, task::AbortHandle};

use self::{
    config::Settings,
    keyspace::Keyspace,
    registrar::Registrar,
    registrations::{Registrations, Wanted},
    session::Status,
    watcher::Watcher,
};
use crate::{
    Departure, Discovery, DiscoveryError, Registration, StaleEpoch, Watch, membership::Membership,
    routers::Routers,
};

mod config;
mod keyspace;
mod outage;
mod picture;
mod registrar;
mod registrations;
mod session;
#[cfg(test)]
mod tests;
mod watcher;

pub use config::{EtcdConfig, EtcdTls};

/// Longest wait for etcd to confirm a withdrawal, when a process wants to end.
const WITHDRAW_TIMEOUT: Duration = Duration::from_secs(2);

/// Membership across machines. One a process: it has one connection and one lease.
///
/// Dropping it ends all that: what is registered stays in etcd until the lease runs out, unless it was
/// [withdrawn](Self::withdraw).
#[derive(Debug)]
pub struct EtcdDiscovery {
    keys: Keyspace,
    registrations: Arc<Registrations>,
    membership: Arc<Membership>,
    routers: Arc<Routers>,
    /// Set once somebody wants to know who is present.
    watching: watch::Sender<bool>,
    status: watch::Receiver<PlaneStatus>,
    sessions: AbortHandle,
}

impl EtcdDiscovery {
    /// Starts to connect, and keeps at it. Waits for no server. Call it inside a tokio runtime, which then does the
    /// work; a single thread is enough.
    ///
    /// # Errors
    /// See [`DiscoveryError`]; a server that cannot be reached, or does not let us in, is none.
    pub async fn start(config: EtcdConfig) -> Result<Arc<Self>, DiscoveryError> {
        let Settings {
            keys,
            endpoints,
            lease_ttl,
        } = Settings::new(config).await?;
        let registrations = Arc::new(Registrations::default());
        let membership = Arc::new(Membership::new(Departure::LeaseEnded));
        let routers = Arc::new(Routers::default());
        let (watching, wanted) = watch::channel(false);
        let (status_sender, status) = Status::new();
        let registrar = Registrar::new(keys.clone(), registrations.clone(), lease_ttl);
        let watcher = Watcher::new(keys.clone(), membership.clone(), routers.clone(), wanted);
        let sessions = session::keep_up(keys.clone(), endpoints, registrar, watcher, status_sender);
        Ok(Arc::new(Self {
            keys,
            registrations,
            membership,
            routers,
            watching,
            status,
            sessions: tokio::spawn(sessions).abort_handle(),
        }))
    }

    /// Ends every registration made so far and the lease, and waits until etcd has confirmed it; two seconds at
    /// most. For the end of a process: others then learn of it at once, and for certain. Whether etcd confirmed.
    pub async fn withdraw(&self) -> bool {
        let withdrawn = tokio::time::timeout(WITHDRAW_TIMEOUT, self.registrations.withdraw_all()).await;
        if withdrawn.is_err() {
            tracing::warn!("etcd did not confirm the withdrawal in time; the lease will end it");
        }
        withdrawn.is_ok()
    }

    fn want(&self, key: String, wanted: Wanted) -> Registration {
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
        Ok(self.want(self.keys.worker(&card), wanted))
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
        self.want(self.keys.router(&card.id), wanted)
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

/// Cards are text, numbers and maps with text for keys, which JSON can always tell.
fn json(card: &impl serde::Serialize) -> Arc<[u8]> {
    serde_json::to_vec(card).unwrap_or_default().into()
}
