//! The KV blocks of an engine and their contents: the bookkeeping of a paged KV cache.
//!
//! A cache has a fixed number of KV blocks. A running sequence holds a [`BlockTable`]: the blocks of its tokens in
//! order. A full block is *sealed*: it gets its [`SequenceHash`], and other sequences with the same prefix share it.
//! Blocks that are not full belong to one sequence. When the last sequence releases a sealed block, the block becomes
//! *idle*: it stays cached until a sequence shares it again or its room is needed. [`BlockPool`] has no notion of
//! tokens, tensors or time. It promises:
//!
//! - A block's reference count is the number of tables that hold it.
//! - There are never more blocks than the capacity.
//! - The least recently used idle block is evicted first, and never before a block that follows it. Every cached block
//!   can therefore be reached from the beginning of its sequence.
//! - The events, replayed, give exactly the sealed blocks.
//!
//! The calls for a sequence, in order:
//!
//! ```text
//! admits(prefix, total)            whether there is room for the sequence now
//! share(table, prefix)             take the cached blocks of its prompt
//! grow(table, n)                   take n blocks for the tokens to compute, evicting idle blocks
//! seal(table, hash)                its first unsealed block is full: give it its hash   (for each full block)
//! release(table)                   the sequence has ended or is preempted
//! drain_events(events)             once a step: the changes, for the event plane
//! ```

use hashbrown::HashMap;
use signalbox_protocol::{CacheTier, KvEvent, SequenceHash};

#[cfg(test)]
mod tests;

/// A block's index in the cache: 0 to capacity − 1. An engine may store the block's KV at that index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// The blocks of one running sequence in the order of its tokens: first the sealed ones, then the others.
///
/// Release it with [`BlockPool::release`]. Dropping a table that holds blocks leaks them.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    sealed: usize,
}

/// How much of a prefix is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixMatch {
    /// Leading blocks that are cached.
    pub blocks: usize,
    /// How many of these blocks are idle. Sharing an idle block reduces [`BlockPool::available`].
    pub idle: usize,
}

/// The result of [`BlockPool::seal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealOutcome {
    /// The sequence's block has its hash, and other sequences can share it.
    Stored,
    /// Another sequence sealed the same content earlier. The table now has that block (`existing`) in place of the
    /// sequence's own (`freed`), which is free. An engine that stores KV by block continues with `existing`.
    Duplicate {
        /// The block that the table has now.
        existing: BlockId,
        /// The block that is free now.
        freed: BlockId,
    },
}

/// Fewer blocks are free or idle than needed. The table is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{needed} KV blocks are needed and {available} are free or idle")]
pub struct OutOfBlocks {
    /// Blocks needed.
    pub needed: u32,
    /// Blocks that are free or idle.
    pub available: u32,
}

/// A fixed number of KV blocks that sequences with equal prefixes share. Every operation takes O(1) time a block.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Sealed blocks by hash, idle ones included.
    by_hash: HashMap<SequenceHash, BlockId>,
    /// Blocks without content.
    free: Vec<BlockId>,
    /// The ends of the list of idle blocks, which is linked through [`Block`], least recently used first. A table
    /// releases its last block first, and a sequence that uses a block uses all blocks before it too. Hence a block is
    /// always older in the list than the block that precedes it in its sequence, and no cached block follows the
    /// oldest.
    oldest_idle: Option<BlockId>,
    newest_idle: Option<BlockId>,
    active: u32,
    events: Vec<KvEvent>,
}

#[derive(Debug, Clone, Default)]
struct Block {
    /// The hash, if the block is sealed.
    hash: Option<SequenceHash>,
    /// Number of tables that hold the block.
    references: u32,
    /// Neighbours in the list of idle blocks.
    older: Option<BlockId>,
    newer: Option<BlockId>,
}

impl BlockTable {
    /// The blocks in the order of the sequence's tokens.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// The number of sealed blocks, which come first.
    pub fn sealed(&self) -> usize {
        self.sealed
    }
}

impl BlockPool {
    /// An empty cache of `capacity` blocks.
    pub fn new(capacity: u32) -> Self {
        Self {
            blocks: vec![Block::default(); capacity as usize],
            by_hash: HashMap::with_capacity(capacity as usize),
            free: (0..capacity).rev().map(BlockId).collect(),
            oldest_idle: None,
            newest_idle: None,
            active: 0,
            events: Vec::new(),
        }
    }

    /// All blocks of the cache.
    pub fn capacity(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Blocks that tables hold. A shared block counts once.
    pub fn active(&self) -> u32 {
        self.active
    }

    /// Blocks with content, idle ones included.
    pub fn used(&self) -> u32 {
        self.capacity() - self.free.len() as u32
    }

    /// Blocks that [`Self::grow`] can take now: free and idle ones.
    pub fn available(&self) -> u32 {
        self.capacity() - self.active
    }

    /// How many leading blocks of `prefix` are cached. Does not count as a use of the blocks.
    pub fn matched(&self, prefix: &[SequenceHash]) -> PrefixMatch {
        let mut found = PrefixMatch { blocks: 0, idle: 0 };
        for id in prefix.iter().map_while(|hash| self.by_hash.get(hash)) {
            found.blocks += 1;
            found.idle += usize::from(self.block(*id).references == 0);
        }
        found
    }

    /// Whether a sequence of `total` blocks that begins with `prefix` could get all its blocks now: the cached ones of
    /// the prefix by sharing, the others from free and idle blocks.
    pub fn admits(&self, prefix: &[SequenceHash], total: u32) -> bool {
        let found = self.matched(prefix);
        let computed = (total as usize).saturating_sub(found.blocks);
        computed + found.idle <= self.available() as usize
    }

    /// Extends `table` by the cached blocks of `prefix` that follow those it has. `prefix` has the hashes of the
    /// sequence from its first block on. Returns the number of added blocks. Can be called again later, when other
    /// sequences may have computed more. A table with an unsealed block gets none.
    pub fn share(&mut self, table: &mut BlockTable, prefix: &[SequenceHash]) -> usize {
        let had = table.blocks.len();
        if table.sealed < had {
            return 0;
        }
        for hash in prefix.iter().skip(had) {
            let Some(&id) = self.by_hash.get(hash) else { break };
            self.add_reference(id);
            table.blocks.push(id);
        }
        table.sealed = table.blocks.len();
        table.sealed - had
    }

    /// Extends `table` by `count` empty blocks, evicting the least recently used idle blocks as needed.
    ///
    /// # Errors
    /// Fewer than `count` blocks are free or idle; `table` is unchanged.
    pub fn grow(&mut self, table: &mut BlockTable, count: u32) -> Result<(), OutOfBlocks> {
        if count > self.available() {
            return Err(OutOfBlocks {
                needed: count,
                available: self.available(),
            });
        }
        for _ in 0..count {
            let Some(id) = self.free.pop().or_else(|| self.evict_oldest()) else {
                break;
            };
            self.blocks[id.0 as usize].references = 1;
            self.active += 1;
            table.blocks.push(id);
        }
        Ok(())
    }

    /// Seals the first unsealed block of `table`, which is full: gives it `hash`, so that other sequences can share it.
    /// `None` if the table has no unsealed block.
    pub fn seal(&mut self, table: &mut BlockTable, hash: SequenceHash) -> Option<SealOutcome> {
        let own = *table.blocks.get(table.sealed)?;
        let parent = table
            .sealed
            .checked_sub(1)
            .and_then(|last| self.block(table.blocks[last]).hash);
        table.sealed += 1;
        if let Some(&existing) = self.by_hash.get(&hash) {
            debug_assert_ne!(existing, own, "an unsealed block has no hash");
            self.add_reference(existing);
            self.drop_reference(own);
            table.blocks[table.sealed - 1] = existing;
            return Some(SealOutcome::Duplicate { existing, freed: own });
        }
        self.blocks[own.0 as usize].hash = Some(hash);
        self.by_hash.insert(hash, own);
        self.record_stored(parent, hash);
        Some(SealOutcome::Stored)
    }

    /// Takes back all blocks of `table`, which is empty afterwards. A sealed block that no other table holds becomes
    /// idle, an unsealed one becomes free.
    pub fn release(&mut self, table: &mut BlockTable) {
        // Last block first: see `oldest_idle`.
        for id in table.blocks.drain(..).rev() {
            self.drop_reference(id);
        }
        table.sealed = 0;
    }

    /// Appends to `events` the blocks sealed and evicted since the last call, in order.
    pub fn drain_events(&mut self, events: &mut Vec<KvEvent>) {
        events.append(&mut self.events);
    }

    fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id.0 as usize]
    }

    fn add_reference(&mut self, id: BlockId) {
        if self.block(id).references == 0 {
            self.unlink_idle(id);
            self.active += 1;
        }
        self.blocks[id.0 as usize].references += 1;
    }

    fn drop_reference(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.0 as usize];
        debug_assert!(block.references > 0, "a table holds the block");
        block.references -= 1;
        if block.references > 0 {
            return;
        }
        let sealed = block.hash.is_some();
        self.active -= 1;
        if sealed {
            self.link_newest_idle(id);
        } else {
            self.free.push(id);
        }
    }

    fn link_newest_idle(&mut self, id: BlockId) {
        let older = self.newest_idle.replace(id);
        let block = &mut self.blocks[id.0 as usize];
        block.older = older;
        block.newer = None;
        match older {
            Some(older) => self.blocks[older.0 as usize].newer = Some(id),
            None => self.oldest_idle = Some(id),
        }
    }

    fn unlink_idle(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.0 as usize];
        let (older, newer) = (block.older.take(), block.newer.take());
        match older {
            Some(older) => self.blocks[older.0 as usize].newer = newer,
            None => self.oldest_idle = newer,
        }
        match newer {
            Some(newer) => self.blocks[newer.0 as usize].older = older,
            None => self.newest_idle = older,
        }
    }

    fn evict_oldest(&mut self) -> Option<BlockId> {
        let id = self.oldest_idle?;
        self.unlink_idle(id);
        if let Some(hash) = self.blocks[id.0 as usize].hash.take() {
            self.by_hash.remove(&hash);
            self.record_removed(hash);
        }
        Some(id)
    }

    /// Adds the event of a stored block. Blocks that follow each other share one event.
    fn record_stored(&mut self, parent: Option<SequenceHash>, hash: SequenceHash) {
        if let Some(KvEvent::Stored { blocks, .. }) = self.events.last_mut()
            && blocks.last().copied() == parent
        {
            blocks.push(hash);
            return;
        }
        self.events.push(KvEvent::Stored {
            tier: CacheTier::Device,
            parent,
            blocks: vec![hash],
        });
    }

    /// Adds the event of an evicted block. Blocks evicted in a row share one event.
    fn record_removed(&mut self, hash: SequenceHash) {
        if let Some(KvEvent::Removed { blocks, .. }) = self.events.last_mut() {
            blocks.push(hash);
            return;
        }
        self.events.push(KvEvent::Removed {
            tier: CacheTier::Device,
            blocks: vec![hash],
        });
    }
}
