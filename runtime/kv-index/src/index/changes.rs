//! How stores and removals change the strands.

use std::ops::Range;

use signalbox_protocol::{CacheTier, KvEvent, SequenceHash};

use super::{Holdings, KvIndex};
use crate::{
    MAX_WORKER_SLOTS, WorkerSlot,
    place_map::Place,
    strand::{Change, MAX_STRAND_BLOCKS},
    strands::Strands,
};

/// New blocks of an event that are prefetched and appended together: a few more than the processor fetches at once, and
/// few enough to stay in its nearest cache.
const APPENDED_AT_ONCE: usize = 32;

/// How often a store evicts once more after a step that found no room. The room that is kept free mostly suffices; a shard
/// of the place map that doubles takes a hundredth of the index.
const MAX_RETRIES: usize = 16;

impl KvIndex {
    pub(super) fn store(
        &mut self,
        worker: WorkerSlot,
        tier: CacheTier,
        parent: Option<SequenceHash>,
        blocks: &[SequenceHash],
    ) {
        self.clock = self.clock.wrapping_add(1);
        let mut previous = parent.and_then(|parent| self.find_parent(worker, parent));
        if let Some(parent) = previous {
            self.strand(parent).touch(self.clock);
        }
        let mut rest = blocks;
        let mut retries = 0;
        while !rest.is_empty() {
            self.evict_if_nearly_full();
            let stored = if !self.admits(worker) {
                None
            } else if let Some(place) = self.find_after(previous, rest) {
                self.join_holders(worker, tier, place, rest)
            } else {
                self.append(worker, tier, previous, rest)
            };
            let Some((last, stored)) = stored else {
                if retries < MAX_RETRIES && self.evict() {
                    retries += 1;
                    continue;
                }
                self.refuse(worker, rest.len());
                break;
            };
            previous = Some(last);
            rest = &rest[stored..];
        }
        if let (Some(holdings), Some(last)) = (self.workers.get_mut(worker.0 as usize), previous) {
            holdings.last_stored = last;
        }
    }

    /// The place of `parent`, which mostly is the block that the worker stored last.
    fn find_parent(&self, worker: WorkerSlot, parent: SequenceHash) -> Option<Place> {
        let last = self.workers.get(worker.0 as usize)?.last_stored;
        // The strand may have changed since. A block has only one place, so the hash suffices as a check.
        let is_parent = self
            .strands
            .get(last.strand())
            .is_some_and(|strand| strand.hash(last.offset()) == Some(parent));
        if is_parent { Some(last) } else { self.find(parent) }
    }

    /// Makes room for the worker's holdings. False for a slot past the limit, or at the memory bound.
    fn admits(&mut self, worker: WorkerSlot) -> bool {
        let needed = worker.0 as usize + 1;
        if needed > self.workers.len() {
            let growth = needed.saturating_sub(self.workers.capacity()) * size_of::<Holdings>();
            if worker.0 >= MAX_WORKER_SLOTS || !self.has_room(growth) {
                return false;
            }
            self.workers.reserve_exact(needed - self.workers.len());
            self.workers.resize_with(needed, Holdings::default);
        }
        true
    }

    /// Finds the place of `blocks[0]`, which usually follows `previous`. Returns `None` if the block is unknown, or if
    /// `previous` ends its strand: the block is then usually new, and [`append`](Self::append) finds it if it is not.
    fn find_after(&self, previous: Option<Place>, blocks: &[SequenceHash]) -> Option<Place> {
        let first = *blocks.first()?;
        if let Some(previous) = previous {
            let next = self.strand(previous).hash(previous.offset() + 1)?;
            if next == first {
                return Some(Place::new(previous.strand(), previous.offset() + 1));
            }
        }
        self.find(first)
    }

    /// Marks the first of `blocks` as held, as many as lie in a row from `place` on. Returns the last block's place and
    /// their number, or `None` at the memory bound.
    fn join_holders(
        &mut self,
        worker: WorkerSlot,
        tier: CacheTier,
        place: Place,
        blocks: &[SequenceHash],
    ) -> Option<(Place, usize)> {
        let (id, strand) = (place.strand(), self.strand(place));
        let run = strand.run_after(place.offset(), blocks);
        if !self.has_room(strand.set_bytes(self.slots()) + self.listing_bytes(worker)) {
            return None;
        }
        let range = place.offset()..place.offset() + run;
        let listed = strand.holds(worker);
        strand.touch(self.clock);
        let change = self.change_strand(id, |strand| strand.set(range, worker, tier, true));
        self.count_added(worker, change);
        if !listed {
            self.list_strand(worker, id);
        }
        Some((Place::new(id, place.offset() + run - 1), run))
    }

    /// Adds the first of `blocks` as new blocks: up to the first block that the index has already, the end of the strand,
    /// or [`APPENDED_AT_ONCE`] blocks. They go behind `previous` if that is the last block of its strand, otherwise into
    /// a new strand. If the index has the very first block, the worker [joins](Self::join_holders) its holders. Returns
    /// the last block's place and their number, or `None` at the memory bound.
    fn append(
        &mut self,
        worker: WorkerSlot,
        tier: CacheTier,
        previous: Option<Place>,
        blocks: &[SequenceHash],
    ) -> Option<(Place, usize)> {
        let listing = self.listing_bytes(worker);
        let room = self.room();
        if self.strands.allocation_bytes(room) + listing > room {
            return None;
        }
        let continued = previous.filter(|previous| {
            let strand = self.strand(*previous);
            previous.offset() + 1 == strand.len() && !strand.is_full()
        });
        let id = continued.map_or_else(|| self.strands.allocate(room), Place::strand);
        self.strands[id].touch(self.clock);
        let mut continues = self.strands[id].ends_with_only(worker, tier);
        let listed = continues || self.strands[id].holds(worker);
        let start = self.strands[id].len();
        let most = blocks.len().min(APPENDED_AT_ONCE).min(MAX_STRAND_BLOCKS - start);
        if most > 1 {
            self.places.prefetch(blocks[..most].iter().copied());
        }
        let (mut pushed, mut known) = (0, None);
        for &block in &blocks[..most] {
            let (coming, slot_key) = (most - pushed, self.places.slot_key(block));
            let growth = self.strands[id].push_bytes(coming, continues) + self.places.insert_bytes(slot_key);
            if growth > 0 && !self.has_room(growth + listing) {
                break;
            }
            let place = Place::new(id, start + pushed);
            // A chain that contains a block twice finds the block here the second time.
            known = self.places.insert(slot_key, block, place, &self.strands);
            if known.is_some() {
                break;
            }
            let holder = (!continues).then_some((worker, tier));
            self.strand_bytes += self.strands.get_mut(id).push(block, coming, holder);
            continues = true;
            pushed += 1;
        }
        if pushed == 0 {
            if start == 0 {
                self.strands.give_back(id);
            }
            return known.and_then(|place| self.join_holders(worker, tier, place, blocks));
        }
        self.count_appended(worker, tier, &blocks[..pushed]);
        if !listed {
            self.list_strand(worker, id);
        }
        Some((Place::new(id, start + pushed - 1), pushed))
    }

    /// Removes the worker's blocks in these strands. Returns whether slots are due for [sweeping](Self::sweep).
    pub(crate) fn remove_from(&mut self, worker: WorkerSlot, strands: &[u32]) -> bool {
        for id in strands.iter().map(|&id| id as usize) {
            if self.strands.get(id).is_some_and(|strand| strand.holds(worker)) {
                let change = self.change_strand(id, |strand| strand.remove_worker(worker));
                self.count_removed(worker, change);
                self.unlist_strand(worker, id);
                self.reclaim(id);
            }
        }
        self.places.is_sweep_due()
    }

    /// Brings into the processor's cache what `events` will touch: the blocks' slots in the place map, and the places of
    /// the parents.
    pub(crate) fn prefetch(&self, worker: WorkerSlot, events: &[KvEvent]) {
        self.places.prefetch(events.iter().flat_map(|event| match event {
            KvEvent::Stored { blocks, .. } | KvEvent::Removed { blocks, .. } => {
                blocks[..blocks.len().min(APPENDED_AT_ONCE)].iter().copied()
            }
            KvEvent::Cleared => [].iter().copied(),
        }));
        let parents = events.iter().filter_map(|event| match event {
            KvEvent::Stored { parent, .. } => self.find_parent(worker, (*parent)?),
            KvEvent::Removed { .. } | KvEvent::Cleared => None,
        });
        std::hint::black_box(parents.map(Place::offset).fold(0, usize::wrapping_add));
    }

    pub(super) fn remove(&mut self, worker: WorkerSlot, tier: CacheTier, blocks: &[SequenceHash]) {
        if self.blocks_of(worker) == 0 {
            return;
        }
        let mut rest = blocks;
        while let Some(&first) = rest.first() {
            let Some(place) = self.find(first) else {
                rest = &rest[1..];
                continue;
            };
            let (offset, strand) = (place.offset(), self.strand(place));
            let (after, before) = (strand.run_after(offset, rest), strand.run_before(offset, rest));
            let range = if after >= before {
                offset..offset + after
            } else {
                offset + 1 - before..offset + 1
            };
            rest = &rest[range.len()..];
            self.remove_range(worker, tier, place.strand(), range);
        }
    }

    fn remove_range(&mut self, worker: WorkerSlot, tier: CacheTier, id: usize, range: Range<usize>) {
        // Cutting a segment takes memory, and a removal must not fail. At the memory bound the worker loses the whole
        // segments: too little credit is correct, too much is not.
        let strand = &self.strands[id];
        let wanted = range.len();
        let range = if self.has_room(strand.set_bytes(self.slots())) {
            range
        } else {
            strand.whole_segments(range)
        };
        let dropped = range.len() - wanted;
        let change = self.change_strand(id, |strand| strand.set(range, worker, tier, false));
        if change == Change::default() {
            return;
        }
        self.count_removed(worker, change);
        if dropped > 0 {
            self.refuse(worker, dropped);
        }
        if !self.strands[id].holds(worker) {
            self.unlist_strand(worker, id);
        }
        self.reclaim(id);
    }

    /// Compacts a strand once more than half of its blocks are unheld, and retires it once all are. So unheld blocks never
    /// take more memory than held ones, and compaction moves about one block for each removed one.
    pub(super) fn reclaim(&mut self, id: usize) {
        let (unheld, len) = (self.strands[id].unheld(), self.strands[id].len());
        if unheld == len {
            self.retire(id);
        } else if unheld > len - unheld {
            self.compact(id);
        }
    }

    fn retire(&mut self, id: usize) {
        let strand = &self.strands[id];
        let blocks = strand.len();
        self.strand_bytes -= strand.heap_bytes();
        self.strands.retire(id);
        if self.blocks == 0 {
            // The index is empty: to clear it is quicker than any sweep.
            self.places.clear();
            self.strands = Strands::default();
        } else {
            self.places.schedule_sweep(blocks);
        }
    }

    /// [Sweeps](Self::sweep) all slots that are due. Mostly none are.
    pub(super) fn sweep_all(&mut self) {
        while self.places.is_sweep_due() {
            self.sweep(usize::MAX);
        }
    }

    /// Clears slots of retired strands in the place map: visits at most `most` slots, and stops at the end of a round.
    /// Returns whether more slots are due.
    pub(crate) fn sweep(&mut self, most: usize) -> bool {
        if self.places.sweep(most, &self.strands) {
            self.strands.end_sweep_round();
        }
        self.places.is_sweep_due()
    }

    fn compact(&mut self, id: usize) {
        let mut strand = std::mem::take(self.strands.get_mut(id));
        self.strand_bytes -= strand.heap_bytes();
        for blocks in strand.hashes().chunks(APPENDED_AT_ONCE) {
            self.places.prefetch(blocks.iter().copied());
        }
        strand.compact(|block, old, new| {
            let old = Place::new(id, old);
            match new {
                Some(new) => self.places.relocate(block, old, Place::new(id, new)),
                None => self.places.remove(block, old),
            }
        });
        self.strand_bytes += strand.heap_bytes();
        *self.strands.get_mut(id) = strand;
    }
}
