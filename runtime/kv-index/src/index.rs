//! The index itself: what events do to it.

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

/// Events whose blocks are fetched together: of a block or two each, about what the processor fetches at once.
pub(crate) const FETCHED_AT_ONCE: usize = 16;

/// Which worker holds which blocks on which tier. See the [crate] page for the layout.
#[derive(Debug)]
pub struct KvIndex {
    max_bytes: usize,
    strands: Strands,
    places: PlaceMap,
    /// By slot.
    workers: Vec<Holdings>,
    /// Heap bytes of all strands, and of all workers' sets.
    strand_bytes: usize,
    worker_bytes: usize,
    blocks: usize,
    memberships: [usize; 3],
    refused_stores: u64,
}

/// What there is to know of one worker.
#[derive(Debug, Default)]
struct Holdings {
    /// Exactly the strands with a block it holds, so that it is removed without a search.
    strands: HashSet<u32>,
    /// Where the chain it stored last ended, or once did: often the parent of the next.
    last_stored: Place,
    memberships: usize,
}

/// How much an index holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Workers that hold at least one block.
    pub workers: usize,
    /// (worker, tier, block) triples: a block on two tiers of a worker counts twice.
    pub memberships: usize,
    /// Different blocks held by anyone.
    pub blocks: usize,
    /// Memory, in bytes, an estimate of the allocator's own share included.
    pub bytes: usize,
    /// Blocks not credited though they were stored: for the memory bound, or for a slot past [`MAX_WORKER_SLOTS`](crate::MAX_WORKER_SLOTS).
    pub refused_stores: u64,
}

impl KvIndex {
    /// Holds at most about `max_bytes`; past it, stores are refused and counted, never wrong.
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

    /// Takes over one change of a worker's KV cache.
    ///
    /// A `Stored` chain that meets the memory bound is taken up to there and the rest refused: a worker is then
    /// credited with less than it holds, never with more.
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

    /// Takes over changes that came together, as those of an engine's step do: mostly a block or two for each of many
    /// sequences. What they are about is fetched from memory for all of them at once, not for one after the other.
    pub fn apply_all(&mut self, worker: WorkerSlot, events: &[KvEvent]) {
        for some in events.chunks(FETCHED_AT_ONCE) {
            if some.len() > 1 {
                self.fetch(worker, some);
            }
            for event in some {
                self.apply(worker, event);
            }
        }
    }

    /// Forgets every block of `worker`, on all tiers, so that its slot can be given to another.
    ///
    /// Takes time in proportion to what the worker holds.
    pub fn remove_worker(&mut self, worker: WorkerSlot) {
        self.remove_from(worker, &self.strands_of(worker));
        self.sweep_all();
        debug_assert!(
            self.blocks_of(worker) == 0,
            "K-1: nothing of a removed worker is left"
        );
        while self.workers.last().is_some_and(|last| last.memberships == 0) {
            self.workers.pop();
        }
    }

    /// How much the index holds. Cheap but for a pass over the workers.
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

    /// Order-independent digest of what a worker is said to hold, to compare two indexes; 0 for nothing.
    ///
    /// Depends on the (tier, hash) pairs alone. Takes time in proportion to what the worker holds.
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

    /// Blocks a worker is said to hold; one on two tiers counts twice.
    pub fn blocks_of(&self, worker: WorkerSlot) -> usize {
        self.workers
            .get(worker.0 as usize)
            .map_or(0, |holdings| holdings.memberships)
    }

    /// Greater than any slot that holds something.
    pub(crate) fn slots(&self) -> usize {
        self.workers.len()
    }

    pub(crate) fn holds_below_device(&self) -> bool {
        self.memberships[1..].iter().any(|&count| count > 0)
    }

    /// The strands with a block that `worker` holds.
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

/// Spreads a membership over 64 bits, so that the sum of many tells sets apart. The finalizer of SplitMix64
/// (Steele, Lea and Flood 2014).
fn digest_of(tier: CacheTier, block: SequenceHash) -> u64 {
    let mut mixed = block
        .0
        .wrapping_add((tier.index() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}
