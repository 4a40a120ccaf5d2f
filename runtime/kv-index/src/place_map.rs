//! From a block's hash to where it lies.
//!
//! A table of eight-byte slots with linear probing: asking for a block mostly touches one cache line of the table,
//! and that is what storing and removing cost. Each slot holds a place and 24 bits of the block's hash; the hash
//! itself is read from the strand, where it is stored once. A slot's home follows from its own bits, so that a
//! table grows and shrinks in one pass over memory without a look at the strands.
//!
//! The table is split into shards that grow one at a time: growing a single table of ten million blocks would stop
//! the readers for some ten milliseconds, a shard takes a tenth of one.
//!
//! Blocks that go together with their strand are not taken out one by one, each at the price of a visit to memory:
//! their slots lead nowhere, which a search sees. They are swept away shard by shard, and a strand's number is not given
//! to another before all shards were swept.

use std::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;
use signalbox_protocol::SequenceHash;

use crate::strands::Strands;

mod shard;

use shard::Shard;

/// Enough that one shard's growth is short, few enough that empty ones (8 KiB in all) do not matter.
const SHARDS: usize = 256;

/// Where a block lies: below the tag in a slot, so that a place is five bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    strand: u32,
    offset: u8,
}

impl Place {
    pub(crate) fn new(strand: usize, offset: usize) -> Self {
        debug_assert!(u32::try_from(strand).is_ok() && u8::try_from(offset).is_ok());
        Self {
            strand: strand as u32,
            offset: offset as u8,
        }
    }

    pub(crate) fn strand(self) -> usize {
        self.strand as usize
    }

    pub(crate) fn offset(self) -> usize {
        self.offset as usize
    }
}

/// Slots swept for each block that went with its strand. So slots that lead nowhere are a quarter of all at most, about,
/// and sweeping a block away costs some nanoseconds.
const SWEPT_PER_BLOCK: usize = 4;

/// Where a block belongs in the table: its shard, and its tag there, which are different bits of its hash.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotKey {
    shard: usize,
    tag: u32,
}

#[derive(Debug)]
pub(crate) struct PlaceMap {
    shards: Vec<Shard>,
    /// The shard that is being swept.
    sweep_cursor: usize,
    /// Slots that are to be swept for blocks that went.
    sweep_due: usize,
    /// Seeded, so that nobody can choose prompts whose blocks all fall into one shard or one run of slots.
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

    /// Brings the slots of `blocks` into the cache. One after the other, each would be waited for; asked for all
    /// together, with nothing to decide in between, they arrive together.
    pub(crate) fn prefetch(&self, blocks: impl IntoIterator<Item = SequenceHash>) {
        let slots = blocks.into_iter().map(|block| {
            let SlotKey { shard, tag } = self.slot_key(block);
            self.shards[shard].home_slot(tag)
        });
        std::hint::black_box(slots.fold(0, |all, slot| all ^ slot));
    }

    /// Adds a block at its slot_key; where it is there already, says where and changes nothing.
    pub(crate) fn insert(
        &mut self,
        SlotKey { shard, tag }: SlotKey,
        block: SequenceHash,
        place: Place,
        strands: &Strands,
    ) -> Option<Place> {
        self.resizing(shard, |shard| {
            if shard.is_full() && strands.any_gone() {
                shard.sweep(strands.is_gone());
            }
            shard.insert(
                tag,
                place,
                |place| lies_at(block, place, strands),
                strands.is_gone(),
            )
        })
    }

    /// Follows a block to its new place. The strands may be in between: hashes are not read.
    pub(crate) fn follow(&mut self, block: SequenceHash, old: Place, new: Place) {
        let SlotKey { shard, tag } = self.slot_key(block);
        self.shards[shard].replace(tag, old, new);
    }

    /// Forgets a block, and gives memory back where its shard became sparse. Hashes are not read.
    pub(crate) fn forget(&mut self, block: SequenceHash, old: Place) {
        let SlotKey { shard, tag } = self.slot_key(block);
        self.resizing(shard, |shard| shard.remove(tag, old));
    }

    /// So many blocks went with their strand: makes a part of the table due for [sweeping](Self::sweep), all of it at
    /// most.
    pub(crate) fn schedule_sweep(&mut self, blocks: usize) {
        // A look at a shard without slots counts too.
        let whole = self.shard_bytes / size_of::<u64>() + SHARDS;
        self.sweep_due = (self.sweep_due + blocks * SWEPT_PER_BLOCK).min(whole);
    }

    /// Whether there is something to [`sweep`](Self::sweep).
    pub(crate) fn is_sweep_due(&self) -> bool {
        self.sweep_due > 0
    }

    /// Sweeps what is due, up to so many slots and to the end of a round of all shards. Whether one ended.
    pub(crate) fn sweep(&mut self, most: usize, strands: &Strands) -> bool {
        let end = self.sweep_due.saturating_sub(most);
        while self.sweep_due > end {
            let most = self.sweep_due - end;
            let sweep = |shard: &mut Shard| shard.sweep_on(most, strands.is_gone());
            let (swept, is_through) = self.resizing(self.sweep_cursor, sweep);
            self.sweep_due -= swept.max(1);
            if is_through {
                self.sweep_cursor = (self.sweep_cursor + 1) % SHARDS;
                if self.sweep_cursor == 0 {
                    return true;
                }
            }
        }
        false
    }

    /// Forgets all blocks.
    pub(crate) fn clear(&mut self) {
        self.shards.fill_with(Shard::default);
        (self.sweep_cursor, self.sweep_due, self.shard_bytes) = (0, 0, 0);
    }

    /// Where the slots lead, to no block any more included.
    #[cfg(test)]
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> {
        self.shards.iter().flat_map(Shard::places)
    }

    /// The most memory that adding a block there can take, the old slots beside the new ones included.
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

    /// Runs what may change a shard's size, and counts it.
    fn resizing<R>(&mut self, shard: usize, change: impl FnOnce(&mut Shard) -> R) -> R {
        let shard = &mut self.shards[shard];
        let before = shard.heap_bytes();
        let result = change(shard);
        self.shard_bytes = self.shard_bytes + shard.heap_bytes() - before;
        result
    }
}

/// Whether `block` lies at `place`: the tags of different blocks may agree.
fn lies_at(block: SequenceHash, place: Place, strands: &Strands) -> bool {
    strands
        .get(place.strand())
        .is_some_and(|strand| strand.hash(place.offset()) == Some(block))
}
