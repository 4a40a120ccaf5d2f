//! A strand: blocks side by side, with their holders.
//!
//! The blocks of a strand need not be a whole chain. The place map finds each block, and neighbours only save more
//! visits to the map. So a strand may lose blocks from its middle, and it may contain unheld blocks, which no worker
//! holds, until it is compacted.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use signalbox_protocol::{CacheTier, SequenceHash};

use crate::{ALLOCATION_OVERHEAD, WorkerSlot};

mod holders;

pub(crate) use holders::Holders;

/// Bounds the cost of one change of a strand, and the memory that an unfilled strand wastes. At 256 blocks the 100 bytes
/// of the strand itself are negligible.
pub(crate) const MAX_STRAND_BLOCKS: usize = 256;

/// Hashes compared without a branch: two cache lines.
const COMPARED_AT_ONCE: usize = 16;

/// How much too old a strand may seem that a lookup has used, in ticks of the index's clock. An index that is full has
/// far more events than this.
const LOOKUP_PRECISION: u32 = 64;

/// Up to [`MAX_STRAND_BLOCKS`] blocks and their holders.
#[derive(Debug, Default)]
pub(crate) struct Strand {
    hashes: Vec<SequenceHash>,
    /// In order of their starts, the first at 0. Neighbours have different holders.
    segments: Vec<Segment>,
    /// The index's clock when a store or a lookup last used the strand. Lookups, which run side by side, change it too.
    last_use: AtomicU32,
}

/// Blocks from `start` to the next segment, all with the same holders.
#[derive(Debug, Clone)]
struct Segment {
    start: u16,
    holders: Holders,
}

/// The effect of a change of a strand.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    /// Memberships added or removed, by [`CacheTier::index`].
    pub(crate) memberships: [usize; 3],
    /// Sums of the hashes of those, modulo 2^64.
    pub(crate) sums: [u64; 3],
    /// Blocks that got their first holder or lost their last one.
    pub(crate) blocks: usize,
}

impl Strand {
    pub(crate) fn len(&self) -> usize {
        self.hashes.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() >= MAX_STRAND_BLOCKS
    }

    pub(crate) fn hash(&self, offset: usize) -> Option<SequenceHash> {
        self.hashes.get(offset).copied()
    }

    /// How many of `blocks` lie in this strand from `offset` on, in their order.
    pub(crate) fn run_after(&self, offset: usize, blocks: &[SequenceHash]) -> usize {
        let here = &self.hashes[offset..];
        // Whole groups without a branch in them, which the compiler turns into vector instructions.
        let equal = |(here, wanted): &(&[SequenceHash], &[SequenceHash])| {
            here.iter()
                .zip(*wanted)
                .fold(0, |differ, (here, wanted)| differ | (here.0 ^ wanted.0))
                == 0
        };
        let groups = here
            .chunks_exact(COMPARED_AT_ONCE)
            .zip(blocks.chunks_exact(COMPARED_AT_ONCE));
        let same = groups.take_while(equal).count() * COMPARED_AT_ONCE;
        let rest = here[same..].iter().zip(&blocks[same..]);
        same + rest.take_while(|(here, wanted)| here == wanted).count()
    }

    /// How many of `blocks` lie in this strand from `offset` backwards. Evictions often list blocks in this order.
    pub(crate) fn run_before(&self, offset: usize, blocks: &[SequenceHash]) -> usize {
        self.hashes[..=offset]
            .iter()
            .rev()
            .zip(blocks)
            .take_while(|(here, wanted)| here == wanted)
            .count()
    }

    /// The holders of the blocks in `range`, segment by segment, each with the segment's number of blocks in the range.
    pub(crate) fn holders(&self, range: Range<usize>) -> impl Iterator<Item = (usize, &Holders)> {
        (self.segment_at(range.start)..self.segments.len())
            .map(move |index| {
                let span = self.span(index);
                let blocks = span
                    .end
                    .min(range.end)
                    .saturating_sub(span.start.max(range.start));
                (blocks, &self.segments[index].holders)
            })
            .take_while(|(blocks, _)| *blocks > 0)
    }

    pub(crate) fn holds(&self, worker: WorkerSlot) -> bool {
        self.segments.iter().any(|segment| segment.holders.holds(worker))
    }

    /// The blocks that `worker` holds on `tier`.
    #[cfg(test)]
    pub(crate) fn blocks_of(
        &self,
        worker: WorkerSlot,
        tier: CacheTier,
    ) -> impl Iterator<Item = SequenceHash> {
        (0..self.segments.len())
            .filter(move |&index| {
                self.segments[index]
                    .holders
                    .on(tier)
                    .is_some_and(|set| set.contains(worker))
            })
            .flat_map(|index| self.hashes[self.span(index)].iter().copied())
    }

    /// A store uses the strand at this time of the index's clock.
    pub(crate) fn touch(&self, now: u32) {
        self.last_use.store(now, Relaxed);
    }

    /// A lookup uses the strand. Writes only if the last use is some time ago, because each write takes the cache line
    /// from the lookups of other threads.
    pub(crate) fn touch_in_lookup(&self, now: u32) {
        if self.age(now) >= LOOKUP_PRECISION {
            self.touch(now);
        }
    }

    /// The time since the last use. A lookup's use may count as earlier, by less than [`LOOKUP_PRECISION`].
    pub(crate) fn age(&self, now: u32) -> u32 {
        now.wrapping_sub(self.last_use.load(Relaxed))
    }

    /// The worker that alone holds the first blocks of the strand on the device tier.
    pub(crate) fn single_holder(&self) -> Option<WorkerSlot> {
        self.segments.first()?.holders.single_on_device()
    }

    /// All workers that hold a block of the strand.
    pub(crate) fn workers(&self) -> BTreeSet<WorkerSlot> {
        self.segments
            .iter()
            .flat_map(|segment| segment.holders.workers())
            .collect()
    }

    pub(crate) fn hashes(&self) -> &[SequenceHash] {
        &self.hashes
    }

    /// Appends a block. `coming` is about how many blocks will be appended, this one included. The block has the
    /// holders of the last block, or `holder` alone. Returns the heap bytes added.
    pub(crate) fn push(
        &mut self,
        hash: SequenceHash,
        coming: usize,
        holder: Option<(WorkerSlot, CacheTier)>,
    ) -> usize {
        debug_assert!(!self.is_full() && (holder.is_some() || self.len() > 0));
        let mut grown = 0;
        if self.hashes.len() == self.hashes.capacity() {
            if self.hashes.capacity() == 0 {
                grown += 2 * ALLOCATION_OVERHEAD;
            }
            self.hashes.reserve_exact(self.push_reserve(coming));
            grown += (self.hashes.capacity() - self.hashes.len()) * size_of::<SequenceHash>();
        }
        if let Some((worker, tier)) = holder {
            let capacity = self.segments.capacity();
            let holders = Holders::only(worker, tier);
            grown += holders.heap_bytes();
            self.segments.reserve_exact(1);
            self.segments.push(Segment {
                start: self.hashes.len() as u16,
                holders,
            });
            grown += (self.segments.capacity() - capacity) * size_of::<Segment>();
        }
        self.hashes.push(hash);
        grown
    }

    /// The most heap bytes that a [`push`](Self::push) can add; `continues` if the push has no holder.
    pub(crate) fn push_bytes(&self, coming: usize, continues: bool) -> usize {
        let mut bytes = 0;
        if self.hashes.len() == self.hashes.capacity() {
            bytes += self.push_reserve(coming) * size_of::<SequenceHash>() + ALLOCATION_OVERHEAD;
        }
        if !continues {
            bytes += size_of::<Segment>() + Holders::max_heap_bytes(1) + ALLOCATION_OVERHEAD;
        }
        bytes
    }

    /// Grows by half, so that at most a third of the capacity is unused, or by the blocks known to come if they are more.
    fn push_reserve(&self, coming: usize) -> usize {
        (self.len() / 2)
            .max(coming)
            .max(4)
            .min(MAX_STRAND_BLOCKS - self.len())
    }

    /// Whether `worker`, on `tier`, is the only holder of the last block.
    pub(crate) fn ends_with_only(&self, worker: WorkerSlot, tier: CacheTier) -> bool {
        self.segments
            .last()
            .is_some_and(|last| last.holders.are_only(worker, tier))
    }

    /// Sets whether `worker` holds the blocks of `range` on `tier`.
    pub(crate) fn set(
        &mut self,
        range: Range<usize>,
        worker: WorkerSlot,
        tier: CacheTier,
        held: bool,
    ) -> Change {
        let holds = |holders: &Holders| holders.on(tier).is_some_and(|set| set.contains(worker));
        if self
            .holders(range.clone())
            .all(|(_, holders)| holds(holders) == held)
        {
            return Change::default();
        }
        if let Some(change) = self.move_boundary(&range, worker, tier, held) {
            return change;
        }
        let (first, last) = (self.cut(range.start), self.cut(range.end));
        let change = self.update(first..last, |holders| {
            let mut flipped = [false; 3];
            flipped[tier.index()] = holders.set(worker, tier, held);
            flipped
        });
        self.join(first.saturating_sub(1)..last + 1);
        change
    }

    /// Applies the most frequent change without copying a set: events mostly report the blocks of a chain in order, so
    /// that the blocks at the start of a segment get the holders of the segment before, and the boundary between the two
    /// segments moves. `None` for any other change.
    fn move_boundary(
        &mut self,
        range: &Range<usize>,
        worker: WorkerSlot,
        tier: CacheTier,
        held: bool,
    ) -> Option<Change> {
        let index = self.segment_at(range.start);
        let span = self.span(index);
        if index == 0 || span.start != range.start || range.end >= span.end {
            return None;
        }
        let (before, here) = (&self.segments[index - 1].holders, &self.segments[index].holders);
        let has = |holders: &Holders| holders.on(tier).is_some_and(|set| set.contains(worker));
        if has(before) != held || !before.differ_only_by(here, worker, tier) {
            return None;
        }
        let mut change = Change::default();
        change.memberships[tier.index()] = range.len();
        change.sums[tier.index()] = sum_of(&self.hashes[range.clone()]);
        if before.is_empty() != here.is_empty() {
            change.blocks = range.len();
        }
        self.segments[index].start = range.end as u16;
        Some(change)
    }

    /// The most heap bytes that a [`set`](Self::set) can add, for workers below slot `slots`.
    pub(crate) fn set_bytes(&self, slots: usize) -> usize {
        let segment = size_of::<Segment>() + Holders::max_heap_bytes(slots);
        (self.segments.len() + 2) * segment + ALLOCATION_OVERHEAD
    }

    /// `range`, extended to whole segments. A [`set`](Self::set) of the result cuts no segment.
    pub(crate) fn whole_segments(&self, range: Range<usize>) -> Range<usize> {
        self.span(self.segment_at(range.start)).start..self.span(self.segment_at(range.end - 1)).end
    }

    /// Removes `worker` from the holders of every block, on all tiers.
    pub(crate) fn remove_worker(&mut self, worker: WorkerSlot) -> Change {
        let change = self.update(0..self.segments.len(), |holders| {
            CacheTier::ALL.map(|tier| holders.set(worker, tier, false))
        });
        self.join(0..self.segments.len());
        change
    }

    /// Number of blocks that no worker holds.
    pub(crate) fn unheld(&self) -> usize {
        let empty = |index: &usize| self.segments[*index].holders.is_empty();
        (0..self.segments.len())
            .filter(empty)
            .map(|index| self.span(index).len())
            .sum()
    }

    /// Drops the unheld blocks and closes the gaps. Calls `moved` with each block, its old offset, and its new offset or
    /// `None` for a dropped block.
    pub(crate) fn compact(&mut self, mut moved: impl FnMut(SequenceHash, usize, Option<usize>)) {
        let mut hashes = Vec::with_capacity(self.len() - self.unheld());
        let mut segments = Vec::new();
        for index in 0..self.segments.len() {
            let (span, segment) = (self.span(index), &self.segments[index]);
            let is_held = !segment.holders.is_empty();
            if is_held {
                segments.push(Segment {
                    start: hashes.len() as u16,
                    holders: segment.holders.clone(),
                });
            }
            for offset in span {
                let hash = self.hashes[offset];
                moved(hash, offset, is_held.then_some(hashes.len()));
                if is_held {
                    hashes.push(hash);
                }
            }
        }
        (self.hashes, self.segments) = (hashes, segments);
        self.join(0..self.segments.len());
        self.segments.shrink_to_fit();
    }

    /// Heap bytes, the allocator's share included.
    pub(crate) fn heap_bytes(&self) -> usize {
        if self.hashes.capacity() == 0 {
            return 0;
        }
        let sets: usize = self
            .segments
            .iter()
            .map(|segment| segment.holders.heap_bytes())
            .sum();
        let hashes = self.hashes.capacity() * size_of::<SequenceHash>();
        hashes + self.segments.capacity() * size_of::<Segment>() + sets + 2 * ALLOCATION_OVERHEAD
    }

    /// The offsets of a segment.
    fn span(&self, index: usize) -> Range<usize> {
        let end = self
            .segments
            .get(index + 1)
            .map_or(self.hashes.len(), |next| next.start as usize);
        self.segments[index].start as usize..end
    }

    /// The segment that `offset` lies in.
    fn segment_at(&self, offset: usize) -> usize {
        self.segments
            .partition_point(|segment| segment.start as usize <= offset)
            .saturating_sub(1)
    }

    /// Makes a segment begin at `offset` and returns its index; past the end, the number of segments.
    fn cut(&mut self, offset: usize) -> usize {
        if offset >= self.hashes.len() {
            return self.segments.len();
        }
        let index = self.segment_at(offset);
        if self.segments[index].start as usize == offset {
            return index;
        }
        let holders = self.segments[index].holders.clone();
        self.segments.reserve_exact(1);
        self.segments.insert(
            index + 1,
            Segment {
                start: offset as u16,
                holders,
            },
        );
        index + 1
    }

    /// Applies `change` to the holders of whole segments. `change` returns on which tiers it changed the set.
    fn update(
        &mut self,
        segments: Range<usize>,
        mut change: impl FnMut(&mut Holders) -> [bool; 3],
    ) -> Change {
        let mut total = Change::default();
        for index in segments {
            let span = self.span(index);
            let blocks = span.len();
            let holders = &mut self.segments[index].holders;
            let was_unheld = holders.is_empty();
            for (tier, flipped) in change(holders).into_iter().enumerate() {
                if flipped {
                    total.memberships[tier] += blocks;
                    total.sums[tier] = total.sums[tier].wrapping_add(sum_of(&self.hashes[span.clone()]));
                }
            }
            total.blocks += if was_unheld != holders.is_empty() {
                blocks
            } else {
                0
            };
        }
        total
    }

    /// Joins those neighbours among `segments` that have equal holders.
    fn join(&mut self, segments: Range<usize>) {
        let end = segments.end.min(self.segments.len());
        for index in (segments.start + 1..end).rev() {
            if self.segments[index - 1].holders == self.segments[index].holders {
                self.segments.remove(index);
            }
        }
    }
}

/// The sum of hashes, modulo 2^64. One pass that the compiler turns into vector instructions.
pub(crate) fn sum_of(blocks: &[SequenceHash]) -> u64 {
    blocks.iter().fold(0, |sum, block| sum.wrapping_add(block.0))
}
