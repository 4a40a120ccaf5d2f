//! Accounting: memberships, the strands of each worker, and memory against its bound.

use hashbrown::HashSet;
use signalbox_protocol::{CacheTier, SequenceHash};

use super::{Holdings, KvIndex};
use crate::{
    ALLOCATION_OVERHEAD, WorkerSlot,
    strand::{Change, Strand, sum_of},
};

/// A worker's set of strands shrinks if less than one part in this many is used.
const SPARSE: usize = 8;
/// An upper bound of the smallest set that hashbrown allocates, in bytes.
const SMALLEST_SET: usize = 64;

impl KvIndex {
    /// Changes a strand, and counts the change of its memory.
    pub(super) fn change_strand(&mut self, id: usize, change: impl FnOnce(&mut Strand) -> Change) -> Change {
        let strand = self.strands.get_mut(id);
        let before = strand.heap_bytes();
        let change = change(strand);
        self.strand_bytes = self.strand_bytes + strand.heap_bytes() - before;
        change
    }

    pub(super) fn count_added(&mut self, worker: WorkerSlot, change: Change) {
        self.blocks += change.blocks;
        let held = &mut self.workers[worker.0 as usize].held;
        for tier in CacheTier::ALL {
            let (added, sum) = (change.memberships[tier.index()], change.sums[tier.index()]);
            self.memberships[tier.index()] += added;
            held.add_sum(tier, added as u64, sum);
        }
    }

    /// Counts new blocks, of which `worker` is the first holder.
    pub(super) fn count_appended(&mut self, worker: WorkerSlot, tier: CacheTier, blocks: &[SequenceHash]) {
        self.blocks += blocks.len();
        self.memberships[tier.index()] += blocks.len();
        let held = &mut self.workers[worker.0 as usize].held;
        held.add_sum(tier, blocks.len() as u64, sum_of(blocks));
    }

    pub(super) fn count_removed(&mut self, worker: WorkerSlot, change: Change) {
        self.blocks -= change.blocks;
        let held = &mut self.workers[worker.0 as usize].held;
        for tier in CacheTier::ALL {
            let (removed, sum) = (change.memberships[tier.index()], change.sums[tier.index()]);
            self.memberships[tier.index()] -= removed;
            held.subtract_sum(tier, removed as u64, sum);
        }
    }

    /// Adds the strand to the strands of `worker`, which holds a block of it.
    pub(super) fn list_strand(&mut self, worker: WorkerSlot, id: usize) {
        let listed = &mut self.workers[worker.0 as usize].strands;
        let before = set_bytes(listed);
        self.holding += usize::from(listed.is_empty());
        listed.insert(id as u32);
        self.worker_bytes = self.worker_bytes + set_bytes(listed) - before;
    }

    pub(super) fn unlist_strand(&mut self, worker: WorkerSlot, id: usize) {
        let listed = &mut self.workers[worker.0 as usize].strands;
        let before = set_bytes(listed);
        let was_listed = listed.remove(&(id as u32));
        self.holding -= usize::from(was_listed && listed.is_empty());
        if listed.len() * SPARSE < listed.capacity() {
            listed.shrink_to(listed.len() * 2);
        }
        self.worker_bytes = self.worker_bytes + set_bytes(listed) - before;
    }

    pub(super) fn has_room(&self, growth: usize) -> bool {
        self.bytes() + growth <= self.max_bytes
    }

    /// The memory that is left below the bound.
    pub(super) fn room(&self) -> usize {
        self.max_bytes.saturating_sub(self.bytes())
    }

    pub(super) fn bytes(&self) -> usize {
        let own = size_of::<Self>() + self.strands.bytes() + self.workers.capacity() * size_of::<Holdings>();
        own + self.places.bytes() + self.strand_bytes + self.worker_bytes
    }

    /// The most memory that [`list_strand`](Self::list_strand) can take.
    pub(super) fn listing_bytes(&self, worker: WorkerSlot) -> usize {
        let listed = &self.workers[worker.0 as usize].strands;
        if listed.len() < listed.capacity() {
            0
        } else {
            2 * listed.allocation_size() + SMALLEST_SET
        }
    }
}

/// Heap bytes, the allocator's share included.
pub(super) fn set_bytes(set: &HashSet<u32>) -> usize {
    match set.allocation_size() {
        0 => 0,
        bytes => bytes + ALLOCATION_OVERHEAD,
    }
}
