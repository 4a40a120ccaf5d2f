//! The KV blocks a worker holds: changes, and snapshots.

use serde::{Deserialize, Serialize};

use crate::{SequenceHash, WorkerEpoch};

/// The memory that a KV block is stored in. Nearer tiers are cheaper to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheTier {
    /// The accelerator's memory.
    Device,
    /// The host's memory.
    Host,
    /// A disk of the host.
    Disk,
}

impl CacheTier {
    /// All tiers, nearest first.
    pub const ALL: [Self; 3] = [Self::Device, Self::Host, Self::Disk];

    /// The tier's index in [`Self::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// One change of a worker's KV cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvEvent {
    /// The worker holds `blocks` from now on. They are a chain: each block follows the one before it.
    Stored {
        /// The tier that holds the blocks.
        tier: CacheTier,
        /// The block before the first of `blocks`; `None` if that begins a sequence.
        parent: Option<SequenceHash>,
        /// The chain, first block first.
        blocks: Vec<SequenceHash>,
    },
    /// The worker no longer holds `blocks`, which are in any order.
    Removed {
        /// The tier that held the blocks.
        tier: CacheTier,
        /// The blocks removed.
        blocks: Vec<SequenceHash>,
    },
    /// The worker no longer holds any block, on any tier.
    Cleared,
}

/// Changes published together. The batches of an incarnation are numbered from 0 without holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvEventBatch {
    /// The epoch of the worker that publishes it.
    pub epoch: WorkerEpoch,
    /// Number of the batch within the epoch.
    pub sequence: u64,
    /// The changes, in the order they happened.
    pub events: Vec<KvEvent>,
}

/// All blocks that a worker holds at one moment. A router that misses batches starts again from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvSnapshot {
    /// The epoch of the worker that took it.
    pub epoch: WorkerEpoch,
    /// Number of the first batch that the snapshot does not contain.
    pub next_sequence: u64,
    /// The blocks, as `Stored` chains, with parents before children.
    pub stored: Vec<KvEvent>,
}
