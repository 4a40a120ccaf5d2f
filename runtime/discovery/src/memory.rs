//! Membership within a process.

use std::sync::Arc;

use signalbox_protocol::WorkerCard;

use crate::{Discovery, Registration, StaleEpoch, Watch, membership::Membership};

#[cfg(test)]
mod tests;

/// The in-process twin of etcd. Cloning makes another handle to the same membership.
#[derive(Debug, Default, Clone)]
pub struct MemoryDiscovery {
    membership: Arc<Membership>,
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
}
