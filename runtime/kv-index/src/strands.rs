//! All strands, by number.
//!
//! The place map may lead to a strand for a while after it is gone, so its number waits before it is given to another:
//! until every shard of the map was swept since.

use std::{collections::VecDeque, ops::Deref};

use crate::strand::Strand;

/// Dereferences to the strands by number; those without blocks are gone.
#[derive(Debug, Default)]
pub(crate) struct Strands {
    all: Vec<Strand>,
    /// Numbers of those that are gone: first `reusable`, then those gone before this round of sweeping began
    /// (`swept_next`), then those of this round.
    waiting: VecDeque<u32>,
    reusable: usize,
    swept_next: usize,
    /// A bit for each number, set while it waits.
    waiting_bits: Vec<u64>,
}

impl Strands {
    /// An empty strand, and its number. It must not be left empty: [`take_back`](Self::take_back) it then.
    pub(crate) fn give(&mut self) -> usize {
        if self.reusable > 0
            && let Some(id) = self.waiting.pop_front()
        {
            self.reusable -= 1;
            self.waiting_bits[id as usize / 64] &= !(1 << (id % 64));
            return id as usize;
        }
        if self.all.len() == self.all.capacity() {
            self.all.reserve_exact(self.reserve());
            // Paid for here: a removal that frees strands must not take memory.
            let room = self.all.capacity();
            self.waiting.reserve_exact(room - self.waiting.len());
            let bits = room.div_ceil(64);
            self.waiting_bits.reserve_exact(bits - self.waiting_bits.len());
            self.waiting_bits.resize(bits, 0);
        }
        self.all.push(Strand::default());
        self.all.len() - 1
    }

    /// A strand just given, that got no block.
    pub(crate) fn take_back(&mut self, id: usize) {
        debug_assert!(self.all[id].len() == 0);
        self.waiting.push_front(id as u32);
        self.waiting_bits[id / 64] |= 1 << (id % 64);
        self.reusable += 1;
    }

    /// Empties a strand whose blocks the place map still leads to.
    pub(crate) fn retire(&mut self, id: usize) {
        self.all[id] = Strand::default();
        self.waiting.push_back(id as u32);
        self.waiting_bits[id / 64] |= 1 << (id % 64);
    }

    /// Whether the place map may lead to a strand that is gone.
    pub(crate) fn any_gone(&self) -> bool {
        self.waiting.len() > self.reusable
    }

    /// Tells of a number whether its strand is gone; of one never given, anything. Without a branch, for sweeping.
    pub(crate) fn is_gone(&self) -> impl Fn(usize) -> bool {
        let last = self.waiting_bits.len().saturating_sub(1);
        let bits = &self.waiting_bits;
        move |id| {
            bits.get((id / 64).min(last))
                .is_some_and(|bits| bits >> (id % 64) & 1 == 1)
        }
    }

    /// All shards of the place map were swept once more.
    pub(crate) fn round_ended(&mut self) {
        self.reusable += self.swept_next;
        self.swept_next = self.waiting.len() - self.reusable;
    }

    pub(crate) fn get_mut(&mut self, id: usize) -> &mut Strand {
        &mut self.all[id]
    }

    pub(crate) fn bytes(&self) -> usize {
        self.all.capacity() * size_of::<Strand>()
            + self.waiting.capacity() * size_of::<u32>()
            + self.waiting_bits.capacity() * size_of::<u64>()
    }

    /// The most memory that [`give`](Self::give) can take.
    pub(crate) fn give_bytes(&self) -> usize {
        if self.reusable > 0 || self.all.len() < self.all.capacity() {
            return 0;
        }
        let grown = self.reserve();
        grown * (size_of::<Strand>() + size_of::<u32>()) + grown.div_ceil(64) * size_of::<u64>()
    }

    /// Grows by an eighth: large allocations are extended in place, and half-empty ones are memory wasted.
    fn reserve(&self) -> usize {
        (self.all.len() / 8).max(64)
    }

    /// Numbers that the next strands may get.
    #[cfg(test)]
    pub(crate) fn reusable(&self) -> impl Iterator<Item = usize> {
        self.waiting.iter().take(self.reusable).map(|&id| id as usize)
    }

    /// What always holds: exactly the strands without blocks wait, each once.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let waiting: std::collections::BTreeSet<_> = self.waiting.iter().map(|&id| id as usize).collect();
        assert_eq!(waiting.len(), self.waiting.len(), "no number waits twice");
        assert!(self.reusable + self.swept_next <= self.waiting.len());
        let is_gone = self.is_gone();
        for (id, strand) in self.all.iter().enumerate() {
            assert_eq!(waiting.contains(&id), strand.len() == 0, "strand {id}");
            assert_eq!(waiting.contains(&id), is_gone(id), "strand {id}");
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
    fn giving_takes_no_more_memory_than_it_said() {
        let (mut strands, mut alive) = (Strands::default(), Vec::new());
        for given in 0..5_000 {
            let (before, said) = (strands.bytes(), strands.give_bytes());
            let id = strands.give();
            let grown = strands.bytes() - before;
            assert!(grown <= said, "number {given}: {grown} bytes, {said} said");
            if given % 3 == 0 {
                strands.retire(id);
                strands.round_ended();
            } else {
                alive.push(id);
            }
        }
        let full = strands.bytes();
        alive.into_iter().for_each(|id| strands.retire(id));
        assert_eq!(strands.bytes(), full, "removing takes no memory");
    }
}
