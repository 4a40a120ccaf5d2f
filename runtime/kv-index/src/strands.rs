//! All strands, by number.
//!
//! After a strand is retired, slots of the place map still lead to its number. So the number is reused only after every
//! shard of the map has been swept.

use std::{collections::VecDeque, ops::Deref};

use crate::strand::Strand;

/// Dereferences to the strands by number. A strand without blocks is retired.
#[derive(Debug, Default)]
pub(crate) struct Strands {
    all: Vec<Strand>,
    /// Numbers of the retired strands: first `reusable` numbers that the map no longer leads to, then `swept_next` numbers
    /// retired before the current round of sweeping began, then the numbers retired in this round.
    retired: VecDeque<u32>,
    reusable: usize,
    swept_next: usize,
    /// A bit for each number, set while the strand is retired.
    retired_bits: Vec<u64>,
}

impl Strands {
    /// Allocates an empty strand and returns its number. A caller that adds no block must
    /// [give it back](Self::give_back). `room` is the memory that may be taken.
    pub(crate) fn allocate(&mut self, room: usize) -> usize {
        if self.reusable > 0
            && let Some(id) = self.retired.pop_front()
        {
            self.reusable -= 1;
            self.retired_bits[id as usize / 64] &= !(1 << (id % 64));
            return id as usize;
        }
        if self.all.len() == self.all.capacity() {
            self.all.reserve_exact(self.growth(room));
            // Reserved here, because a removal that retires strands must not take memory.
            let capacity = self.all.capacity();
            self.retired.reserve_exact(capacity - self.retired.len());
            let bits = capacity.div_ceil(64);
            self.retired_bits.reserve_exact(bits - self.retired_bits.len());
            self.retired_bits.resize(bits, 0);
        }
        self.all.push(Strand::default());
        self.all.len() - 1
    }

    /// Takes back a strand that was just allocated and got no block.
    pub(crate) fn give_back(&mut self, id: usize) {
        debug_assert!(self.all[id].len() == 0);
        self.retired.push_front(id as u32);
        self.retired_bits[id / 64] |= 1 << (id % 64);
        self.reusable += 1;
    }

    /// Empties a strand. The place map may still lead to its blocks.
    pub(crate) fn retire(&mut self, id: usize) {
        self.all[id] = Strand::default();
        self.retired.push_back(id as u32);
        self.retired_bits[id / 64] |= 1 << (id % 64);
    }

    /// Whether the place map may lead to a retired strand.
    pub(crate) fn any_retired(&self) -> bool {
        self.retired.len() > self.reusable
    }

    /// A function that returns whether the strand of a number is retired. For a number never allocated, the result is
    /// arbitrary. The function has no branch, for sweeping.
    pub(crate) fn is_retired(&self) -> impl Fn(usize) -> bool {
        let last = self.retired_bits.len().saturating_sub(1);
        let bits = &self.retired_bits;
        move |id| {
            bits.get((id / 64).min(last))
                .is_some_and(|bits| bits >> (id % 64) & 1 == 1)
        }
    }

    /// Notes that all shards of the place map have been swept once more.
    pub(crate) fn end_sweep_round(&mut self) {
        self.reusable += self.swept_next;
        self.swept_next = self.retired.len() - self.reusable;
    }

    pub(crate) fn get_mut(&mut self, id: usize) -> &mut Strand {
        &mut self.all[id]
    }

    pub(crate) fn bytes(&self) -> usize {
        self.all.capacity() * size_of::<Strand>()
            + self.retired.capacity() * size_of::<u32>()
            + self.retired_bits.capacity() * size_of::<u64>()
    }

    /// The most memory that [`allocate`](Self::allocate) can take.
    pub(crate) fn allocation_bytes(&self, room: usize) -> usize {
        if self.reusable > 0 || self.all.len() < self.all.capacity() {
            return 0;
        }
        let grown = self.growth(room);
        grown * (size_of::<Strand>() + size_of::<u32>()) + grown.div_ceil(64) * size_of::<u64>()
    }

    /// The number of strands to reserve: an eighth of those present. Allocators mostly extend large allocations in place,
    /// so small steps are cheap and waste less memory. In an index that is nearly full, as many as an eighth of the room
    /// holds: blocks need room too.
    fn growth(&self, room: usize) -> usize {
        (self.all.len() / 8).min(room / 8 / size_of::<Strand>()).max(64)
    }

    /// A strand of an arbitrary number, for each `number` another one; `None` if it is retired.
    pub(crate) fn sample(&self, number: u64) -> Option<usize> {
        let id = ((u128::from(number) * self.all.len() as u128) >> 64) as usize;
        (id < self.all.len() && !self.is_retired()(id)).then_some(id)
    }

    /// The numbers that the next strands may get.
    #[cfg(test)]
    pub(crate) fn reusable(&self) -> impl Iterator<Item = usize> {
        self.retired.iter().take(self.reusable).map(|&id| id as usize)
    }

    /// Checks the invariant: exactly the strands without blocks are retired, each once.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let retired: std::collections::BTreeSet<_> = self.retired.iter().map(|&id| id as usize).collect();
        assert_eq!(retired.len(), self.retired.len(), "no number is retired twice");
        assert!(self.reusable + self.swept_next <= self.retired.len());
        let is_retired = self.is_retired();
        for (id, strand) in self.all.iter().enumerate() {
            assert_eq!(retired.contains(&id), strand.len() == 0, "strand {id}");
            assert_eq!(retired.contains(&id), is_retired(id), "strand {id}");
        }
    }
}

impl Deref for Strands {
    type Target = [Strand];

    fn deref(&self) -> &[Strand] {
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocating_takes_no_more_memory_than_announced() {
        const ROOM: usize = 100_000;
        let (mut strands, mut in_use) = (Strands::default(), Vec::new());
        for number in 0..5_000 {
            let (before, announced) = (strands.bytes(), strands.allocation_bytes(ROOM));
            let id = strands.allocate(ROOM);
            let grown = strands.bytes() - before;
            assert!(
                grown <= announced,
                "strand {number}: {grown} bytes, {announced} announced"
            );
            if number % 3 == 0 {
                strands.retire(id);
                strands.end_sweep_round();
            } else {
                in_use.push(id);
            }
        }
        let full = strands.bytes();
        in_use.into_iter().for_each(|id| strands.retire(id));
        assert_eq!(strands.bytes(), full, "removing takes no memory");
    }
}
