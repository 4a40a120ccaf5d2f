//! The place map: from a block's hash to its place in a strand.
//!
//! The map is a hash table of eight-byte slots with linear probing. A lookup of a block mostly touches one cache line of
//! the table, which is most of what storing and removing the block costs. A slot holds a place and 24 bits of the
//! block's hash. The whole hash is stored once, in the strand. A slot's home index follows from the slot's own bits, so a
//! table grows and shrinks in one pass over its memory and reads no strand.
//!
//! The table is split into shards that grow one at a time. A single table of ten million blocks would stop the readers
//! for some ten milliseconds while it grows; a shard takes a tenth of a millisecond.
//!
//! The blocks of a retired strand are not removed one by one, because each removal costs a visit to memory. Their slots
//! lead to a retired strand, which a search recognises. Sweeps clear these slots, shard by shard. The number of a retired
//! strand is not reused before all shards have been swept.

use std::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;
use signalbox_protocol::SequenceHash;

use crate::strands::Strands;

mod place;
mod shard;

pub(crate) use place::Place;
use shard::Shard;

/// Enough shards that the growth of one is short, and few enough that the empty shards, of 8 KiB in all, do not matter.
const SHARDS: usize = 256;

/// Slots to sweep for each block of a retired strand. So about a quarter of all slots, at most, lead to retired strands,
/// and clearing a block's slot costs some nanoseconds.
const SWEPT_PER_BLOCK: usize = 4;

/// A block's shard and its tag there, which are different bits of the block's hash.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotKey {
    shard: usize,
    tag: u32,
}

#[derive(Debug)]
pub(crate) struct PlaceMap {
    shards: Vec<Shard>,
    /// The shard where the sweep continues.
    sweep_cursor: usize,
    /// Number of slots that are due for sweeping.
    sweep_due: usize,
    /// Seeded, so that a client cannot choose prompts whose blocks all fall into one shard or one run of slots.
    hasher: DefaultHashBuilder,
    shard_bytes: usize,
}

impl PlaceMap {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            sweep_cursor: 0,
            sweep_due: 0,
            hasher: DefaultHashBuilder::default(),
            shard_bytes: 0,
        }
    }

    pub(crate) fn find(&self, block: SequenceHash, strands: &Strands) -> Option<Place> {
        let SlotKey { shard, tag } = self.slot_key(block);
        self.shards[shard].find(tag, |place| lies_at(block, place, strands))
    }

    /// Brings the slots of `blocks` into the processor's cache. The reads do not depend on each other, so the processor
    /// waits for all of them together and not for one after the other.
    pub(crate) fn prefetch(&self, blocks: impl IntoIterator<Item = SequenceHash>) {
        let slots = blocks.into_iter().map(|block| {
            let SlotKey { shard, tag } = self.slot_key(block);
            self.shards[shard].home_slot(tag)
        });
        std::hint::black_box(slots.fold(0, |all, slot| all ^ slot));
    }

    /// Adds a block under its key. If the map has the block already, returns its place and changes nothing.
    pub(crate) fn insert(
        &mut self,
        SlotKey { shard, tag }: SlotKey,
        block: SequenceHash,
        place: Place,
        strands: &Strands,
    ) -> Option<Place> {
        self.resizing(shard, |shard| {
            if shard.is_full() && strands.any_retired() {
                shard.sweep(strands.is_retired());
            }
            shard.insert(
                tag,
                place,
                |place| lies_at(block, place, strands),
                strands.is_retired(),
            )
        })
    }

    /// Changes the place of a block. Reads no strand, so the strands may be in the middle of a change.
    pub(crate) fn relocate(&mut self, block: SequenceHash, old: Place, new: Place) {
        let SlotKey { shard, tag } = self.slot_key(block);
        self.shards[shard].replace(tag, old, new);
    }

    /// Removes a block, and shrinks its shard if that became sparse. Reads no strand.
    pub(crate) fn remove(&mut self, block: SequenceHash, old: Place) {
        let SlotKey { shard, tag } = self.slot_key(block);
        self.resizing(shard, |shard| shard.remove(tag, old));
    }

    /// Makes slots due for [sweeping](Self::sweep) after a strand of `blocks` blocks was retired. At most the whole table
    /// becomes due.
    pub(crate) fn schedule_sweep(&mut self, blocks: usize) {
        // A visit to a shard without slots counts as one slot.
        let whole = self.shard_bytes / size_of::<u64>() + SHARDS;
        self.sweep_due = (self.sweep_due + blocks * SWEPT_PER_BLOCK).min(whole);
    }

    /// Whether slots are due for [sweeping](Self::sweep).
    pub(crate) fn is_sweep_due(&self) -> bool {
        self.sweep_due > 0
    }

    /// Sweeps the slots that are due: at most `most`, and not past the end of a round through all shards. Returns whether
    /// a round ended.
    pub(crate) fn sweep(&mut self, most: usize, strands: &Strands) -> bool {
        let end = self.sweep_due.saturating_sub(most);
        while self.sweep_due > end {
            let most = self.sweep_due - end;
            let sweep = |shard: &mut Shard| shard.continue_sweep(most, strands.is_retired());
            let (swept, reached_end) = self.resizing(self.sweep_cursor, sweep);
            self.sweep_due -= swept.max(1);
            if reached_end {
                self.sweep_cursor = (self.sweep_cursor + 1) % SHARDS;
                if self.sweep_cursor == 0 {
                    return true;
                }
            }
        }
        false
    }

    /// Removes all blocks.
    pub(crate) fn clear(&mut self) {
        self.shards.fill_with(Shard::default);
        (self.sweep_cursor, self.sweep_due, self.shard_bytes) = (0, 0, 0);
    }

    /// The places of all slots, those in retired strands included.
    #[cfg(test)]
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        self.shards.iter().flat_map(Shard::places)
    }

    /// The most memory that inserting a block can take. While a shard grows, its old slots exist beside the new ones.
    pub(crate) fn insert_bytes(&self, slot_key: SlotKey) -> usize {
        self.shards[slot_key.shard].insert_bytes()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.shards.capacity() * size_of::<Shard>() + self.shard_bytes
    }

    pub(crate) fn slot_key(&self, block: SequenceHash) -> SlotKey {
        let hash = self.hasher.hash_one(block.0);
        SlotKey {
            shard: hash as usize % SHARDS,
            tag: (hash >> (64 - shard::TAG_BITS)) as u32,
        }
    }

    /// Applies `change` to a shard, and counts the bytes by which the shard grew or shrank.
    fn resizing<R>(&mut self, shard: usize, change: impl FnOnce(&mut Shard) -> R) -> R {
        let shard = &mut self.shards[shard];
        let before = shard.heap_bytes();
        let result = change(shard);
        self.shard_bytes = self.shard_bytes + shard.heap_bytes() - before;
        result
    }
}

/// Whether `block` lies at `place`. Different blocks may have the same tag, so a slot's tag does not suffice.
fn lies_at(block: SequenceHash, place: Place, strands: &Strands) -> bool {
    strands
        .get(place.strand())
        .is_some_and(|strand| strand.hash(place.offset()) == Some(block))
}
