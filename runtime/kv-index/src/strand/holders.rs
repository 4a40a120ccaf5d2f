//! The holders of a block, by tier.

use signalbox_protocol::CacheTier;

use crate::{ALLOCATION_OVERHEAD, WorkerSlot, slot_set::SlotSet};

/// The workers that hold a block, for each tier.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holders {
    device: SlotSet,
    /// Host and disk; `None` if both sets are empty, as with most engines.
    lower: Option<Box<[SlotSet; 2]>>,
}

impl Holders {
    pub(super) fn only(worker: WorkerSlot, tier: CacheTier) -> Self {
        let mut holders = Self::default();
        holders.set(worker, tier, true);
        holders
    }

    /// The holders on a tier; `None` is the empty set.
    pub(crate) fn on(&self, tier: CacheTier) -> Option<&SlotSet> {
        match tier {
            CacheTier::Device => Some(&self.device),
            CacheTier::Host => self.lower.as_ref().map(|lower| &lower[0]),
            CacheTier::Disk => self.lower.as_ref().map(|lower| &lower[1]),
        }
    }

    /// The workers that hold the block on any tier. A worker that holds it on two tiers comes twice.
    pub(super) fn workers(&self) -> impl Iterator<Item = WorkerSlot> {
        CacheTier::ALL
            .into_iter()
            .filter_map(|tier| self.on(tier))
            .flat_map(SlotSet::slots)
    }

    /// The worker that alone holds the block on the device tier.
    pub(super) fn single_on_device(&self) -> Option<WorkerSlot> {
        self.device.single()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.device.is_empty() && self.lower.is_none()
    }

    pub(super) fn holds(&self, worker: WorkerSlot) -> bool {
        CacheTier::ALL
            .iter()
            .any(|&tier| self.on(tier).is_some_and(|set| set.contains(worker)))
    }

    pub(super) fn are_only(&self, worker: WorkerSlot, tier: CacheTier) -> bool {
        match (&self.lower, tier) {
            (None, CacheTier::Device) => self.device.is_only(worker),
            (None, _) => false,
            (Some(_), _) => *self == Self::only(worker, tier),
        }
    }

    /// Whether `other` and these holders are equal except for `worker` on `tier`. Also false below the device tier, where
    /// the comparison is not cheap.
    pub(super) fn differ_only_by(&self, other: &Self, worker: WorkerSlot, tier: CacheTier) -> bool {
        tier == CacheTier::Device
            && self.device.differs_only_by(&other.device, worker)
            && self.lower == other.lower
    }

    /// Adds or removes a worker. Returns whether that changed the set.
    pub(super) fn set(&mut self, worker: WorkerSlot, tier: CacheTier, held: bool) -> bool {
        let change = |set: &mut SlotSet| {
            if held {
                set.insert(worker)
            } else {
                set.remove(worker)
            }
        };
        let index = match tier {
            CacheTier::Device => return change(&mut self.device),
            CacheTier::Host => 0,
            CacheTier::Disk => 1,
        };
        let changed = match &mut self.lower {
            Some(lower) => change(&mut lower[index]),
            None if held => change(&mut self.lower.insert(Box::default())[index]),
            None => false,
        };
        if self
            .lower
            .as_ref()
            .is_some_and(|lower| lower.iter().all(SlotSet::is_empty))
        {
            self.lower = None;
        }
        changed
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let lower = self.lower.as_ref().map_or(0, |lower| {
            size_of_val(&**lower) + ALLOCATION_OVERHEAD + lower.iter().map(SlotSet::heap_bytes).sum::<usize>()
        });
        self.device.heap_bytes() + lower
    }

    pub(super) fn max_heap_bytes(slots: usize) -> usize {
        3 * SlotSet::max_heap_bytes(slots) + size_of::<[SlotSet; 2]>() + ALLOCATION_OVERHEAD
    }
}
