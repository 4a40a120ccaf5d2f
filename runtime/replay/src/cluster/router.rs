//! A router in virtual time: the real one, and what it has received of the other routers.

use std::time::{Duration, Instant};

use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::ReplicaLoad;
use signalbox_router::{NoCandidate, OfflinePlacement, OfflineRequest, OfflineRouter};

use super::record::DecisionRecord;

/// Virtual time as routers count it.
pub(super) fn milliseconds(now: Duration) -> u64 {
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Debug)]
pub(super) struct VirtualRouter {
    pub(super) offline: OfflineRouter,
    /// For each router, what it last reported to have in flight, by slot.
    received: Vec<Vec<ReplicaLoad>>,
}

impl VirtualRouter {
    /// One of `routers` routers.
    pub(super) fn new(offline: OfflineRouter, routers: usize) -> Self {
        Self {
            offline,
            received: vec![Vec::new(); routers],
        }
    }

    /// Decides, and measures the time that the decision takes on this machine.
    pub(super) fn decide(
        &mut self,
        request: OfflineRequest<'_>,
        record: &mut DecisionRecord,
    ) -> Result<OfflinePlacement, NoCandidate> {
        let started = Instant::now();
        let placed = self.offline.decide(request);
        let took: Duration = started.elapsed();
        if let Ok(placement) = &placed {
            record.add(&placement.policy, took);
        }
        placed
    }

    /// What another router has in flight arrives.
    pub(super) fn receive(&mut self, from: usize, loads: &[(WorkerSlot, ReplicaLoad)]) {
        for &(slot, load) in loads {
            let received = &mut self.received[from];
            if received.len() <= slot.0 as usize {
                received.resize(slot.0 as usize + 1, ReplicaLoad::default());
            }
            received[slot.0 as usize] = load;
            let of_slot = |loads: &Vec<ReplicaLoad>| loads.get(slot.0 as usize).copied().unwrap_or_default();
            let all = self.received.iter().map(of_slot);
            let others = all.fold(ReplicaLoad::default(), ReplicaLoad::saturating_add);
            self.offline.set_others(slot, others);
        }
    }

    pub(super) fn forget(&mut self, slot: WorkerSlot) {
        self.offline.forget(slot);
        for received in &mut self.received {
            if let Some(load) = received.get_mut(slot.0 as usize) {
                *load = ReplicaLoad::default();
            }
        }
    }
}
