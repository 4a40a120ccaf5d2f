//! Which KV block holds what: the bookkeeping of a paged KV cache.
//!
//! A cache is a fixed number of KV blocks. A running sequence holds a [`BlockTable`]: the blocks of its tokens in
//! order. Its full blocks are *sealed*: they have an identity ([`SequenceHash`]) and other sequences with the same
//! prefix share them. What is still being filled is private to its sequence. When the last sequence lets a sealed
//! block go, the block stays, *idle*, until somebody shares it again or room is needed. [`BlockPool`] knows nothing of
//! tokens, tensors or time, and promises:
//!
//! - a block is held by as many tables as its reference count says, and counted once;
//! - never more blocks than the capacity;
//! - the least recently used idle block makes room first, and never before a block that follows it, so that whatever
//!   is cached can be reached from the beginning of its sequence;
//! - the events it tells, replayed, give exactly the sealed blocks.
//!
//! The life of a sequence:
//!
//! ```text
//! admits(prefix, total)            is there room for it now?
//! share(table, prefix)             take the blocks of its prompt that are cached
//! grow(table, n)                   take n blocks for what is to be computed, evicting idle ones
//! seal(table, hash)                its first unsealed block is full: give it its identity   (again for each)
//! release(table)                   it ended or must make room for others
//! drain_events(events)             once a step: what changed, for the event plane
//! ```

use hashbrown::HashMap;
use signalbox_protocol::{CacheTier, KvEvent, SequenceHash};

#[cfg(test)]
mod tests;

/// A block's place in the cache: 0 to capacity − 1. An engine may keep the block's KV at that place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// The blocks of one running sequence, first block first: sealed ones, then those still being filled.
///
/// Give it back with [`BlockPool::release`]: dropping it while it holds blocks would leak them.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    sealed: usize,
}

/// How much of a prefix is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixMatch {
    /// Leading blocks that are there.
    pub blocks: usize,
    /// Those of them that no sequence holds: sharing them takes them out of [`BlockPool::available`].
    pub idle: usize,
}

/// What [`BlockPool::seal`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealed {
    /// The sequence's block has its identity now, and others can share it.
    Stored,
    /// Another sequence had sealed the same content before. The table now names that block (`existing`), and the
    /// sequence's own (`freed`) is free again: an engine that keeps KV by place goes on with `existing`.
    Duplicate {
        /// The block that stays.
        existing: BlockId,
        /// The block that was given back.
        freed: BlockId,
    },
}

/// There are fewer free and idle blocks than asked for; nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} KV blocks wanted, {available} can be had")]
pub struct OutOfBlocks {
    /// Blocks asked for.
    pub wanted: u32,
    /// Blocks that are free or idle.
    pub available: u32,
}

/// A fixed number of KV blocks, shared by sequences with equal prefixes. Every operation is O(1) a block.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Sealed blocks by identity, idle ones included.
    by_hash: HashMap<SequenceHash, BlockId>,
    /// Blocks that hold nothing.
    free: Vec<BlockId>,
    /// Idle blocks, least recently used first, as a list through [`Block`]. Tables let go of their blocks last block
    /// first, and whoever uses a block uses its whole prefix: so a block always lies before the one it follows, and
    /// the oldest has no cached follower.
    oldest_idle: Option<BlockId>,
    newest_idle: Option<BlockId>,
    active: u32,
    events: Vec<KvEvent>,
}

#[derive(Debug, Clone, Default)]
struct Block {
    /// Its identity, once sealed.
    hash: Option<SequenceHash>,
    /// Tables that hold it.
    references: u32,
    /// Neighbours in the list of idle blocks.
    older: Option<BlockId>,
    newer: Option<BlockId>,
}

impl BlockTable {
    /// The blocks, first block of the sequence first.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// How many of them, from the first on, are sealed.
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

    /// Blocks there are.
    pub fn capacity(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Blocks that tables hold, shared ones counted once.
    pub fn active(&self) -> u32 {
        self.active
    }

    /// Blocks that hold anything, idle ones included.
    pub fn used(&self) -> u32 {
        self.capacity() - self.free.len() as u32
    }

    /// Blocks that [`Self::grow`] could take now: free ones and idle ones.
    pub fn available(&self) -> u32 {
        self.capacity() - self.active
    }

    /// How many leading blocks of `prefix` are cached. Looking does not count as use.
    pub fn matched(&self, prefix: &[SequenceHash]) -> PrefixMatch {
        let mut found = PrefixMatch { blocks: 0, idle: 0 };
        for id in prefix.iter().map_while(|hash| self.by_hash.get(hash)) {
            found.blocks += 1;
            found.idle += usize::from(self.block(*id).references == 0);
        }
        found
    }

    /// Whether a sequence of `total` blocks whose first ones are `prefix` could have them all now: those of the
    /// prefix that are cached by sharing, the rest by evicting others.
    pub fn admits(&self, prefix: &[SequenceHash], total: u32) -> bool {
        let found = self.matched(prefix);
        let computed = (total as usize).saturating_sub(found.blocks);
        computed + found.idle <= self.available() as usize
    }

    /// Lengthens `table` by the blocks of `prefix` (the sequence's identities from its very first block on) that are
    /// cached and follow those it has. Returns how many. May be called again later, when another sequence may have
    /// computed more; a table with an unsealed block gets none.
    pub fn share(&mut self, table: &mut BlockTable, prefix: &[SequenceHash]) -> usize {
        let had = table.blocks.len();
        if table.sealed < had {
            return 0;
        }
        for hash in prefix.iter().skip(had) {
            let Some(&id) = self.by_hash.get(hash) else { break };
            self.hold(id);
            table.blocks.push(id);
        }
        table.sealed = table.blocks.len();
        table.sealed - had
    }

    /// Lengthens `table` by `count` empty blocks, evicting the least recently used idle blocks as needed. All or
    /// nothing.
    pub fn grow(&mut self, table: &mut BlockTable, count: u32) -> Result<(), OutOfBlocks> {
        if count > self.available() {
            return Err(OutOfBlocks {
                wanted: count,
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

    /// The first unsealed block of `table` is full: names it `hash`, so that others can share it. `None` where the
    /// table has no unsealed block.
    pub fn seal(&mut self, table: &mut BlockTable, hash: SequenceHash) -> Option<Sealed> {
        let own = *table.blocks.get(table.sealed)?;
        let parent = table
            .sealed
            .checked_sub(1)
            .and_then(|last| self.block(table.blocks[last]).hash);
        table.sealed += 1;
        if let Some(&existing) = self.by_hash.get(&hash) {
            debug_assert_ne!(existing, own, "an unsealed block has no identity");
            self.hold(existing);
            self.let_go(own);
            table.blocks[table.sealed - 1] = existing;
            return Some(Sealed::Duplicate { existing, freed: own });
        }
        self.blocks[own.0 as usize].hash = Some(hash);
        self.by_hash.insert(hash, own);
        self.tell_stored(parent, hash);
        Some(Sealed::Stored)
    }

    /// Takes all blocks of `table` back and empties it. Sealed blocks that nobody else holds stay cached, unsealed
    /// ones are free.
    pub fn release(&mut self, table: &mut BlockTable) {
        // Last block first: see `oldest_idle`.
        for id in table.blocks.drain(..).rev() {
            self.let_go(id);
        }
        table.sealed = 0;
    }

    /// Appends to `events` what was sealed and evicted since the last call, in order.
    pub fn drain_events(&mut self, events: &mut Vec<KvEvent>) {
        events.append(&mut self.events);
    }

    fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id.0 as usize]
    }

    fn hold(&mut self, id: BlockId) {
        if self.block(id).references == 0 {
            self.unlink_idle(id);
            self.active += 1;
        }
        self.blocks[id.0 as usize].references += 1;
    }

    fn let_go(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.0 as usize];
        debug_assert!(block.references > 0, "only held blocks are let go");
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
            self.tell_removed(hash);
        }
        Some(id)
    }

    /// Blocks sealed one after the other become one chain.
    fn tell_stored(&mut self, parent: Option<SequenceHash>, hash: SequenceHash) {
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

    fn tell_removed(&mut self, hash: SequenceHash) {
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
