//! A copy of what the worker's KV cache holds, built from its events.

use hashbrown::{HashMap, HashSet};
use signalbox_protocol::{CacheTier, KvEvent, SequenceHash};

/// Most blocks of all tiers together, of some 40 bytes each. An engine has fewer, unless it fails to report removals.
/// Blocks beyond the bound are not published, so that routers credit too few blocks and never too many.
const MAX_BLOCKS: usize = 1 << 24;

#[derive(Debug, Clone)]
pub(super) struct Mirror {
    blocks: HashMap<SequenceHash, HeldBlock>,
    max_blocks: usize,
}

#[derive(Debug, Clone, Copy)]
struct HeldBlock {
    /// The block before this one, if known.
    parent: Option<SequenceHash>,
    /// A bit for each tier that holds the block; never 0.
    tiers: u8,
}

impl Default for Mirror {
    fn default() -> Self {
        Self {
            blocks: HashMap::new(),
            max_blocks: MAX_BLOCKS,
        }
    }
}

impl Mirror {
    #[cfg(test)]
    pub(super) fn with_max_blocks(max_blocks: usize) -> Self {
        Self {
            blocks: HashMap::new(),
            max_blocks,
        }
    }

    /// Applies events. Returns them without the blocks beyond the bound, and the number of those blocks.
    pub(super) fn apply_all(&mut self, mut events: Vec<KvEvent>) -> (Vec<KvEvent>, usize) {
        let refused = events.iter_mut().map(|event| self.apply(event)).sum();
        (events, refused)
    }

    fn apply(&mut self, event: &mut KvEvent) -> usize {
        match event {
            KvEvent::Stored { tier, parent, blocks } => {
                let fitting = self.store(*tier, *parent, blocks);
                let refused = blocks.len() - fitting;
                blocks.truncate(fitting);
                return refused;
            }
            KvEvent::Removed { tier, blocks } => {
                for block in blocks {
                    if let Some(held) = self.blocks.get_mut(block) {
                        held.tiers &= !bit(*tier);
                        if held.tiers == 0 {
                            self.blocks.remove(block);
                        }
                    }
                }
            }
            KvEvent::Cleared => self.blocks.clear(),
        }
        0
    }

    /// Stores a chain. Returns how many of its blocks were within the bound.
    fn store(&mut self, tier: CacheTier, mut parent: Option<SequenceHash>, blocks: &[SequenceHash]) -> usize {
        for (stored, &block) in blocks.iter().enumerate() {
            if self.blocks.len() >= self.max_blocks && !self.blocks.contains_key(&block) {
                return stored;
            }
            let held = self.blocks.entry(block).or_insert(HeldBlock { parent, tiers: 0 });
            held.tiers |= bit(tier);
            held.parent = held.parent.or(parent);
            parent = Some(block);
        }
        blocks.len()
    }

    /// The contents as `Stored` chains, parents before children. A chain ends where it branches or where its tiers
    /// change; it appears once for each of its tiers.
    pub(super) fn chains(&self) -> Vec<KvEvent> {
        // One child of a block continues its chain. The others, which are few, begin chains of their own.
        let mut continued_by: HashMap<SequenceHash, SequenceHash> = HashMap::with_capacity(self.blocks.len());
        let mut branches: HashMap<SequenceHash, Vec<SequenceHash>> = HashMap::new();
        let mut heads = Vec::new();
        for (&block, held) in &self.blocks {
            let Some((parent, parent_block)) = held
                .parent
                .and_then(|parent| Some((parent, self.blocks.get(&parent)?)))
            else {
                heads.push(block);
                continue;
            };
            if parent_block.tiers != held.tiers || continued_by.contains_key(&parent) {
                branches.entry(parent).or_default().push(block);
            } else {
                continued_by.insert(parent, block);
            }
        }
        // Parents form no cycles, but an engine may report any parent: blocks that no head leads to come last.
        heads.extend(branches.values().flatten());
        heads.extend(continued_by.keys());
        let mut stored = Vec::new();
        let mut visited = HashSet::with_capacity(self.blocks.len());
        for head in heads {
            let mut pending = vec![head];
            while let Some(head) = pending.pop() {
                let Some(held) = self.blocks.get(&head) else {
                    continue;
                };
                let mut chain = Vec::new();
                let mut next = Some(head);
                while let Some(block) = next.filter(|block| visited.insert(*block)) {
                    chain.push(block);
                    pending.extend(branches.get(&block).into_iter().flatten());
                    next = continued_by.get(&block).copied();
                }
                if chain.is_empty() {
                    continue;
                }
                let tiers = CacheTier::ALL
                    .into_iter()
                    .filter(|&tier| held.tiers & bit(tier) != 0);
                stored.extend(tiers.map(|tier| KvEvent::Stored {
                    tier,
                    parent: held.parent,
                    blocks: chain.clone(),
                }));
            }
        }
        stored
    }
}

fn bit(tier: CacheTier) -> u8 {
    1 << tier.index()
}
