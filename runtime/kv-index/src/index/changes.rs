//! What stores and removals do to the strands.

use std::ops::Range;

use signalbox_protocol::{CacheTier, SequenceHash};

use super::{Holdings, KvIndex};
use crate::{
    MAX_WORKER_SLOTS, WorkerSlot,
    place_map::Place,
    strand::{Change, MAX_STRAND_BLOCKS, Strand},
};

impl KvIndex {
    pub(super) fn store(
        &mut self,
        worker: WorkerSlot,
        tier: CacheTier,
        parent: Option<SequenceHash>,
        blocks: &[SequenceHash],
    ) {
        let mut previous = parent.and_then(|parent| self.find(parent));
        let mut rest = blocks;
        while let Some(&first) = rest.first() {
            let stored = if !self.admits(worker) {
                None
            } else if let Some(place) = self.find_after(previous, first) {
                self.join_holders(worker, tier, place, rest)
            } else {
                self.append(worker, tier, previous, rest)
            };
            let Some((last, stored)) = stored else {
                self.refused_stores += rest.len() as u64;
                return;
            };
            previous = Some(last);
            rest = &rest[stored..];
        }
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

    /// Where `block` lies: most often right after the one before it.
    fn find_after(&self, previous: Option<Place>, block: SequenceHash) -> Option<Place> {
        let next = previous.map(|previous| Place::new(previous.strand(), previous.offset() + 1));
        next.filter(|&next| self.strand(next).hash(next.offset()) == Some(block))
            .or_else(|| self.find(block))
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
        let change = self.change_strand(id, |strand| strand.set(range, worker, tier, true));
        self.count_added(worker, change);
        self.list_strand(worker, id);
        Some((Place::new(id, place.offset() + run - 1), run))
    }

    /// Adds those of `blocks` that nobody knows, up to the first that is known or a full strand: behind `previous`
    /// where that ends its strand, otherwise in a new one. The last place and how many; `None` without room.
    fn append(
        &mut self,
        worker: WorkerSlot,
        tier: CacheTier,
        previous: Option<Place>,
        blocks: &[SequenceHash],
    ) -> Option<(Place, usize)> {
        if !self.has_room(self.new_strand_bytes() + self.listing_bytes(worker)) {
            return None;
        }
        let continued = previous.filter(|previous| {
            let strand = self.strand(*previous);
            previous.offset() + 1 == strand.len() && !strand.is_full()
        });
        let id = continued.map_or_else(|| self.new_strand(), Place::strand);
        // Asked for all together: lookups that do not wait for one another overlap in the processor.
        let room = MAX_STRAND_BLOCKS - self.strands[id].len();
        let unknown = blocks
            .iter()
            .take(room)
            .take_while(|&&block| self.find(block).is_none())
            .count();
        let mut pushed = 0;
        for &block in &blocks[..unknown] {
            let strand = &self.strands[id];
            let place = Place::new(id, strand.len());
            let has_room = self.has_room(strand.push_bytes() + self.places.insert_bytes(block));
            // A chain that names a block twice finds it here the second time.
            if !has_room || !self.places.insert(block, place, &self.strands) {
                break;
            }
            self.strand_bytes += self.strands[id].push(block, worker, tier);
            pushed += 1;
        }
        if pushed == 0 {
            self.settle(id);
            return None;
        }
        let mut change = Change {
            memberships: [0; 3],
            blocks: pushed,
        };
        change.memberships[tier.index()] = pushed;
        self.count_added(worker, change);
        self.list_strand(worker, id);
        Some((Place::new(id, self.strands[id].len() - 1), pushed))
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

    /// Drops dead blocks from a strand once they outnumber the others, and frees it when it is empty: so what is
    /// dead never takes more than what is held, and each block is moved at most about once for each removal.
    pub(super) fn settle(&mut self, id: usize) {
        let dead = self.strands[id].dead();
        let len = self.strands[id].len();
        if dead > 0 && dead > len - dead {
            let mut strand = std::mem::take(&mut self.strands[id]);
            self.strand_bytes -= strand.heap_bytes();
            let mut gone = Vec::with_capacity(dead);
            strand.squeeze(|block, old, new| {
                self.places
                    .replace(block, Place::new(id, old), new.map(|new| Place::new(id, new)));
                if new.is_none() {
                    gone.push(block);
                }
            });
            self.strand_bytes += strand.heap_bytes();
            self.strands[id] = strand;
            for block in gone {
                self.places.shrink(block, &self.strands);
            }
        }
        if self.strands[id].len() == 0 {
            self.strands[id] = Strand::default();
            self.free.push(id as u32);
        }
    }
}
