//! The index itself, and its public interface but for lookups.

use hashbrown::HashSet;
use signalbox_protocol::{CacheTier, KvEvent, SequenceHash};

use crate::{
    WorkerSlot,
    place_map::{Place, PlaceMap},
    strand::Strand,
    strands::Strands,
};

mod accounting;
mod changes;
#[cfg(test)]
mod tests;

/// Number of events whose blocks are prefetched together. At a block or two per event, the processor fetches about this
/// many cache lines at once.
pub(crate) const PREFETCHED_AT_ONCE: usize = 16;

/// The index of which worker holds which blocks on which tier. The [crate] page describes its layout.
#[derive(Debug)]
pub struct KvIndex {
    max_bytes: usize,
    strands: Strands,
    places: PlaceMap,
    /// By slot.
    workers: Vec<Holdings>,
    /// Heap bytes of all strands.
    strand_bytes: usize,
    /// Heap bytes of the sets of strands of all workers.
    worker_bytes: usize,
    /// Blocks with at least one holder.
    blocks: usize,
    /// By [`CacheTier::index`].
    memberships: [usize; 3],
    refused_stores: u64,
}

/// What the index keeps for one worker.
#[derive(Debug, Default)]
struct Holdings {
    /// Exactly the strands with a block that the worker holds, so that the worker is removed without a search.
    strands: HashSet<u32>,
    /// The place of the block that the worker stored last, often the parent of its next event. The block may have moved
    /// since.
    last_stored: Place,
    memberships: usize,
}

/// The size of an index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Workers that hold at least one block.
    pub workers: usize,
    /// (worker, tier, block) triples: a block on two tiers of a worker counts twice.
    pub memberships: usize,
    /// Distinct blocks that at least one worker holds.
    pub blocks: usize,
    /// Memory in bytes, with an estimate of the allocator's overhead.
    pub bytes: usize,
    /// Number of blocks, over all time, that a worker stored and the index did not credit, because of the memory bound or
    /// of a slot at or past [`MAX_WORKER_SLOTS`](crate::MAX_WORKER_SLOTS).
    pub refused_stores: u64,
}

impl KvIndex {
    /// An empty index that takes at most about `max_bytes`. Stores past the bound are refused and counted.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            strands: Strands::default(),
            places: PlaceMap::new(),
            workers: Vec::new(),
            strand_bytes: 0,
            worker_bytes: 0,
            blocks: 0,
            memberships: [0; 3],
            refused_stores: 0,
        }
    }

    /// Applies one event of a worker.
    ///
    /// When a `Stored` chain reaches the memory bound, the rest of the chain is refused. The index then credits the
    /// worker with less than it holds, never with more.
    pub fn apply(&mut self, worker: WorkerSlot, event: &KvEvent) {
        match event {
            KvEvent::Stored { tier, parent, blocks } => self.store(worker, *tier, *parent, blocks),
            KvEvent::Removed { tier, blocks } => self.remove(worker, *tier, blocks),
            KvEvent::Cleared => self.remove_worker(worker),
        }
        self.sweep_all();
        debug_assert_eq!(
            self.workers
                .iter()
                .map(|holdings| holdings.memberships)
                .sum::<usize>(),
            self.memberships.iter().sum::<usize>(),
            "the memberships of the workers add up"
        );
    }

    /// Applies events that arrived together, in order. An engine step mostly produces events of a block or two, for many
    /// sequences. The index fetches their blocks' slots from memory at once, not one after the other.
    pub fn apply_all(&mut self, worker: WorkerSlot, events: &[KvEvent]) {
        for group in events.chunks(PREFETCHED_AT_ONCE) {
            if group.len() > 1 {
                self.prefetch(worker, group);
            }
            for event in group {
                self.apply(worker, event);
            }
        }
    }

    /// Removes every block of `worker`, on all tiers, so that another worker can get the slot.
    ///
    /// Takes time in proportion to the blocks that the worker holds.
    pub fn remove_worker(&mut self, worker: WorkerSlot) {
        self.remove_from(worker, &self.strands_of(worker));
        self.sweep_all();
        debug_assert!(
            self.blocks_of(worker) == 0,
            "K-1: the index holds no block of a removed worker"
        );
        while self.workers.last().is_some_and(|last| last.memberships == 0) {
            self.workers.pop();
        }
    }

    /// The size of the index. Costs one pass over the workers.
    pub fn stats(&self) -> IndexStats {
        IndexStats {
            workers: self
                .workers
                .iter()
                .filter(|holdings| holdings.memberships > 0)
                .count(),
            memberships: self.memberships.iter().sum(),
            blocks: self.blocks,
            bytes: self.bytes(),
            refused_stores: self.refused_stores,
        }
    }

    /// A digest of the blocks a worker holds, to compare two indexes; 0 if the worker holds nothing.
    ///
    /// The digest depends on the (tier, hash) pairs alone, not on their order. Takes time in proportion to the blocks
    /// that the worker holds.
    pub fn digest(&self, worker: WorkerSlot) -> u64 {
        let Some(holdings) = self.workers.get(worker.0 as usize) else {
            return 0;
        };
        let strands = holdings
            .strands
            .iter()
            .map(|&strand| &self.strands[strand as usize]);
        strands
            .flat_map(|strand| CacheTier::ALL.map(|tier| (tier, strand.blocks_of(worker, tier))))
            .flat_map(|(tier, blocks)| blocks.map(move |block| digest_of(tier, block)))
            .fold(0, u64::wrapping_add)
    }

    /// Number of blocks a worker holds. A block on two tiers counts twice.
    pub fn blocks_of(&self, worker: WorkerSlot) -> usize {
        self.workers
            .get(worker.0 as usize)
            .map_or(0, |holdings| holdings.memberships)
    }

    /// A number greater than the slot of every worker that holds a block.
    pub(crate) fn slots(&self) -> usize {
        self.workers.len()
    }

    pub(crate) fn holds_below_device(&self) -> bool {
        self.memberships[1..].iter().any(|&count| count > 0)
    }

    /// The numbers of the strands with a block that `worker` holds.
    pub(crate) fn strands_of(&self, worker: WorkerSlot) -> Vec<u32> {
        let holdings = self.workers.get(worker.0 as usize);
        holdings.map_or_else(Vec::new, |holdings| holdings.strands.iter().copied().collect())
    }

    pub(crate) fn find(&self, block: SequenceHash) -> Option<Place> {
        self.places.find(block, &self.strands)
    }

    pub(crate) fn strand(&self, place: Place) -> &Strand {
        &self.strands[place.strand()]
    }
}

/// Spreads a membership over 64 bits, so that different sets have different sums. The finalizer of SplitMix64 (Steele,
/// Lea and Flood 2014).
fn digest_of(tier: CacheTier, block: SequenceHash) -> u64 {
    let mut mixed = block
        .0
        .wrapping_add((tier.index() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}
