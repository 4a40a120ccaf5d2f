//! Sets of worker slots.
//!
//! Most blocks are held by one worker, shared prompts by many. A set within one aligned window of 64 slots, above
//! all a single slot, lies inline; a wider one spills to a boxed slice of words.

use crate::{ALLOCATION_OVERHEAD, WorkerSlot};

/// A set of slots, in a canonical form: equal sets compare equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SlotSet {
    /// At most one word has bits; the empty set is `at: 0, bits: 0`.
    Word { at: u32, bits: u64 },
    /// All words up to the last that has bits; at least two have.
    Words(Box<[u64]>),
}

impl Default for SlotSet {
    fn default() -> Self {
        Self::Word { at: 0, bits: 0 }
    }
}

impl SlotSet {
    pub(crate) fn only(slot: WorkerSlot) -> Self {
        let (at, bit) = split(slot);
        Self::Word {
            at: at as u32,
            bits: bit,
        }
    }

    pub(crate) fn is_only(&self, slot: WorkerSlot) -> bool {
        let (place, bit) = split(slot);
        matches!(self, Self::Word { at, bits } if *at as usize == place && *bits == bit)
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Word { bits: 0, .. })
    }

    /// The 64 slots from `64 * at` on.
    pub(crate) fn word(&self, at: usize) -> u64 {
        match self {
            Self::Word { at: only, bits } if *only as usize == at => *bits,
            Self::Word { .. } => 0,
            Self::Words(words) => words.get(at).copied().unwrap_or(0),
        }
    }

    pub(crate) fn contains(&self, slot: WorkerSlot) -> bool {
        let (at, bit) = split(slot);
        self.word(at) & bit != 0
    }

    /// False where it was there already.
    pub(crate) fn insert(&mut self, slot: WorkerSlot) -> bool {
        if self.contains(slot) {
            return false;
        }
        let (at, bit) = split(slot);
        match self {
            Self::Word { bits: 0, .. } => *self = Self::only(slot),
            Self::Word { at: only, bits } if *only as usize == at => *bits |= bit,
            Self::Word { at: only, bits } => {
                let mut words = vec![0; at.max(*only as usize) + 1];
                words[*only as usize] = *bits;
                words[at] = bit;
                *self = Self::Words(words.into());
            }
            Self::Words(words) if at < words.len() => words[at] |= bit,
            Self::Words(words) => {
                let mut longer = vec![0; at + 1];
                longer[..words.len()].copy_from_slice(words);
                longer[at] = bit;
                *words = longer.into();
            }
        }
        true
    }

    /// False where it was not there.
    pub(crate) fn remove(&mut self, slot: WorkerSlot) -> bool {
        if !self.contains(slot) {
            return false;
        }
        let (at, bit) = split(slot);
        match self {
            Self::Word { bits, .. } => {
                *bits &= !bit;
                if *bits == 0 {
                    *self = Self::default();
                }
            }
            Self::Words(words) => {
                words[at] &= !bit;
                if words[at] == 0 {
                    self.make_canonical();
                }
            }
        }
        true
    }

    /// Whether `other` and this set are the same but for `slot`, which one of them has.
    pub(crate) fn differs_only_by(&self, other: &Self, slot: WorkerSlot) -> bool {
        let (at, bit) = split(slot);
        match (self, other) {
            // All words, with nothing to decide in between.
            (Self::Words(a), Self::Words(b)) if a.len() == b.len() => {
                let differ: u32 = a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum();
                differ == 1 && self.word(at) ^ other.word(at) == bit
            }
            _ => {
                let words = self.words().max(other.words()).max(at + 1);
                (0..words).all(|word| {
                    let differ = self.word(word) ^ other.word(word);
                    differ == if word == at { bit } else { 0 }
                })
            }
        }
    }

    /// How many words there are up to the last with bits.
    fn words(&self) -> usize {
        match self {
            Self::Word { at, .. } => *at as usize + 1,
            Self::Words(words) => words.len(),
        }
    }

    /// Heap bytes, the allocator's share included.
    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            Self::Word { .. } => 0,
            Self::Words(words) => size_of_val(&**words) + ALLOCATION_OVERHEAD,
        }
    }

    /// The most heap a set of the slots below `slots` can take.
    pub(crate) fn max_heap_bytes(slots: usize) -> usize {
        slots.div_ceil(64) * size_of::<u64>() + ALLOCATION_OVERHEAD
    }

    /// After a word of `Words` became 0.
    fn make_canonical(&mut self) {
        let Self::Words(words) = self else { return };
        let mut used = words.iter().enumerate().filter(|(_, bits)| **bits != 0);
        match (used.next(), used.next_back()) {
            (Some((at, &bits)), None) => *self = Self::Word { at: at as u32, bits },
            (Some(_), Some((last, _))) if last + 1 < words.len() => *words = words[..=last].into(),
            _ => {}
        }
    }
}

/// The word a slot lies in, and its bit there.
fn split(slot: WorkerSlot) -> (usize, u64) {
    ((slot.0 / 64) as usize, 1 << (slot.0 % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the history, the content is right and equal sets are equal, so that segments can be compared.
        #[test]
        fn a_slot_set_is_a_set_in_canonical_form(
            changes in prop::collection::vec((prop::bool::ANY, prop_oneof![0u32..4, 60u32..70, 120u32..200, 4000u32..4200]), 0..60),
        ) {
            let (mut set, mut model) = (SlotSet::default(), BTreeSet::new());
            for (add, slot) in changes {
                let changed = if add { model.insert(slot) } else { model.remove(&slot) };
                let slot = WorkerSlot(slot);
                prop_assert_eq!(if add { set.insert(slot) } else { set.remove(slot) }, changed);
            }
            let mut fresh = SlotSet::default();
            for &slot in model.iter().rev() {
                fresh.insert(WorkerSlot(slot));
            }
            prop_assert_eq!(&set, &fresh);
            prop_assert_eq!(set.is_empty(), model.is_empty());
            let listed: Vec<u32> = (0..4300).filter(|&slot| set.contains(WorkerSlot(slot))).collect();
            prop_assert_eq!(listed, model.into_iter().collect::<Vec<_>>());
        }
    }

    proptest! {
        #[test]
        fn sets_differ_by_one_slot_or_they_do_not(
            slots in prop::collection::btree_set(prop_oneof![0u32..4, 60u32..70, 120u32..200], 0..8),
            slot in prop_oneof![0u32..4, 60u32..70, 120u32..200],
            another in prop_oneof![0u32..4, 60u32..70, 120u32..200],
        ) {
            let slot = WorkerSlot(slot);
            let mut without = SlotSet::default();
            for &held in slots.iter().filter(|&&held| held != slot.0) {
                without.insert(WorkerSlot(held));
            }
            let mut with = without.clone();
            with.insert(slot);
            prop_assert!(with.differs_only_by(&without, slot) && without.differs_only_by(&with, slot));
            prop_assert!(!with.differs_only_by(&with, slot));
            if another != slot.0 && with.insert(WorkerSlot(another)) {
                prop_assert!(!with.differs_only_by(&without, slot));
            }
        }
    }

    #[test]
    fn one_window_of_slots_takes_no_heap() {
        let mut set = SlotSet::only(WorkerSlot(4095));
        set.insert(WorkerSlot(4032));
        assert_eq!(set.heap_bytes(), 0);
        set.insert(WorkerSlot(0));
        assert_eq!(set.heap_bytes(), 64 * 8 + ALLOCATION_OVERHEAD);
        set.remove(WorkerSlot(0));
        assert_eq!(set.heap_bytes(), 0);
    }
}
