//! From a block's hash to where it lies.
//!
//! The table holds places of six bytes and reads the hashes from the strands, so that each hash is stored once.
//! It is split into shards that grow one at a time: growing a single table of ten million blocks would stop the
//! readers for a large part of a second, a shard takes a few milliseconds of it.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};
use signalbox_protocol::SequenceHash;

use crate::{ALLOCATION_OVERHEAD, strand::Strand};

/// Enough that one shard's growth is short, few enough that empty ones (10 KiB in all) do not matter.
const SHARDS: usize = 256;
const SHARD_MASK: u64 = SHARDS as u64 - 1;
/// The shard is chosen by bits that the table inside (the lowest for the bucket, the highest 7 for the tag) does not use.
const SHARD_SHIFT: u32 = 40;
/// A shard that is less than one part in this many full gives memory back.
const SPARSE: usize = 8;
/// The smallest table hashbrown allocates is below this many bytes.
const SMALLEST_TABLE: usize = 128;

/// Where a block lies. Two-byte parts, since a padded eight bytes would cost a fifth more memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    strand: [u16; 2],
    offset: u16,
}

impl Place {
    pub(crate) fn new(strand: usize, offset: usize) -> Self {
        debug_assert!(u32::try_from(strand).is_ok() && u16::try_from(offset).is_ok());
        Self {
            strand: [(strand >> 16) as u16, strand as u16],
            offset: offset as u16,
        }
    }

    pub(crate) fn strand(self) -> usize {
        (self.strand[0] as usize) << 16 | self.strand[1] as usize
    }

    pub(crate) fn offset(self) -> usize {
        self.offset as usize
    }
}

#[derive(Debug)]
pub(crate) struct PlaceMap {
    shards: Vec<HashTable<Place>>,
    /// Seeded, so that nobody can choose prompts whose blocks all fall into one bucket.
    hasher: DefaultHashBuilder,
    table_bytes: usize,
}

impl PlaceMap {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| HashTable::new()).collect(),
            hasher: DefaultHashBuilder::default(),
            table_bytes: 0,
        }
    }

    pub(crate) fn find(&self, block: SequenceHash, strands: &[Strand]) -> Option<Place> {
        let (hash, shard) = self.locate(block);
        self.shards[shard]
            .find(hash, |place| hash_at(strands, *place) == block)
            .copied()
    }

    /// Adds a block; false where it is there already.
    pub(crate) fn insert(&mut self, block: SequenceHash, place: Place, strands: &[Strand]) -> bool {
        let (hash, shard) = self.locate(block);
        self.resizing(shard, |table, hasher| {
            let is_block = |place: &Place| hash_at(strands, *place) == block;
            match table.entry(hash, is_block, |place| {
                hasher.hash_one(hash_at(strands, *place).0)
            }) {
                Entry::Occupied(_) => false,
                Entry::Vacant(entry) => {
                    entry.insert(place);
                    true
                }
            }
        })
    }

    /// Follows a block to its new place, or forgets it. The strands may be in between: hashes are not read.
    pub(crate) fn replace(&mut self, block: SequenceHash, old: Place, new: Option<Place>) {
        let (hash, shard) = self.locate(block);
        if let Ok(mut entry) = self.shards[shard].find_entry(hash, |place| *place == old) {
            match new {
                Some(new) => *entry.get_mut() = new,
                None => _ = entry.remove(),
            }
        }
    }

    /// Gives memory back where the shard of `block` became sparse.
    pub(crate) fn shrink(&mut self, block: SequenceHash, strands: &[Strand]) {
        let (_, shard) = self.locate(block);
        let table = &self.shards[shard];
        if table.len() * SPARSE < table.capacity() && table.allocation_size() > SMALLEST_TABLE {
            self.resizing(shard, |table, hasher| {
                table.shrink_to(table.len() * 2, |place| {
                    hasher.hash_one(hash_at(strands, *place).0)
                });
            });
        }
    }

    /// The most memory that adding `block` can take, the old table beside the new one included.
    pub(crate) fn insert_bytes(&self, block: SequenceHash) -> usize {
        let table = &self.shards[self.locate(block).1];
        if table.len() < table.capacity() {
            0
        } else {
            2 * table.allocation_size() + SMALLEST_TABLE
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.shards.capacity() * size_of::<HashTable<Place>>() + self.table_bytes
    }

    fn locate(&self, block: SequenceHash) -> (u64, usize) {
        let hash = self.hasher.hash_one(block.0);
        (hash, (hash >> SHARD_SHIFT & SHARD_MASK) as usize)
    }

    /// Runs what may change a table's size, and counts it.
    fn resizing<R>(
        &mut self,
        shard: usize,
        change: impl FnOnce(&mut HashTable<Place>, &DefaultHashBuilder) -> R,
    ) -> R {
        let table = &mut self.shards[shard];
        let before = table_bytes(table);
        let result = change(table, &self.hasher);
        self.table_bytes = self.table_bytes + table_bytes(table) - before;
        result
    }
}

fn table_bytes(table: &HashTable<Place>) -> usize {
    match table.allocation_size() {
        0 => 0,
        bytes => bytes + ALLOCATION_OVERHEAD,
    }
}

/// Every place in the table leads to a block; the zero of one that did not would only fail to match.
fn hash_at(strands: &[Strand], place: Place) -> SequenceHash {
    strands[place.strand()]
        .hash(place.offset())
        .unwrap_or(SequenceHash(0))
}
