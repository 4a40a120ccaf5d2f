//! What stores and removals do to the strands.

use std::ops::Range;

use signalbox_protocol::{CacheTier, KvEvent, SequenceHash};

use super::{Holdings, KvIndex};
use crate::{
    MAX_WORKER_SLOTS, WorkerSlot,
    place_map::Place,
    strand::{Change, MAX_STRAND_BLOCKS},
    strands::Strands,
};

/// Blocks of an event that are new are asked for and added so many at a time: a few more than the processor fetches
/// at once, few enough to stay in its nearest cache.
const APPENDED_AT_ONCE: usize = 32;

impl KvIndex {
    pub(super) fn store(
        &mut self,
        worker: WorkerSlot,
        tier: CacheTier,
        parent: Option<SequenceHash>,
        blocks: &[SequenceHash],
    ) {
        let mut previous = parent.and_then(|parent| self.find_parent(worker, parent));
        let mut rest = blocks;
        while !rest.is_empty() {
            let stored = if !self.admits(worker) {
                None
            } else if let Some(place) = self.find_after(previous, rest) {
                self.join_holders(worker, tier, place, rest)
            } else {
                self.append(worker, tier, previous, rest)
            };
            let Some((last, stored)) = stored else {
                self.refused_stores += rest.len() as u64;
                break;
            };
            previous = Some(last);
            rest = &rest[stored..];
        }
        if let (Some(holdings), Some(last)) = (self.workers.get_mut(worker.0 as usize), previous) {
            holdings.last_stored = last;
        }
    }

    /// Where `parent` lies: most often it is what the worker stored last.
    fn find_parent(&self, worker: WorkerSlot, parent: SequenceHash) -> Option<Place> {
        let last = self.workers.get(worker.0 as usize)?.last_stored;
        // Whatever happened to the strand since, a block lies in one place only.
        let is_parent = self
            .strands
            .get(last.strand())
            .is_some_and(|strand| strand.hash(last.offset()) == Some(parent));
        if is_parent { Some(last) } else { self.find(parent) }
    }

    /// Makes room for what is kept of a worker; false where there is none.
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

    /// Where the first of `blocks` lies: most often right after the one before it. `None` also where that one ends
    /// its strand: the block is mostly new then, and [`append`](Self::append) sees where it is not.
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

    /// Marks as held those of `blocks` that lie in a row from `place` on. The last place and how many; `None`
    /// without room.
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
        let change = self.change_strand(id, |strand| strand.set(range, worker, tier, true));
        self.count_added(worker, change);
        if !listed {
            self.list_strand(worker, id);
        }
        Some((Place::new(id, place.offset() + run - 1), run))
    }

    /// Adds those of `blocks` that nobody knows, up to the first that is known, a full strand or a number of them:
    /// behind `previous` where that ends its strand, otherwise in a new one. Where the first is known, it
    /// [joins](Self::join_holders) those who hold it. The last place and how many; `None` without room.
    fn append(
        &mut self,
        worker: WorkerSlot,
        tier: CacheTier,
        previous: Option<Place>,
        blocks: &[SequenceHash],
    ) -> Option<(Place, usize)> {
        let listing = self.listing_bytes(worker);
        if !self.has_room(self.strands.give_bytes() + listing) {
            return None;
        }
        let continued = previous.filter(|previous| {
            let strand = self.strand(*previous);
            previous.offset() + 1 == strand.len() && !strand.is_full()
        });
        let id = continued.map_or_else(|| self.strands.give(), Place::strand);
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
            // A chain that names a block twice finds it here the second time.
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
                self.strands.take_back(id);
            }
            return known.and_then(|place| self.join_holders(worker, tier, place, blocks));
        }
        self.count_appended(worker, tier, pushed);
        if !listed {
            self.list_strand(worker, id);
        }
        Some((Place::new(id, start + pushed - 1), pushed))
    }

    /// Forgets the worker's blocks in some strands. Whether there is something to [`sweep`](Self::sweep) now.
    pub(crate) fn remove_from(&mut self, worker: WorkerSlot, strands: &[u32]) -> bool {
        for id in strands.iter().map(|&id| id as usize) {
            if self.strands.get(id).is_some_and(|strand| strand.holds(worker)) {
                let change = self.change_strand(id, |strand| strand.remove_worker(worker));
                self.count_removed(worker, change);
                self.unlist_strand(worker, id);
                self.settle(id);
            }
        }
        self.places.is_sweep_due()
    }

    /// Brings into the cache what `events` are about: the blocks' slots in the place map, and what they continue. One
    /// after the other, each would be waited for.
    pub(crate) fn fetch(&self, worker: WorkerSlot, events: &[KvEvent]) {
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
        // Cutting a segment takes memory, yet taking a credit away must not fail. Without room the whole segments
        // go: absent is right where exact is too dear.
        let strand = &self.strands[id];
        let wanted = range.len();
        let range = if self.has_room(strand.set_bytes(self.slots())) {
            range
        } else {
            strand.whole_segments(range)
        };
        let given_up = range.len() - wanted;
        let change = self.change_strand(id, |strand| strand.set(range, worker, tier, false));
        if change == Change::default() {
            return;
        }
        self.refused_stores += given_up as u64;
        self.count_removed(worker, change);
        if !self.strands[id].holds(worker) {
            self.unlist_strand(worker, id);
        }
        self.settle(id);
    }

    /// Drops dead blocks from a strand once they outnumber the others, and the strand with them when nothing else is
    /// left: so what is dead never takes more than what is held, and each block is moved at most about once for each
    /// removal.
    pub(super) fn settle(&mut self, id: usize) {
        let (dead, len) = (self.strands[id].dead(), self.strands[id].len());
        if dead == len {
            self.retire(id);
        } else if dead > len - dead {
            self.compact(id);
        }
    }

    fn retire(&mut self, id: usize) {
        let strand = &self.strands[id];
        let blocks = strand.len();
        self.strand_bytes -= strand.heap_bytes();
        self.strands.retire(id);
        if self.blocks == 0 {
            // Nobody holds anything: no sweep is as quick.
            self.places.clear();
            self.strands = Strands::default();
        } else {
            self.places.schedule_sweep(blocks);
        }
    }

    /// [Sweeps](Self::sweep) all that is due; mostly there is nothing.
    pub(super) fn sweep_all(&mut self) {
        while self.places.is_sweep_due() {
            self.sweep(usize::MAX);
        }
    }

    /// Sweeps the place map for strands that are gone, up to so many slots and to the end of a round. Whether there is more
    /// to be done.
    pub(crate) fn sweep(&mut self, most: usize) -> bool {
        if self.places.sweep(most, &self.strands) {
            self.strands.round_ended();
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
                Some(new) => self.places.follow(block, old, Place::new(id, new)),
                None => self.places.forget(block, old),
            }
        });
        self.strand_bytes += strand.heap_bytes();
        *self.strands.get_mut(id) = strand;
    }
}
