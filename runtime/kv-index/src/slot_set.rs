//! Sets of worker slots.
//!
//! Most blocks have one holder, and blocks of shared prompts have many. A set within one aligned window of 64 slots,
//! above all a single slot, is stored inline. A wider set is a boxed slice of words.

use crate::{ALLOCATION_OVERHEAD, WorkerSlot};

/// A set of slots, in a canonical form: equal sets compare equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SlotSet {
    /// The set of which only the word at `index` has bits. The empty set is `index: 0, bits: 0`.
    Word { index: u32, bits: u64 },
    /// All words up to the last one with bits. At least two words have bits.
    Words(Box<[u64]>),
}

impl Default for SlotSet {
    fn default() -> Self {
        Self::Word { index: 0, bits: 0 }
    }
}

impl SlotSet {
    pub(crate) fn only(slot: WorkerSlot) -> Self {
        let (index, bit) = split(slot);
        Self::Word {
            index: index as u32,
            bits: bit,
        }
    }

    pub(crate) fn is_only(&self, slot: WorkerSlot) -> bool {
        let (place, bit) = split(slot);
        matches!(self, Self::Word { index, bits } if *index as usize == place && *bits == bit)
    }

    /// The slot of a set that has exactly one.
    pub(crate) fn single(&self) -> Option<WorkerSlot> {
        match self {
            Self::Word { index, bits } if bits.is_power_of_two() => {
                Some(WorkerSlot(index * 64 + bits.trailing_zeros()))
            }
            _ => None,
        }
    }

    /// The slots in ascending order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = WorkerSlot> {
        (0..self.words()).flat_map(|index| {
            let mut bits = self.word(index);
            std::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros())?;
                bits &= bits - 1;
                Some(WorkerSlot(index as u32 * 64 + bit))
            })
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Word { bits: 0, .. })
    }

    /// The bits of the 64 slots from `64 * index` on.
    pub(crate) fn word(&self, index: usize) -> u64 {
        match self {
            Self::Word { index: only, bits } if *only as usize == index => *bits,
            Self::Word { .. } => 0,
            Self::Words(words) => words.get(index).copied().unwrap_or(0),
        }
    }

    pub(crate) fn contains(&self, slot: WorkerSlot) -> bool {
        let (index, bit) = split(slot);
        self.word(index) & bit != 0
    }

    /// Adds a slot. False if the set has the slot already.
    pub(crate) fn insert(&mut self, slot: WorkerSlot) -> bool {
        if self.contains(slot) {
            return false;
        }
        let (index, bit) = split(slot);
        match self {
            Self::Word { bits: 0, .. } => *self = Self::only(slot),
            Self::Word { index: only, bits } if *only as usize == index => *bits |= bit,
            Self::Word { index: only, bits } => {
                let mut words = vec![0; index.max(*only as usize) + 1];
                words[*only as usize] = *bits;
                words[index] = bit;
                *self = Self::Words(words.into());
            }
            Self::Words(words) if index < words.len() => words[index] |= bit,
            Self::Words(words) => {
                let mut longer = vec![0; index + 1];
                longer[..words.len()].copy_from_slice(words);
                longer[index] = bit;
                *words = longer.into();
            }
        }
        true
    }

    /// Removes a slot. False if the set does not have the slot.
    pub(crate) fn remove(&mut self, slot: WorkerSlot) -> bool {
        if !self.contains(slot) {
            return false;
        }
        let (index, bit) = split(slot);
        match self {
            Self::Word { bits, .. } => {
                *bits &= !bit;
                if *bits == 0 {
                    *self = Self::default();
                }
            }
            Self::Words(words) => {
                words[index] &= !bit;
                if words[index] == 0 {
                    self.make_canonical();
                }
            }
        }
        true
    }

    /// Whether exactly one of the two sets has `slot`, and they are equal otherwise.
    pub(crate) fn differs_only_by(&self, other: &Self, slot: WorkerSlot) -> bool {
        let (index, bit) = split(slot);
        match (self, other) {
            // All words, without a branch in between.
            (Self::Words(a), Self::Words(b)) if a.len() == b.len() => {
                let differ: u32 = a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum();
                differ == 1 && self.word(index) ^ other.word(index) == bit
            }
            _ => {
                let words = self.words().max(other.words()).max(index + 1);
                (0..words).all(|word| {
                    let differ = self.word(word) ^ other.word(word);
                    differ == if word == index { bit } else { 0 }
                })
            }
        }
    }

    /// Number of words up to the last one with bits.
    fn words(&self) -> usize {
        match self {
            Self::Word { index, .. } => *index as usize + 1,
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

    /// The most heap bytes of a set of slots below `slots`.
    pub(crate) fn max_heap_bytes(slots: usize) -> usize {
        slots.div_ceil(64) * size_of::<u64>() + ALLOCATION_OVERHEAD
    }

    /// Restores the canonical form after a word of `Words` became 0.
    fn make_canonical(&mut self) {
        let Self::Words(words) = self else { return };
        let mut used = words.iter().enumerate().filter(|(_, bits)| **bits != 0);
        match (used.next(), used.next_back()) {
            (Some((index, &bits)), None) => {
                *self = Self::Word {
                    index: index as u32,
                    bits,
                }
            }
            (Some(_), Some((last, _))) if last + 1 < words.len() => *words = words[..=last].into(),
            _ => {}
        }
    }
}

/// The index of a slot's word, and the slot's bit there.
fn split(slot: WorkerSlot) -> (usize, u64) {
    ((slot.0 / 64) as usize, 1 << (slot.0 % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// For any history the content is right, and sets of the same slots compare equal, as segments need it.
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
            let slots: Vec<u32> = set.slots().map(|slot| slot.0).collect();
            prop_assert_eq!(&slots, &model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.single(), if let [slot] = slots[..] { Some(WorkerSlot(slot)) } else { None });
            let listed: Vec<u32> = (0..4300).filter(|&slot| set.contains(WorkerSlot(slot))).collect();
            prop_assert_eq!(listed, model.into_iter().collect::<Vec<_>>());
        }
    }

    proptest! {
        #[test]
        fn differs_only_by_holds_for_exactly_one_slot(
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
