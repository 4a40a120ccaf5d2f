//! Who is there: workers announce themselves, and whoever watches learns of them.
//!
//! - A worker [registers](Discovery::register) its card and is present until the [`Registration`] is dropped.
//! - A [`Watch`] first tells everybody present, then every change. Its changes make sense by themselves: an id is
//!   told as joined at most once before it is told as left, and a restarted worker has left before it joins again.
//! - A watcher that is slow is not owed every step: it sees where things stand when it looks. So nothing queues up
//!   for it, and it never ends up with a wrong picture.
//!
//! [`MemoryDiscovery`] is membership within a process. It knows nothing of health: a worker that is registered may
//! still not answer.

use std::{fmt::Debug, sync::Arc};

use signalbox_protocol::{WorkerCard, WorkerEpoch, WorkerId};

mod membership;
mod memory;

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
    },
}

/// Membership: who is present.
pub trait Discovery: Send + Sync + Debug + 'static {
    /// Present until the registration is dropped. A later epoch replaces an earlier one; an earlier one is refused.
    ///
    /// The same epoch may register again, with another card: watchers see it leave and join. The registration
    /// before it then no longer counts, and dropping it changes nothing.
    fn register(&self, card: Arc<WorkerCard>) -> Result<Registration, StaleEpoch>;

    /// Everybody present now, as `Joined`, then every change, in order, none lost.
    fn watch(&self) -> Watch;
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
