//! From an engine's events to events with hashes of our own, and what the engine holds now.
//!
//! Each stored block is placed by the engine's hash of its parent, and gets the hash that routers compute for it: from
//! its tokens and the parent's own hash, or, at the start of a sequence, from the model, the LoRA adapter and the salt
//! (`protocol::BlockHasher`). The salt is in the event of a sequence's first block only, so later blocks have it by their
//! parent.
//!
//! What is held is a set. Engines send a block again when they hold a second copy of it or when a request asks for a
//! report, and send a removal for each copy. So the first removal ends a block's credit, although a copy may be left.
//! That is mended by what follows: an engine that stores a block on the device has all blocks before it there, which are
//! then credited again.
//!
//! Blocks that are gone stay known for a while: a copy in another tier, or a child of them, may be reported later, and
//! names them by the engine's hash only.

use std::collections::BTreeSet;

use signalbox_protocol::{BlockHasher, CacheTier, KvEvent, SequenceHash};

use super::{
    facts::{DropCause, Dropped, note_block_size},
    payload::{EngineHash, RawEvent, RawMedium, RawRemoved, RawStored, RawTokens},
};

mod keys;
mod recall;
mod run;
#[cfg(test)]
mod tests;

use keys::Keys;
use recall::Recall;
use run::Run;

/// Most groups of layers with full attention. Models have one or a few.
const MAX_GROUPS: usize = 64;

/// Which blocks an engine holds, under hashes of our own. Pure.
#[derive(Debug)]
pub(super) struct Blocks {
    model: String,
    block_size: u32,
    recall: Recall,
    /// The groups of layers that count: those with full attention.
    groups: Vec<u32>,
    /// Whether no removal and no block has been lost since the engine's start or since its cache was last empty.
    whole: bool,
    dropped: Dropped,
    block_sizes: BTreeSet<u32>,
}

impl Blocks {
    /// Nothing is held. `kv_blocks` is the capacity of the engine's device in blocks, 0 if unknown.
    pub(super) fn new(model: &str, block_size: u32, kv_blocks: u32) -> Self {
        Self {
            model: model.to_owned(),
            block_size,
            recall: Recall::new(kv_blocks),
            groups: Vec::new(),
            whole: true,
            dropped: Dropped::default(),
            block_sizes: BTreeSet::new(),
        }
    }

    /// Applies an event of the engine. Appends what changes for routers to `changes`.
    pub(super) fn apply(&mut self, event: &RawEvent<'_>, changes: &mut Vec<KvEvent>) {
        match event {
            RawEvent::Stored(stored) => {
                if let Err(cause) = self.store(stored, changes) {
                    self.dropped.add(cause, stored.hashes.len().max(1));
                }
                if !self.recall.tidy() {
                    self.forget(changes);
                }
            }
            RawEvent::Removed(removed) => self.remove(removed, changes),
            RawEvent::Cleared => self.restart(changes),
            RawEvent::UnreadableRemoved => {
                self.dropped.add(DropCause::Malformed, 1);
                self.forget(changes);
            }
            RawEvent::Unreadable => self.dropped.add(DropCause::Malformed, 1),
            RawEvent::Unknown => self.dropped.add(DropCause::UnknownEvent, 1),
        }
    }

    /// Counts events that are not applied, for `cause`.
    pub(super) fn drop_events(&mut self, cause: DropCause, count: usize) {
        self.dropped.add(cause, count);
    }

    /// Events were lost: no block is known to be held any more. What blocks are stays known.
    pub(super) fn forget(&mut self, changes: &mut Vec<KvEvent>) {
        self.whole = false;
        if self.recall.release_all() {
            changes.push(KvEvent::Cleared);
        }
    }

    /// The engine holds nothing: it started again or cleared its cache.
    pub(super) fn restart(&mut self, changes: &mut Vec<KvEvent>) {
        self.whole = true;
        if self.recall.clear() {
            changes.push(KvEvent::Cleared);
        }
    }

    /// Whether the engine holds the block on any tier.
    pub(super) fn holds(&self, block: SequenceHash) -> bool {
        self.recall.tiers(block) != 0
    }

    /// Whether the engine has reported the block, held or not. Blocks that are long gone may be unknown again.
    pub(super) fn has_appeared(&self, block: SequenceHash) -> bool {
        self.recall.knows(block)
    }

    /// Blocks held on any tier.
    pub(super) fn held(&self) -> usize {
        self.recall.held()
    }

    /// Whether all events since the engine's start, or since its cache was last empty, were applied.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// What was not used.
    pub(super) fn dropped(&self) -> &Dropped {
        &self.dropped
    }

    /// The sizes of blocks seen, in tokens.
    pub(super) fn block_sizes(&self) -> &BTreeSet<u32> {
        &self.block_sizes
    }

    /// Stores the blocks of an event, unless all of them are dropped for one cause.
    fn store(&mut self, stored: &RawStored<'_>, changes: &mut Vec<KvEvent>) -> Result<(), DropCause> {
        let tier = match stored.medium {
            RawMedium::Tier(tier) => tier,
            RawMedium::Remote => return Err(DropCause::Remote),
            RawMedium::Unknown => return Err(DropCause::Medium),
        };
        if !stored.full_attention || !self.follow_group(stored.group) {
            return Err(DropCause::AttentionGroup);
        }
        let tokens = match &stored.tokens {
            RawTokens::Ids(tokens) if tokens.is_empty() => {
                self.store_copies(tier, &stored.hashes, changes);
                return Ok(());
            }
            RawTokens::Ids(tokens) => tokens,
            RawTokens::Pairs => return Err(DropCause::TokenPairs),
            RawTokens::Unreadable => return Err(DropCause::Malformed),
        };
        note_block_size(&mut self.block_sizes, stored.block_size);
        if stored.block_size != self.block_size {
            return Err(DropCause::BlockSize);
        }
        if tokens.len() != stored.hashes.len() * self.block_size as usize {
            return Err(DropCause::Malformed);
        }
        let keys = Keys::of(stored)?;
        let parent = match stored.parent {
            None => None,
            Some(parent) => match self.recall.block(parent) {
                Some(Some(parent)) => Some(parent),
                Some(None) => {
                    self.recall.name_opaque(&stored.hashes);
                    return Err(DropCause::Media);
                }
                None => return Err(DropCause::UnknownParent),
            },
        };
        if let (CacheTier::Device, Some(parent)) = (tier, parent) {
            self.recall.hold_ancestry(parent, changes);
        }
        let hasher = BlockHasher::new(&self.model, keys.lora, keys.salt, self.block_size as usize);
        let (plain, opaque) = stored.hashes.split_at(keys.opaque_from.min(stored.hashes.len()));
        let mut run = Run::new(tier, parent);
        let mut parent = parent;
        for (placed, (&name, tokens)) in plain
            .iter()
            .zip(tokens.chunks_exact(hasher.block_size()))
            .enumerate()
        {
            let block = hasher.next(parent, tokens);
            match self.recall.hold(name, block, parent, tier) {
                Ok(changed) => run.step(parent, block, changed, changes),
                Err(cause) => {
                    // What follows in the event hangs on this block.
                    run.end(changes);
                    self.dropped.add(cause, stored.hashes.len() - placed);
                    return Ok(());
                }
            }
            parent = Some(block);
        }
        run.end(changes);
        self.recall.name_opaque(opaque);
        self.dropped.add(DropCause::Media, opaque.len());
        Ok(())
    }

    /// Stores copies of known blocks in another tier: vLLM's offloading names them by their hashes only.
    fn store_copies(&mut self, tier: CacheTier, names: &[EngineHash], changes: &mut Vec<KvEvent>) {
        let mut run = Run::new(tier, None);
        for &name in names {
            match self.recall.block(name) {
                Some(Some(block)) => match self.recall.hold_known(block, tier) {
                    Ok(changed) => run.step(self.recall.parent(block), block, changed, changes),
                    Err(cause) => self.dropped.add(cause, 1),
                },
                Some(None) => self.dropped.add(DropCause::Media, 1),
                None => self.dropped.add(DropCause::UnknownParent, 1),
            }
        }
        run.end(changes);
    }

    fn remove(&mut self, removed: &RawRemoved, changes: &mut Vec<KvEvent>) {
        let tier = match removed.medium {
            RawMedium::Tier(tier) => tier,
            // Nothing was stored for these.
            RawMedium::Remote | RawMedium::Unknown => return,
        };
        if removed.group.is_some_and(|group| !self.groups.contains(&group)) {
            return;
        }
        let blocks: Vec<_> = removed
            .hashes
            .iter()
            .filter_map(|&name| self.recall.release(name, tier))
            .collect();
        if !blocks.is_empty() {
            changes.push(KvEvent::Removed { tier, blocks });
        }
    }

    /// Notes a group with full attention. False for one too many.
    fn follow_group(&mut self, group: Option<u32>) -> bool {
        let Some(group) = group else {
            return true;
        };
        if self.groups.contains(&group) {
            return true;
        }
        let has_room = self.groups.len() < MAX_GROUPS;
        if has_room {
            self.groups.push(group);
        }
        has_room
    }
}
