//! A shard of the place map: a hash table with linear probing over packed slots.

use std::ops::Range;

use crate::ALLOCATION_OVERHEAD;

use super::place::Place;

/// Bits of the block's hash in a slot. The upper bits give the home index, and the others distinguish blocks of
/// neighbouring homes. In a shard of 2^17 blocks, 33 million in all, about one search in thirty reads the strand of
/// another block.
pub(super) const TAG_BITS: u32 = 24;
const PLACE_BITS: u32 = 40;
/// A slot without a place. No packed place equals this number or the one before it, because memory cannot hold that
/// many strands.
const EMPTY: u64 = u64::MAX;
/// A slot whose place was removed. Searches go past it. Moving later places of the run back would cost more
/// than the rest of the removal.
const TOMBSTONE: u64 = u64::MAX - 1;
/// The largest share of slots that are not empty: three in four. Beyond it, runs of full slots get long.
const MAX_FILL: (usize, usize) = (3, 4);
/// A shard shrinks if less than one slot in this many is used.
const SPARSE: usize = 8;
const MIN_SLOTS: usize = 8;

/// Slots of a tag (upper bits) and a place (lower bits). A tag's home index is the tag scaled to the number of slots,
/// which may be any number.
#[derive(Debug, Default)]
pub(super) struct Shard {
    slots: Box<[u64]>,
    /// Slots with a place, in a retired strand or not.
    used: usize,
    /// Slots that are a [`TOMBSTONE`].
    tombstones: usize,
    /// The slot where the sweep continues.
    sweep_cursor: usize,
}

impl Shard {
    pub(super) fn find(&self, tag: u32, is_match: impl Fn(Place) -> bool) -> Option<Place> {
        let mut index = self.home_index(tag);
        loop {
            // A shard with slots has an empty one, so the search ends.
            let slot = self.slots.get(index).copied().filter(|&slot| slot != EMPTY)?;
            if tag_of(slot) == tag && is_match(place_of(slot)) {
                return Some(place_of(slot));
            }
            index = self.next_index(index);
        }
    }

    /// The slot at which a search for `tag` begins.
    pub(super) fn home_slot(&self, tag: u32) -> u64 {
        self.slots.get(self.home_index(tag)).copied().unwrap_or(EMPTY)
    }

    /// Adds a place, or returns the place at which the block is already. A slot with the same tag that leads to a retired
    /// strand is reused, so a block that is stored and removed again and again leaves at most one such slot.
    pub(super) fn insert(
        &mut self,
        tag: u32,
        place: Place,
        is_match: impl Fn(Place) -> bool,
        is_retired: impl Fn(usize) -> bool,
    ) -> Option<Place> {
        if self.is_full() {
            self.resize(self.grown());
        }
        let (mut index, mut free) = (self.home_index(tag), None);
        while self.slots[index] != EMPTY {
            let slot = self.slots[index];
            if slot == TOMBSTONE || tag_of(slot) == tag && is_retired(place_of(slot).strand()) {
                free = free.or(Some(index));
            } else if tag_of(slot) == tag && is_match(place_of(slot)) {
                return Some(place_of(slot));
            }
            index = self.next_index(index);
        }
        let index = free.unwrap_or(index);
        self.tombstones -= usize::from(self.slots[index] == TOMBSTONE);
        self.used += usize::from(self.slots[index] >= TOMBSTONE);
        self.slots[index] = pack(tag, place);
        None
    }

    pub(super) fn replace(&mut self, tag: u32, old: Place, new: Place) {
        if let Some(index) = self.position(tag, old) {
            self.slots[index] = pack(tag, new);
        }
    }

    /// Removes a place.
    pub(super) fn remove(&mut self, tag: u32, place: Place) {
        let Some(index) = self.position(tag, place) else {
            return;
        };
        // No search goes past the last slot of a run, so that slot needs no tombstone.
        let ends_run = self.slots[self.next_index(index)] == EMPTY;
        self.slots[index] = if ends_run { EMPTY } else { TOMBSTONE };
        self.tombstones += usize::from(!ends_run);
        self.used -= 1;
        self.shrink_if_sparse();
    }

    /// Removes all places in retired strands.
    pub(super) fn sweep(&mut self, is_retired: impl Fn(usize) -> bool) {
        self.sweep_slots(0..self.slots.len(), is_retired);
        self.shrink_if_sparse();
    }

    /// Continues the sweep for at most `most` slots. Returns the number of slots swept, and whether the sweep reached the
    /// end of the shard.
    pub(super) fn continue_sweep(
        &mut self,
        most: usize,
        is_retired: impl Fn(usize) -> bool,
    ) -> (usize, bool) {
        let (start, end) = (self.sweep_cursor, self.slots.len().min(self.sweep_cursor + most));
        self.sweep_slots(start..end, is_retired);
        let reached_end = end == self.slots.len();
        self.sweep_cursor = if reached_end { 0 } else { end };
        if reached_end {
            self.shrink_if_sparse();
        }
        (end - start, reached_end)
    }

    /// One pass over memory without a branch, which the processor would mispredict half of the time.
    fn sweep_slots(&mut self, range: Range<usize>, is_retired: impl Fn(usize) -> bool) {
        let mut next = if range.is_empty() {
            EMPTY
        } else {
            self.slots[self.next_index(range.end - 1)]
        };
        let (mut stale, mut tombstones_before, mut tombstones_after) = (0, 0, 0);
        // Backwards, so that several removed slots at the end of a run all become empty.
        for slot in self.slots[range].iter_mut().rev() {
            let is_stale = (*slot < TOMBSTONE) & is_retired(place_of(*slot).strand());
            let is_tombstone = *slot == TOMBSTONE;
            let freed = if next == EMPTY { EMPTY } else { TOMBSTONE };
            next = if is_stale | is_tombstone { freed } else { *slot };
            *slot = next;
            stale += usize::from(is_stale);
            tombstones_before += usize::from(is_tombstone);
            tombstones_after += usize::from(next == TOMBSTONE);
        }
        self.used -= stale;
        self.tombstones = self.tombstones + tombstones_after - tombstones_before;
    }

    fn shrink_if_sparse(&mut self) {
        if self.used * SPARSE < self.slots.len() && self.slots.len() > MIN_SLOTS {
            self.resize((self.used * 2).max(MIN_SLOTS));
        }
    }

    #[cfg(test)]
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        let full = self.slots.iter().filter(|&&slot| slot < TOMBSTONE);
        full.map(|&slot| place_of(slot))
    }

    /// The most memory that one more place can take. While a shard grows, its old slots exist beside the new ones.
    pub(super) fn insert_bytes(&self) -> usize {
        if self.is_full() {
            self.grown() * size_of::<u64>() + ALLOCATION_OVERHEAD
        } else {
            0
        }
    }

    /// Heap bytes, the allocator's share included.
    pub(super) fn heap_bytes(&self) -> usize {
        match self.slots.len() {
            0 => 0,
            slots => slots * size_of::<u64>() + ALLOCATION_OVERHEAD,
        }
    }

    fn position(&self, tag: u32, place: Place) -> Option<usize> {
        let wanted = pack(tag, place);
        let mut index = self.home_index(tag);
        loop {
            match self.slots.get(index) {
                Some(&slot) if slot == wanted => return Some(index),
                None | Some(&EMPTY) => return None,
                Some(_) => index = self.next_index(index),
            }
        }
    }

    /// Whether the next insert resizes the shard.
    pub(super) fn is_full(&self) -> bool {
        (self.used + self.tombstones) * MAX_FILL.1 >= self.slots.len() * MAX_FILL.0
    }

    /// The number of slots after growth. Growth doubles the shard, so that at least three in eight slots are used;
    /// smaller steps would copy more often. The size stays the same if more than half of the used slots are tombstones.
    fn grown(&self) -> usize {
        if self.used < self.tombstones {
            self.slots.len()
        } else {
            (self.slots.len() * 2).max(MIN_SLOTS)
        }
    }

    /// The order of home indexes is the order of tags for any number of slots, so the pass walks the old and the new
    /// slots from front to back.
    fn resize(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.slots, vec![EMPTY; slots].into());
        (self.tombstones, self.sweep_cursor) = (0, 0);
        for slot in old.into_iter().filter(|&slot| slot < TOMBSTONE) {
            let mut index = self.home_index(tag_of(slot));
            while self.slots[index] != EMPTY {
                index = self.next_index(index);
            }
            self.slots[index] = slot;
        }
    }

    fn home_index(&self, tag: u32) -> usize {
        ((u64::from(tag) * self.slots.len() as u64) >> TAG_BITS) as usize
    }

    fn next_index(&self, index: usize) -> usize {
        if index + 1 == self.slots.len() {
            0
        } else {
            index + 1
        }
    }
}

fn pack(tag: u32, place: Place) -> u64 {
    (u64::from(tag) << PLACE_BITS) | (u64::from(place.strand) << 8) | u64::from(place.offset)
}

fn tag_of(slot: u64) -> u32 {
    (slot >> PLACE_BITS) as u32
}

fn place_of(slot: u64) -> Place {
    Place {
        strand: (slot >> 8) as u32,
        offset: slot as u8,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u32, usize),
        Remove(u32, usize),
        /// Retires the tag's strand, with all its places.
        Retire(u32),
        SweepOn(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Few tags, so that several places have the same one, and some of the greatest, so that runs of slots wrap around.
        let tag = || prop_oneof![0u32..4, 0xff_fff0u32..0x100_0000, 0u32..0x100_0000];
        let number = || 0usize..40;
        let step = prop_oneof![
            12 => (tag(), number()).prop_map(|(tag, number)| Step::Insert(tag, number)),
            6 => (tag(), number()).prop_map(|(tag, number)| Step::Remove(tag, number)),
            2 => tag().prop_map(Step::Retire),
            2 => (1usize..30).prop_map(Step::SweepOn),
        ];
        prop::collection::vec(step, 0..400)
    }

    proptest! {
        #[test]
        fn a_shard_holds_what_was_inserted_and_not_removed_or_retired(steps in steps(), drain in prop::bool::ANY) {
            let (mut shard, mut model) = (Shard::default(), BTreeSet::new());
            // Each tag has one strand at a time, and a new one after a retirement.
            let mut retired = BTreeSet::new();
            let strand = |retired: &BTreeSet<usize>, tag: u32| {
                (0..).map(|generation| (generation << 24) + tag as usize).find(|strand| !retired.contains(strand)).unwrap()
            };
            for step in steps {
                match step {
                    Step::Insert(tag, number) => {
                        let place = Place::new(strand(&retired, tag), number);
                        let found = shard.insert(tag, place, |found| found == place, |strand| retired.contains(&strand));
                        prop_assert_eq!(found, (!model.insert((tag, number))).then_some(place));
                    }
                    Step::Remove(tag, number) => {
                        shard.remove(tag, Place::new(strand(&retired, tag), number));
                        model.remove(&(tag, number));
                    }
                    Step::Retire(tag) => {
                        retired.insert(strand(&retired, tag));
                        model.retain(|(other, _)| *other != tag);
                    }
                    Step::SweepOn(most) => {
                        let (swept, _) = shard.continue_sweep(most, |strand| retired.contains(&strand));
                        prop_assert!(swept <= most);
                    }
                }
            }
            if drain {
                let last = model.pop_last();
                for (tag, number) in std::mem::replace(&mut model, last.into_iter().collect()) {
                    shard.remove(tag, Place::new(strand(&retired, tag), number));
                }
            }
            for sweep in [false, true] {
                if sweep {
                    while !shard.continue_sweep(7, |strand| retired.contains(&strand)).1 {}
                    // The sweep above began in the middle of the shard. This one covers the rest.
                    shard.sweep(|strand| retired.contains(&strand));
                    prop_assert_eq!(shard.places().count(), model.len());
                }
                prop_assert_eq!(shard.places().count(), shard.used);
                prop_assert_eq!(shard.slots.iter().filter(|&&slot| slot == TOMBSTONE).count(), shard.tombstones);
                prop_assert!(shard.slots.is_empty() || shard.slots.contains(&EMPTY), "searches end");
                for &(tag, number) in &model {
                    let place = Place::new(strand(&retired, tag), number);
                    prop_assert_eq!(shard.find(tag, |found| found == place), Some(place));
                    prop_assert_eq!(shard.find(tag, |found| found.offset() == 50), None);
                    let moved = Place::new(place.strand(), number + 100);
                    shard.replace(tag, place, moved);
                    prop_assert_eq!(shard.find(tag, |found| found == moved), Some(moved));
                    shard.replace(tag, moved, place);
                }
            }
            if drain {
                prop_assert!(shard.slots.len() <= 2 * MIN_SLOTS);
            }
        }
    }
}
