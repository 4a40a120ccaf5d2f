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
    gone: VecDeque<u32>,
    reusable: usize,
    swept_next: usize,
    /// A bit for each number: set while a strand is gone and its number not given again.
    gone_bits: Vec<u64>,
}

impl Strands {
    /// An empty strand, and its number. It must not be left empty: [`take_back`](Self::take_back) it then.
    pub(crate) fn give(&mut self) -> usize {
        if self.reusable > 0
            && let Some(id) = self.gone.pop_front()
        {
            self.reusable -= 1;
            self.gone_bits[id as usize / 64] &= !(1 << (id % 64));
            return id as usize;
        }
        if self.all.len() == self.all.capacity() {
            self.all.reserve_exact(self.reserve());
            // Paid for here: a removal that frees strands must not take memory.
            let waiting = self.all.capacity() - self.gone.len();
            self.gone.reserve_exact(waiting);
        }
        self.all.push(Strand::default());
        self.gone_bits.resize(self.all.len().div_ceil(64), 0);
        self.all.len() - 1
    }

    /// A strand just given, that got no block.
    pub(crate) fn take_back(&mut self, id: usize) {
        self.all[id] = Strand::default();
        self.gone.push_front(id as u32);
        self.gone_bits[id / 64] |= 1 << (id % 64);
        self.reusable += 1;
    }

    /// Empties a strand whose blocks the place map still leads to.
    pub(crate) fn retire(&mut self, id: usize) {
        self.all[id] = Strand::default();
        self.gone.push_back(id as u32);
        self.gone_bits[id / 64] |= 1 << (id % 64);
    }

    /// Whether the place map may lead to a strand that is gone.
    pub(crate) fn any_gone(&self) -> bool {
        self.gone.len() > self.reusable
    }

    /// Tells of a number whether its strand is gone; of one never given, anything. Without a branch, for sweeping.
    pub(crate) fn gone(&self) -> impl Fn(usize) -> bool {
        let last = self.gone_bits.len().saturating_sub(1);
        let bits = &self.gone_bits;
        move |id| {
            bits.get((id / 64).min(last))
                .is_some_and(|bits| bits >> (id % 64) & 1 == 1)
        }
    }

    /// All shards of the place map were swept once more.
    pub(crate) fn round_ended(&mut self) {
        self.reusable += self.swept_next;
        self.swept_next = self.gone.len() - self.reusable;
    }

    pub(crate) fn get_mut(&mut self, id: usize) -> &mut Strand {
        &mut self.all[id]
    }

    pub(crate) fn bytes(&self) -> usize {
        self.all.capacity() * size_of::<Strand>()
            + self.gone.capacity() * size_of::<u32>()
            + self.gone_bits.capacity() * size_of::<u64>()
    }

    /// The most memory that [`give`](Self::give) can take.
    pub(crate) fn give_bytes(&self) -> usize {
        if self.all.len() < self.all.capacity() {
            return 0;
        }
        // Vectors of words double.
        let bits = self.gone_bits.capacity().max(8) * size_of::<u64>();
        self.reserve() * (size_of::<Strand>() + size_of::<u32>()) + bits
    }

    /// Numbers that the next strands may get.
    #[cfg(test)]
    pub(crate) fn reusable(&self) -> impl Iterator<Item = usize> {
        self.gone.iter().take(self.reusable).map(|&id| id as usize)
    }

    /// Grows by an eighth: large allocations are extended in place, and half-empty ones are memory wasted.
    fn reserve(&self) -> usize {
        (self.all.len() / 8).max(64)
    }
}

impl Deref for Strands {
    type Target = [Strand];

    fn deref(&self) -> &[Strand] {
        &self.all
    }
}
