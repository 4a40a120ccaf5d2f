//! Who is there: workers and routers announce themselves, and whoever watches learns of them.
//!
//! - A worker [registers](Discovery::register) its card and is present until the [`Registration`] is dropped; a
//!   router likewise, with [`register_router`](Discovery::register_router).
//! - A [`Watch`] first tells every worker present, then every change. Its changes make sense by themselves: an id is
//!   told as joined at most once before it is told as left, and a restarted worker has left before it joins again.
//! - A watcher that is slow is not owed every step: it sees where things stand when it looks. So nothing queues up
//!   for it, and it never ends up with a wrong picture.
//! - [`routers`](Discovery::routers) is all routers present, as one value that changes.
//!
//! [`MemoryDiscovery`] is membership within a process, [`EtcdDiscovery`] across machines; the same tests run against
//! both. Neither knows of health: a worker that is registered may still not answer, and one whose key vanished from
//! etcd may still do ([`Departure`]). `README.md` beside this crate documents what is in etcd, for other programs.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use signalbox_protocol::{PlaneStatus, RouterCard, RouterId, WorkerCard, WorkerEpoch, WorkerId};
use tokio::sync::watch;

mod etcd;
mod membership;
mod memory;
mod routers;
#[cfg(test)]
mod tests;

pub use etcd::{EtcdConfig, EtcdDiscovery, EtcdTls};
pub use membership::{Registration, Watch};
pub use memory::MemoryDiscovery;

/// A worker came or went.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerChange {
    /// It is present now.
    Joined(Arc<WorkerCard>),
    /// This life of it is present no more.
    Left {
        /// Which worker.
        id: WorkerId,
        /// Which life of it.
        epoch: WorkerEpoch,
        /// How sure that is.
        departure: Departure,
    },
}

/// How sure it is that a worker that left is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// Its registration was dropped, or another life replaced it: certain. What [`MemoryDiscovery`] always says.
    Withdrawn,
    /// Its key vanished from etcd, which does not tell why: it was withdrawn, its lease ran out, or etcd lost its
    /// data. Whoever sees the worker may doubt it, and keep it while its connection answers. What
    /// [`EtcdDiscovery`] always says.
    LeaseEnded,
}

/// Membership: who is present.
pub trait Discovery: Send + Sync + Debug + 'static {
    /// Present until the registration is dropped. A later epoch replaces an earlier one; an earlier one is refused.
    ///
    /// The same epoch may register again, with another card: watchers see it leave and join. The registration
    /// before it then no longer counts, and dropping it changes nothing.
    ///
    /// # Errors
    /// [`StaleEpoch`] when a later epoch is known already. On etcd that is what this process registered or watches;
    /// what it learns of afterwards is logged, and registered as soon as the later epoch is gone.
    fn register(&self, card: Arc<WorkerCard>) -> Result<Registration, StaleEpoch>;

    /// Every worker present now, as `Joined`, then every change, in order, none lost.
    fn watch(&self) -> Watch;

    /// Present until the registration is dropped. The same id again replaces the card, as with workers.
    fn register_router(&self, card: RouterCard) -> Registration;

    /// All routers present now, those registered here included.
    fn routers(&self) -> watch::Receiver<Arc<BTreeMap<RouterId, RouterCard>>>;

    /// How what carries the membership is doing, and every change of that.
    fn status(&self) -> watch::Receiver<PlaneStatus>;
}

/// A former life of a worker tried to register beside the present one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("worker {id} registered epoch {known} already; epoch {refused} is older")]
pub struct StaleEpoch {
    /// Which worker.
    pub id: WorkerId,
    /// The life that is present.
    pub known: WorkerEpoch,
    /// The life that was refused.
    pub refused: WorkerEpoch,
}

/// Settings that cannot be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// Nowhere to go.
    #[error("no etcd endpoint is given; give at least one host:port")]
    NoEndpoint,
    /// An address means nothing.
    #[error(
        "{endpoint:?} is no etcd endpoint: {reason}; give host:port, http://host:port or https://host:port"
    )]
    Endpoint {
        /// As given, without a password.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It has to fit into etcd keys and NATS subjects.
    #[error("namespace {0:?} is not 1 to 64 letters, digits, '-' or '_'")]
    Namespace(String),
    /// Too short to keep alive, or so long that the dead stay for hours.
    #[error("a lease of {0:?} is not between 1 s and 1 h")]
    LeaseTtl(std::time::Duration),
    /// A certificate or key that is missing or no PEM, or that TLS cannot use.
    #[error("etcd cannot be used with these TLS settings: {0}")]
    Tls(String),
}
