//! The index itself, and its public interface but for lookups.

use hashbrown::HashSet;
use signalbox_protocol::{KvDigest, KvEvent, SequenceHash};

use crate::{
    WorkerSlot,
    place_map::{Place, PlaceMap},
    strand::Strand,
    strands::Strands,
};

mod accounting;
mod changes;
mod eviction;
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
    /// By `CacheTier::index`.
    memberships: [usize; 3],
    /// Workers that hold a block.
    holding: usize,
    refused_stores: u64,
    evicted: u64,
    /// Number of stores so far, the time of the strands' last uses. After four billion stores it begins again, and old
    /// strands then seem new once.
    clock: u32,
    /// State of the generator that chooses which strands are compared for eviction.
    random: u64,
}

/// What the index keeps for one worker.
#[derive(Debug, Default)]
struct Holdings {
    /// Exactly the strands with a block that the worker holds, so that the worker is removed without a search.
    strands: HashSet<u32>,
    /// The place of the block that the worker stored last, often the parent of its next event. The block may have moved
    /// since.
    last_stored: Place,
    /// The worker's memberships.
    held: KvDigest,
    /// Whether the index lacks blocks that events stored for the worker, because they were refused or evicted.
    is_partial: bool,
}

impl Holdings {
    fn memberships(&self) -> usize {
        self.held.blocks as usize
    }
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
    /// Number of memberships, over all time, that were evicted to make room for newer ones.
    pub evicted: u64,
}

impl KvIndex {
    /// An empty index that takes at most about `max_bytes`. Near the bound it evicts and counts the blocks that were not
    /// used for longest.
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
            holding: 0,
            refused_stores: 0,
            evicted: 0,
            clock: 0,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// Applies one event of a worker.
    ///
    /// Near the memory bound, blocks of a `Stored` chain displace others, or are refused if there are none to displace.
    /// The index then credits the workers with less than they hold, never with more.
    pub fn apply(&mut self, worker: WorkerSlot, event: &KvEvent) {
        match event {
            KvEvent::Stored { tier, parent, blocks } => self.store(worker, *tier, *parent, blocks),
            KvEvent::Removed { tier, blocks } => self.remove(worker, *tier, blocks),
            KvEvent::Cleared => self.remove_worker(worker),
        }
        self.sweep_all();
        debug_assert_eq!(
            self.workers.iter().map(Holdings::memberships).sum::<usize>(),
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
        if let Some(holdings) = self.workers.get_mut(worker.0 as usize) {
            holdings.is_partial = false;
        }
        while self
            .workers
            .last()
            .is_some_and(|last| last.memberships() == 0 && !last.is_partial)
        {
            self.workers.pop();
        }
    }

    /// The size of the index. Costs one pass over the workers.
    pub fn stats(&self) -> IndexStats {
        IndexStats {
            workers: self
                .workers
                .iter()
                .filter(|holdings| holdings.memberships() > 0)
                .count(),
            memberships: self.memberships.iter().sum(),
            blocks: self.blocks,
            bytes: self.bytes(),
            refused_stores: self.refused_stores,
            evicted: self.evicted,
        }
    }

    /// The digest of the (tier, hash) pairs that a worker holds, to compare with another index or with the worker. It is
    /// kept up to date by each change, and so costs nothing here.
    pub fn digest(&self, worker: WorkerSlot) -> KvDigest {
        self.workers
            .get(worker.0 as usize)
            .map_or_else(KvDigest::default, |holdings| holdings.held)
    }

    /// Number of blocks a worker holds. A block on two tiers counts twice.
    pub fn blocks_of(&self, worker: WorkerSlot) -> usize {
        self.workers
            .get(worker.0 as usize)
            .map_or(0, Holdings::memberships)
    }

    /// Whether the index lacks blocks that events stored for the worker since it was last removed or cleared: they were
    /// refused, or evicted.
    pub fn is_partial(&self, worker: WorkerSlot) -> bool {
        self.workers
            .get(worker.0 as usize)
            // Without room for its holdings, the index holds nothing of the worker.
            .map_or(self.refused_stores > 0, |holdings| holdings.is_partial)
    }

    /// The time of the strands' last uses.
    pub(crate) fn clock(&self) -> u32 {
        self.clock
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
