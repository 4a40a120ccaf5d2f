//! What a watch of the workers delivers.

use std::sync::Arc;

use signalbox_protocol::{WorkerCard, WorkerEpoch, WorkerId};

/// A worker joined or left.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkerChange {
    /// The worker is present now.
    Joined(Arc<WorkerCard>),
    /// This incarnation of the worker is no longer present.
    Left {
        /// The worker.
        id: WorkerId,
        /// Its incarnation.
        epoch: WorkerEpoch,
        /// How certain it is that the worker is gone.
        departure: Departure,
    },
}

/// How certain it is that a worker that left is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// Certain: its registration was dropped, or another incarnation replaced it. Always so in
    /// [`MemoryDiscovery`](crate::MemoryDiscovery).
    Withdrawn,
    /// Uncertain: its key vanished from etcd. The worker withdrew it, its lease expired, or etcd lost its data. A
    /// router may keep the worker while its connection answers. Always so in [`EtcdDiscovery`](crate::EtcdDiscovery).
    LeaseEnded,
}
