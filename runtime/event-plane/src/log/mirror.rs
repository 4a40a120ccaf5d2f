//! What the worker's KV cache holds, as its events told it.

use hashbrown::{HashMap, HashSet};
use signalbox_protocol::{CacheTier, KvEvent, SequenceHash};

/// The most blocks of all tiers together, at some 40 bytes each: an engine has fewer, so that only one that forgets
/// to tell removals gets here. What is past it is told to nobody, so routers credit less, never more.
const MAX_BLOCKS: usize = 1 << 24;

#[derive(Debug, Clone)]
pub(super) struct Mirror {
    blocks: HashMap<SequenceHash, Held>,
    max_blocks: usize,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    /// The block before it, where it is known.
    parent: Option<SequenceHash>,
    /// A bit for each tier, never 0.
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

    /// Takes events over. Returns them without the blocks there was no room for, and how many those were.
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

    /// How many of `blocks` there was room for.
    fn store(&mut self, tier: CacheTier, mut parent: Option<SequenceHash>, blocks: &[SequenceHash]) -> usize {
        for (stored, &block) in blocks.iter().enumerate() {
            if self.blocks.len() >= self.max_blocks && !self.blocks.contains_key(&block) {
                return stored;
            }
            let held = self.blocks.entry(block).or_insert(Held { parent, tiers: 0 });
            held.tiers |= bit(tier);
            held.parent = held.parent.or(parent);
            parent = Some(block);
        }
        blocks.len()
    }

    /// The content as `Stored` chains, parents before children: each as long as it can be without branching or
    /// changing tiers, once for each tier it is on.
    pub(super) fn chains(&self) -> Vec<KvEvent> {
        // Of a block's children one continues its chain; the others, few of them, begin chains of their own.
        let mut continued_by: HashMap<SequenceHash, SequenceHash> = HashMap::with_capacity(self.blocks.len());
        let mut branches: HashMap<SequenceHash, Vec<SequenceHash>> = HashMap::new();
        let mut begins = Vec::new();
        for (&block, held) in &self.blocks {
            let Some((parent, before)) = held
                .parent
                .and_then(|parent| Some((parent, self.blocks.get(&parent)?)))
            else {
                begins.push(block);
                continue;
            };
            if before.tiers != held.tiers || continued_by.contains_key(&parent) {
                branches.entry(parent).or_default().push(block);
            } else {
                continued_by.insert(parent, block);
            }
        }
        // Real parents make no rings, but an engine may say anything: whatever hangs on no beginning comes last.
        begins.extend(branches.values().flatten());
        begins.extend(continued_by.keys());
        let mut stored = Vec::new();
        let mut visited = HashSet::with_capacity(self.blocks.len());
        for begin in begins {
            let mut heads = vec![begin];
            while let Some(head) = heads.pop() {
                let Some(held) = self.blocks.get(&head) else {
                    continue;
                };
                let mut chain = Vec::new();
                let mut next = Some(head);
                while let Some(block) = next.filter(|block| visited.insert(*block)) {
                    chain.push(block);
                    heads.extend(branches.get(&block).into_iter().flatten());
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
