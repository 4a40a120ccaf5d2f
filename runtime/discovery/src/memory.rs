//! Membership within a process.

use std::sync::Arc;

use signalbox_protocol::{PlaneStatus, RouterCard, WorkerCard};
use tokio::sync::watch;

use crate::{
    change::Departure,
    discovery::Discovery,
    error::StaleEpoch,
    membership::{Membership, Registration, Watch},
    routers::{RouterCards, Routers},
};

#[cfg(test)]
mod tests;

/// The workers and routers of one process, without a server. As [`EtcdDiscovery`](crate::EtcdDiscovery), except that a
/// worker that leaves always counts as withdrawn. A clone is another handle.
#[derive(Debug, Clone)]
pub struct MemoryDiscovery {
    membership: Arc<Membership>,
    routers: Arc<Routers>,
    /// Never changes. Kept so that a receiver that waits for a change waits for ever.
    status: Arc<watch::Sender<PlaneStatus>>,
}

impl Default for MemoryDiscovery {
    fn default() -> Self {
        Self {
            membership: Arc::new(Membership::new(Departure::Withdrawn)),
            routers: Arc::default(),
            status: Arc::new(watch::Sender::new(PlaneStatus::in_process("memory"))),
        }
    }
}

impl Discovery for MemoryDiscovery {
    fn register(&self, card: Arc<WorkerCard>) -> Result<Registration, StaleEpoch> {
        let (membership, id) = (self.membership.clone(), card.id.clone());
        let number = membership.insert(card)?;
        Ok(Registration::new(move || membership.remove(&id, number)))
    }

    fn watch(&self) -> Watch {
        self.membership.watch()
    }

    fn register_router(&self, card: RouterCard) -> Registration {
        let (routers, id) = (self.routers.clone(), card.id.clone());
        let number = routers.insert(card);
        Registration::new(move || routers.remove(&id, number))
    }

    fn routers(&self) -> watch::Receiver<RouterCards> {
        self.routers.subscribe()
    }

    fn status(&self) -> watch::Receiver<PlaneStatus> {
        self.status.subscribe()
    }
}
