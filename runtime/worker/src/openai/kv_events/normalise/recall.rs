//! What is remembered of an engine's blocks: their names at the engine, their parents, and where they are held.
//!
//! Two tables: from the engine's hash to our own, and from our own to the parent and the tiers. Together they take 75 to
//! 150 bytes a block. Blocks held are bounded by what the engine has room for, and blocks that are only remembered by
//! as many again.

use hashbrown::HashMap;
use signalbox_protocol::{CacheTier, KvEvent, SequenceHash};

use super::super::{facts::DropCause, payload::EngineHash};

/// The engine's device and memory below it: hosts and disks hold several times what a device does. A block beyond that
/// is not one that an engine has room for, but one whose removal was not reported.
const TIERS_TO_DEVICE: usize = 16;
/// Most blocks held by an engine that does not say how many it has: a device with a million blocks of 16 tokens would
/// hold 16 million tokens.
const UNKNOWN_CAPACITY: usize = 1 << 20;
/// Most blocks held by any engine: the bound of the event log.
const MAX_HELD: usize = 1 << 24;
/// Blocks that may always be held or remembered: some 10 MB.
const SPARE: usize = 1 << 16;

#[derive(Debug)]
pub(super) struct Recall {
    /// By the engine's hash; `None` for a block that has no hash of our own, because it holds more than tokens.
    names: HashMap<EngineHash, Option<SequenceHash>>,
    /// By our own hash. Each block of `names` is here.
    blocks: HashMap<SequenceHash, Block>,
    /// Blocks with a tier.
    held: usize,
    /// The greatest value of `held`.
    held_peak: usize,
    max_held: usize,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    parent: Option<SequenceHash>,
    /// A bit for each tier that holds the block.
    tiers: u8,
}

impl Recall {
    pub(super) fn new(kv_blocks: u32) -> Self {
        let capacity = match kv_blocks as usize {
            0 => UNKNOWN_CAPACITY,
            blocks => blocks.saturating_mul(TIERS_TO_DEVICE),
        };
        Self::with_max_held(capacity.clamp(SPARE, MAX_HELD))
    }

    pub(super) fn with_max_held(max_held: usize) -> Self {
        Self {
            names: HashMap::new(),
            blocks: HashMap::new(),
            held: 0,
            held_peak: 0,
            max_held,
        }
    }

    /// The block that the engine calls `name`; `Some(None)` for one that holds more than tokens.
    pub(super) fn block(&self, name: EngineHash) -> Option<Option<SequenceHash>> {
        self.names.get(&name).copied()
    }

    pub(super) fn parent(&self, block: SequenceHash) -> Option<SequenceHash> {
        self.blocks.get(&block)?.parent
    }

    /// The tiers that hold the block, a bit each.
    pub(super) fn tiers(&self, block: SequenceHash) -> u8 {
        self.blocks.get(&block).map_or(0, |block| block.tiers)
    }

    pub(super) fn knows(&self, block: SequenceHash) -> bool {
        self.blocks.contains_key(&block)
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Blocks remembered under the engine's names, held or not.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.names.len().max(self.blocks.len())
    }

    /// The engine holds `block`, which it calls `name`, on `tier`. Returns whether that is new.
    pub(super) fn hold(
        &mut self,
        name: EngineHash,
        block: SequenceHash,
        parent: Option<SequenceHash>,
        tier: CacheTier,
    ) -> Result<bool, DropCause> {
        match self.names.get(&name) {
            None => {}
            Some(&known) if known == Some(block) => {}
            Some(_) => return Err(DropCause::Conflict),
        }
        if self.held >= self.max_held && self.tiers(block) == 0 {
            return Err(DropCause::Full);
        }
        self.names.insert(name, Some(block));
        let entry = self.blocks.entry(block).or_insert(Block { parent, tiers: 0 });
        Ok(add_tier(entry, tier, &mut self.held, &mut self.held_peak))
    }

    /// The engine holds a block that is known on `tier`. Returns whether that is new.
    pub(super) fn hold_known(&mut self, block: SequenceHash, tier: CacheTier) -> Result<bool, DropCause> {
        let Some(entry) = self.blocks.get_mut(&block) else {
            return Err(DropCause::UnknownParent);
        };
        if self.held >= self.max_held && entry.tiers == 0 {
            return Err(DropCause::Full);
        }
        Ok(add_tier(entry, tier, &mut self.held, &mut self.held_peak))
    }

    /// The engine stores a child of `block` on the device, so it holds `block` and all blocks before it there. Appends
    /// those for which that is new.
    pub(super) fn hold_ancestry(&mut self, block: SequenceHash, changes: &mut Vec<KvEvent>) {
        let device = bit(CacheTier::Device);
        let mut regained = Vec::new();
        let mut next = Some(block);
        while let Some(block) = next
            && self.held < self.max_held
            && let Some(entry) = self.blocks.get_mut(&block)
            && entry.tiers & device == 0
        {
            add_tier(entry, CacheTier::Device, &mut self.held, &mut self.held_peak);
            regained.push(block);
            next = entry.parent;
        }
        if !regained.is_empty() {
            regained.reverse();
            changes.push(KvEvent::Stored {
                tier: CacheTier::Device,
                parent: next,
                blocks: regained,
            });
        }
    }

    /// The engine no longer holds what it calls `name` on `tier`. Returns the block if it was held there.
    pub(super) fn release(&mut self, name: EngineHash, tier: CacheTier) -> Option<SequenceHash> {
        let Some(block) = *self.names.get(&name)? else {
            self.names.remove(&name);
            return None;
        };
        let entry = self.blocks.get_mut(&block)?;
        if entry.tiers & bit(tier) == 0 {
            return None;
        }
        entry.tiers &= !bit(tier);
        self.held -= usize::from(entry.tiers == 0);
        Some(block)
    }

    /// Remembers blocks that hold more than tokens, so that their children are recognised.
    pub(super) fn name_opaque(&mut self, names: &[EngineHash]) {
        for &name in names {
            self.names.entry(name).or_insert(None);
        }
    }

    /// Nothing is held any more; what blocks are stays known. Returns whether anything was held.
    pub(super) fn release_all(&mut self) -> bool {
        let held_any = self.held > 0;
        if held_any {
            self.blocks.values_mut().for_each(|block| block.tiers = 0);
            self.held = 0;
        }
        held_any
    }

    /// Nothing is held or known any more. Returns whether anything was held.
    pub(super) fn clear(&mut self) -> bool {
        let held_any = self.held > 0;
        *self = Self::with_max_held(self.max_held);
        held_any
    }

    /// Drops what is only remembered, if it is too much. False if what is left still is: an engine that has many names
    /// for each block. Then the caller releases all blocks, and nothing is known any more.
    ///
    /// A sweep halves the tables at least, so that its cost is spread over as many stores.
    pub(super) fn tidy(&mut self) -> bool {
        let spare = self.held_peak.max(SPARE).min(self.max_held);
        let max_names = 2 * self.max_held;
        if self.blocks.len() <= self.held + spare && self.names.len() <= max_names {
            return true;
        }
        self.blocks.retain(|_, block| block.tiers != 0);
        let blocks = &self.blocks;
        self.names
            .retain(|_, block| block.is_some_and(|block| blocks.contains_key(&block)));
        let fits = self.names.len() <= max_names / 4 * 3;
        if !fits {
            self.names.clear();
        }
        fits
    }
}

/// Adds a tier to a block. Returns whether that is new.
fn add_tier(block: &mut Block, tier: CacheTier, held: &mut usize, held_peak: &mut usize) -> bool {
    let is_new = block.tiers & bit(tier) == 0;
    *held += usize::from(block.tiers == 0);
    *held_peak = (*held_peak).max(*held);
    block.tiers |= bit(tier);
    is_new
}

fn bit(tier: CacheTier) -> u8 {
    1 << tier.index()
}
