//! One of the tables a place map is made of: linear probing over packed slots.

use std::ops::Range;

use crate::ALLOCATION_OVERHEAD;

use super::Place;

/// Of the hash, in a slot. The home takes the upper ones, the rest tells blocks of neighbouring homes apart: in a
/// shard of 2^17 blocks, 33 million in all, the strand is looked at in vain about once in thirty times.
pub(super) const TAG_BITS: u32 = 24;
const PLACE_BITS: u32 = 40;
/// No strand has this number with this offset and tag, nor the one before it: there is no memory for so many.
const EMPTY: u64 = u64::MAX;
/// Something was here and was taken out: searches go on past it. Moving back what had to go past it would cost more than
/// all the rest of taking out.
const TAKEN: u64 = u64::MAX - 1;
/// More than three slots in four full, and runs of full slots get long.
const FULL: (usize, usize) = (3, 4);
/// A shard that is less than one part in this many full gives memory back.
const SPARSE: usize = 8;
const SMALLEST: usize = 8;

/// Slots of a tag (upper bits) and a place (lower ones); the tag alone gives the slot's home, in proportion to the
/// number of slots, so that this may be any.
#[derive(Debug, Default)]
pub(super) struct Shard {
    slots: Box<[u64]>,
    /// Slots with a place, be its block still there or not.
    used: usize,
    /// Slots that are [`TAKEN`].
    taken: usize,
    /// How far a sweep has come.
    swept: usize,
}

impl Shard {
    pub(super) fn find(&self, tag: u32, is_it: impl Fn(Place) -> bool) -> Option<Place> {
        let mut at = self.home(tag);
        loop {
            // There is an empty slot unless there is none at all.
            let slot = self.slots.get(at).copied().filter(|&slot| slot != EMPTY)?;
            if tag_of(slot) == tag && is_it(place_of(slot)) {
                return Some(place_of(slot));
            }
            at = self.after(at);
        }
    }

    /// What lies where the search for `tag` begins.
    pub(super) fn home_slot(&self, tag: u32) -> u64 {
        self.slots.get(self.home(tag)).copied().unwrap_or(EMPTY)
    }

    /// Adds a place, or says at which the block is already. The slot of a block with the same tag that went with its strand
    /// is used again, so that one that comes and goes leaves no more than one behind.
    pub(super) fn insert(
        &mut self,
        tag: u32,
        place: Place,
        is_it: impl Fn(Place) -> bool,
        is_gone: impl Fn(usize) -> bool,
    ) -> Option<Place> {
        if self.is_full() {
            self.resize(self.grown());
        }
        let (mut at, mut free) = (self.home(tag), None);
        while self.slots[at] != EMPTY {
            let slot = self.slots[at];
            if slot == TAKEN || tag_of(slot) == tag && is_gone(place_of(slot).strand()) {
                free = free.or(Some(at));
            } else if tag_of(slot) == tag && is_it(place_of(slot)) {
                return Some(place_of(slot));
            }
            at = self.after(at);
        }
        let at = free.unwrap_or(at);
        self.taken -= usize::from(self.slots[at] == TAKEN);
        self.used += usize::from(self.slots[at] >= TAKEN);
        self.slots[at] = pack(tag, place);
        None
    }

    pub(super) fn replace(&mut self, tag: u32, old: Place, new: Place) {
        if let Some(at) = self.position(tag, old) {
            self.slots[at] = pack(tag, new);
        }
    }

    /// Takes a place out.
    pub(super) fn remove(&mut self, tag: u32, place: Place) {
        let Some(at) = self.position(tag, place) else {
            return;
        };
        // No search goes past the last of a run.
        let ends_run = self.slots[self.after(at)] == EMPTY;
        self.slots[at] = if ends_run { EMPTY } else { TAKEN };
        self.taken += usize::from(!ends_run);
        self.used -= 1;
        self.give_back();
    }

    /// Takes out all places in strands that are gone.
    pub(super) fn sweep(&mut self, is_gone: impl Fn(usize) -> bool) {
        self.sweep_slots(0..self.slots.len(), is_gone);
        self.give_back();
    }

    /// Goes on sweeping, for so many slots. How many that were, and whether the end was reached.
    pub(super) fn sweep_on(&mut self, most: usize, is_gone: impl Fn(usize) -> bool) -> (usize, bool) {
        let (start, end) = (self.swept, self.slots.len().min(self.swept + most));
        self.sweep_slots(start..end, is_gone);
        let is_through = end == self.slots.len();
        self.swept = if is_through { 0 } else { end };
        if is_through {
            self.give_back();
        }
        (end - start, is_through)
    }

    /// One pass over memory, without a branch, which would be guessed wrong half of the time.
    fn sweep_slots(&mut self, range: Range<usize>, is_gone: impl Fn(usize) -> bool) {
        let mut next = if range.is_empty() {
            EMPTY
        } else {
            self.slots[self.after(range.end - 1)]
        };
        let (mut went, mut was_taken, mut is_taken) = (0, 0, 0);
        // Backwards, so that a run which ends with several that go gets shorter by all.
        for slot in self.slots[range].iter_mut().rev() {
            let goes = (*slot < TAKEN) & is_gone(place_of(*slot).strand());
            let taken = *slot == TAKEN;
            let instead = if next == EMPTY { EMPTY } else { TAKEN };
            next = if goes | taken { instead } else { *slot };
            *slot = next;
            went += usize::from(goes);
            was_taken += usize::from(taken);
            is_taken += usize::from(next == TAKEN);
        }
        self.used -= went;
        self.taken = self.taken + is_taken - was_taken;
    }

    fn give_back(&mut self) {
        if self.used * SPARSE < self.slots.len() && self.slots.len() > SMALLEST {
            self.resize((self.used * 2).max(SMALLEST));
        }
    }

    #[cfg(test)]
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        let full = self.slots.iter().filter(|&&slot| slot < TAKEN);
        full.map(|&slot| place_of(slot))
    }

    /// The most memory that one more can take, the old slots beside the new ones included.
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
        let mut at = self.home(tag);
        loop {
            match self.slots.get(at) {
                Some(&slot) if slot == wanted => return Some(at),
                None | Some(&EMPTY) => return None,
                Some(_) => at = self.after(at),
            }
        }
    }

    /// Whether the next one makes it grow.
    pub(super) fn is_full(&self) -> bool {
        (self.used + self.taken) * FULL.1 >= self.slots.len() * FULL.0
    }

    /// Twice as many, so at least three in eight are used while blocks come; less growth costs more copies. As many, where
    /// half of what fills the shard was taken out.
    fn grown(&self) -> usize {
        if self.used < self.taken {
            self.slots.len()
        } else {
            (self.slots.len() * 2).max(SMALLEST)
        }
    }

    /// The order of homes is the order of tags whatever the number of slots, so both tables are walked from front to
    /// back.
    fn resize(&mut self, slots: usize) {
        let old = std::mem::replace(&mut self.slots, vec![EMPTY; slots].into());
        (self.taken, self.swept) = (0, 0);
        for slot in old.into_iter().filter(|&slot| slot < TAKEN) {
            let mut at = self.home(tag_of(slot));
            while self.slots[at] != EMPTY {
                at = self.after(at);
            }
            self.slots[at] = slot;
        }
    }

    fn home(&self, tag: u32) -> usize {
        ((u64::from(tag) * self.slots.len() as u64) >> TAG_BITS) as usize
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
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
        Put(u32, usize),
        TakeOut(u32, usize),
        /// All places of the tag's strand go with it.
        Go(u32),
        SweepOn(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Few tags, so that they agree, and some of the greatest, so that runs of slots go round the end.
        let tag = || prop_oneof![0u32..4, 0xff_fff0u32..0x100_0000, 0u32..0x100_0000];
        let number = || 0usize..40;
        let step = prop_oneof![
            12 => (tag(), number()).prop_map(|(tag, number)| Step::Put(tag, number)),
            6 => (tag(), number()).prop_map(|(tag, number)| Step::TakeOut(tag, number)),
            2 => tag().prop_map(Step::Go),
            2 => (1usize..30).prop_map(Step::SweepOn),
        ];
        prop::collection::vec(step, 0..400)
    }

    proptest! {
        #[test]
        fn a_shard_holds_what_was_put_in_and_did_not_go(steps in steps(), drain in prop::bool::ANY) {
            let (mut shard, mut model) = (Shard::default(), BTreeSet::new());
            // Each tag has a strand, and another after that is gone.
            let mut gone = BTreeSet::new();
            let strand = |gone: &BTreeSet<usize>, tag: u32| {
                (0..).map(|life| (life << 24) + tag as usize).find(|strand| !gone.contains(strand)).unwrap()
            };
            for step in steps {
                match step {
                    Step::Put(tag, number) => {
                        let place = Place::new(strand(&gone, tag), number);
                        let found = shard.insert(tag, place, |found| found == place, |strand| gone.contains(&strand));
                        prop_assert_eq!(found, (!model.insert((tag, number))).then_some(place));
                    }
                    Step::TakeOut(tag, number) => {
                        shard.remove(tag, Place::new(strand(&gone, tag), number));
                        model.remove(&(tag, number));
                    }
                    Step::Go(tag) => {
                        gone.insert(strand(&gone, tag));
                        model.retain(|(other, _)| *other != tag);
                    }
                    Step::SweepOn(most) => {
                        let (swept, _) = shard.sweep_on(most, |strand| gone.contains(&strand));
                        prop_assert!(swept <= most);
                    }
                }
            }
            if drain {
                let last = model.pop_last();
                for (tag, number) in std::mem::replace(&mut model, last.into_iter().collect()) {
                    shard.remove(tag, Place::new(strand(&gone, tag), number));
                }
            }
            for sweep in [false, true] {
                if sweep {
                    while !shard.sweep_on(7, |strand| gone.contains(&strand)).1 {}
                    // What a sweep that began midway left behind.
                    shard.sweep(|strand| gone.contains(&strand));
                    prop_assert_eq!(shard.places().count(), model.len());
                }
                prop_assert_eq!(shard.places().count(), shard.used);
                prop_assert_eq!(shard.slots.iter().filter(|&&slot| slot == TAKEN).count(), shard.taken);
                prop_assert!(shard.slots.is_empty() || shard.slots.contains(&EMPTY), "searches end");
                for &(tag, number) in &model {
                    let place = Place::new(strand(&gone, tag), number);
                    prop_assert_eq!(shard.find(tag, |found| found == place), Some(place));
                    prop_assert_eq!(shard.find(tag, |found| found.offset() == 50), None);
                    let moved = Place::new(place.strand(), number + 100);
                    shard.replace(tag, place, moved);
                    prop_assert_eq!(shard.find(tag, |found| found == moved), Some(moved));
                    shard.replace(tag, moved, place);
                }
            }
            if drain {
                prop_assert!(shard.slots.len() <= 2 * SMALLEST);
            }
        }
    }
}
