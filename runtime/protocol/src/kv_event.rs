//! What a worker's KV cache holds now, told as changes.

use serde::{Deserialize, Serialize};

use crate::{SequenceHash, WorkerEpoch};

/// Where a KV block lies. Nearer tiers are cheaper to read.
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

    /// Its place in [`Self::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// One change of a worker's KV cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvEvent {
    /// `blocks`, a chain in order, are there now; the first follows `parent`, or begins a sequence.
    Stored {
        /// Where they lie.
        tier: CacheTier,
        /// The block the first one follows.
        parent: Option<SequenceHash>,
        /// The chain, first block first.
        blocks: Vec<SequenceHash>,
    },
    /// `blocks`, in any order, are there no more.
    Removed {
        /// Where they lay.
        tier: CacheTier,
        /// Which ones.
        blocks: Vec<SequenceHash>,
    },
    /// Nothing is there any more, on any tier.
    Cleared,
}

/// Changes published together. Batches of one worker life are numbered from 0 without holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvEventBatch {
    /// The worker life that speaks.
    pub epoch: WorkerEpoch,
    /// Number of the batch within the epoch.
    pub sequence: u64,
    /// The changes, in the order they happened.
    pub events: Vec<KvEvent>,
}

/// All that a worker's KV cache holds at one moment: the starting point when batches are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvSnapshot {
    /// The worker life that speaks.
    pub epoch: WorkerEpoch,
    /// The first batch that is not contained.
    pub next_sequence: u64,
    /// The content, as `Stored` chains with parents before children.
    pub stored: Vec<KvEvent>,
}
