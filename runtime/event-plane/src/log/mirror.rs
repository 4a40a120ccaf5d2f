//! A copy of what the worker's KV cache holds, built from its events.
//!
//! It is split into shards by hash, which a snapshot copies one by one: the engine's thread, which changes the mirror with
//! each step, waits for one shard and not for a million blocks.

use hashbrown::{HashMap, HashSet, hash_map::Entry};
use signalbox_protocol::{CacheTier, KvDigest, KvEvent, SequenceHash};

/// Most blocks of all tiers together, of some 40 bytes each. An engine has fewer, unless it fails to report removals.
/// Blocks beyond the bound are not published, so that routers credit too few blocks and never too many.
const MAX_BLOCKS: usize = 1 << 24;

/// Number of shards. One of a million blocks has 4,000, which are copied in some ten microseconds.
pub(super) const SHARDS: usize = 256;

#[derive(Debug)]
pub(super) struct Mirror {
    shards: Box<[Shard]>,
    /// Distinct blocks of all shards.
    blocks: usize,
    digest: KvDigest,
    max_blocks: usize,
}

type Shard = HashMap<SequenceHash, HeldBlock>;

#[derive(Debug, Clone, Copy)]
struct HeldBlock {
    /// The block before this one, if known.
    parent: Option<SequenceHash>,
    /// A bit for each tier that holds the block; never 0.
    tiers: u8,
}

impl Default for Mirror {
    fn default() -> Self {
        Self::with_max_blocks(MAX_BLOCKS)
    }
}

impl Mirror {
    pub(super) fn with_max_blocks(max_blocks: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::new()).collect(),
            blocks: 0,
            digest: KvDigest::default(),
            max_blocks,
        }
    }

    /// The (tier, block) pairs held.
    pub(super) fn digest(&self) -> KvDigest {
        self.digest
    }

    /// Takes a copy of one shard of `original`. A mirror into which every shard was copied, and to which then every event
    /// is applied that `original` had since the first copy, holds what `original` holds: each event sets what it names,
    /// whatever was there. Its digest counts for nothing.
    pub(super) fn copy_shard(&mut self, original: &Self, shard: usize) {
        self.blocks -= self.shards[shard].len();
        self.shards[shard] = original.shards[shard].clone();
        self.blocks += self.shards[shard].len();
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
            KvEvent::Removed { tier, blocks } => blocks.iter().for_each(|&block| self.remove(*tier, block)),
            KvEvent::Cleared => {
                self.shards.iter_mut().for_each(Shard::clear);
                (self.blocks, self.digest) = (0, KvDigest::default());
            }
        }
        0
    }

    /// Stores a chain. Returns how many of its blocks were within the bound.
    fn store(&mut self, tier: CacheTier, mut parent: Option<SequenceHash>, blocks: &[SequenceHash]) -> usize {
        for (stored, &block) in blocks.iter().enumerate() {
            let is_full = self.blocks >= self.max_blocks;
            let held = match self.shards[shard_of(block)].entry(block) {
                Entry::Occupied(held) => held.into_mut(),
                Entry::Vacant(_) if is_full => return stored,
                Entry::Vacant(vacant) => {
                    self.blocks += 1;
                    vacant.insert(HeldBlock { parent, tiers: 0 })
                }
            };
            if held.tiers & bit(tier) == 0 {
                held.tiers |= bit(tier);
                self.digest.add(tier, block);
            }
            held.parent = held.parent.or(parent);
            parent = Some(block);
        }
        blocks.len()
    }

    fn remove(&mut self, tier: CacheTier, block: SequenceHash) {
        let shard = &mut self.shards[shard_of(block)];
        let Some(held) = shard.get_mut(&block).filter(|held| held.tiers & bit(tier) != 0) else {
            return;
        };
        held.tiers &= !bit(tier);
        self.digest.subtract(tier, block);
        if held.tiers == 0 {
            shard.remove(&block);
            self.blocks -= 1;
        }
    }

    fn get(&self, block: &SequenceHash) -> Option<&HeldBlock> {
        self.shards[shard_of(*block)].get(block)
    }

    /// The contents as `Stored` chains, parents before children. A chain ends where it branches or where its tiers
    /// change; it appears once for each of its tiers.
    pub(super) fn chains(&self) -> Vec<KvEvent> {
        // One child of a block continues its chain. The others, which are few, begin chains of their own.
        let mut continued_by: HashMap<SequenceHash, SequenceHash> = HashMap::with_capacity(self.blocks);
        let mut branches: HashMap<SequenceHash, Vec<SequenceHash>> = HashMap::new();
        let mut heads = Vec::new();
        for (&block, held) in self.shards.iter().flatten() {
            let Some((parent, parent_block)) =
                held.parent.and_then(|parent| Some((parent, self.get(&parent)?)))
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
        let mut visited = HashSet::with_capacity(self.blocks);
        for head in heads {
            let mut pending = vec![head];
            while let Some(head) = pending.pop() {
                let Some(held) = self.get(&head) else {
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

/// The upper bits, which are as random as all others; a table within a shard uses other ones of its own hash.
fn shard_of(block: SequenceHash) -> usize {
    (block.0 >> 56) as usize % SHARDS
}

fn bit(tier: CacheTier) -> u8 {
    1 << tier.index()
}
