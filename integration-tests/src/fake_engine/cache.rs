//! A paged KV cache with prefix reuse, as in vLLM's `v1/core/block_pool.py`.
//!
//! A sequence takes the cached blocks that its prompt begins with, and free blocks for the rest of its tokens. A block
//! that is full gets a hash, under which later sequences find it. Released blocks keep their hashes until they are taken
//! again, the one released longest ago first, and of one sequence the last block first.
//!
//! As in vLLM, the last token of a prompt is always computed, so that the last block of a prompt of whole blocks exists
//! twice: both copies are reported as stored, and each copy is reported when it is removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sha2::{Digest, Sha256};

/// A change of the cache, with engine hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CacheEvent {
    /// Blocks that follow one another got hashes.
    Stored(StoredBlocks),
    /// A copy of a block was taken for other tokens.
    Removed(u64),
    /// All blocks lost their hashes.
    Cleared,
}

/// Blocks that follow one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredBlocks {
    pub(super) hashes: Vec<u64>,
    /// The block before the first one.
    pub(super) parent: Option<u64>,
    /// The tokens of all blocks.
    pub(super) tokens: Vec<u32>,
    pub(super) key: CacheKey,
}

/// What keeps equal tokens of different requests apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CacheKey {
    pub(super) adapter: Option<String>,
    pub(super) salt: Option<String>,
}

/// The tokens of one sequence and the blocks that hold them.
#[derive(Debug)]
pub(super) struct Sequence {
    key: CacheKey,
    blocks: Vec<usize>,
    /// The hashes of the full blocks so far.
    hashes: Vec<u64>,
    /// Tokens of the prompt that were found in the cache.
    cached: usize,
}

#[derive(Debug, Default)]
struct Block {
    hash: Option<u64>,
    sequences: u32,
    /// The place in the order of free blocks; meaningless while a sequence holds the block.
    freed_at: u64,
}

/// The cache of one data-parallel rank.
#[derive(Debug)]
pub(super) struct PrefixCache {
    block_size: usize,
    is_reusing: bool,
    blocks: Vec<Block>,
    /// The free blocks, the next one to take first.
    free: BTreeMap<u64, usize>,
    copies: HashMap<u64, Vec<usize>>,
    ticks: u64,
}

impl PrefixCache {
    /// An empty cache. Without `is_reusing`, blocks get no hashes.
    pub(super) fn new(blocks: usize, block_size: usize, is_reusing: bool) -> Self {
        let ticks = blocks as u64;
        Self {
            block_size,
            is_reusing,
            blocks: (0..ticks)
                .map(|freed_at| Block {
                    freed_at,
                    ..Block::default()
                })
                .collect(),
            free: (0..ticks).zip(0..).collect(),
            copies: HashMap::new(),
            ticks,
        }
    }

    /// Whether `blocks` more could be taken now.
    pub(super) fn has_room(&self, blocks: usize) -> bool {
        self.free.len() >= blocks
    }

    /// The blocks that a sequence of `tokens` needs.
    pub(super) fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// Starts a sequence that will have `total` tokens. Returns it with the removals this caused, or `None` without
    /// enough free blocks.
    pub(super) fn admit(
        &mut self,
        prompt: &[u32],
        total: usize,
        key: CacheKey,
    ) -> Option<(Sequence, Vec<CacheEvent>)> {
        let needed = self.needed(total.max(prompt.len()));
        // The last token is computed even if its block is cached: the first generated token comes from it.
        let reusable = prompt.len().saturating_sub(1) / self.block_size;
        let mut hashes = Vec::new();
        let mut blocks = Vec::new();
        for tokens in prompt.chunks_exact(self.block_size).take(reusable) {
            let hash = block_hash(hashes.last().copied(), tokens, &key);
            let Some(copy) = self.copies.get(&hash).and_then(|copies| copies.first()) else {
                break;
            };
            hashes.push(hash);
            blocks.push(*copy);
        }
        let free_hits = blocks
            .iter()
            .filter(|block| self.blocks[**block].sequences == 0)
            .count();
        if self.free.len() < free_hits + needed - blocks.len() {
            return None;
        }
        for block in &blocks {
            let block = &mut self.blocks[*block];
            if block.sequences == 0 {
                self.free.remove(&block.freed_at);
            }
            block.sequences += 1;
        }
        let cached = blocks.len() * self.block_size;
        let mut events = Vec::new();
        while blocks.len() < needed {
            let Some((_, index)) = self.free.pop_first() else {
                break;
            };
            let block = &mut self.blocks[index];
            block.sequences = 1;
            if let Some(hash) = block.hash.take() {
                self.forget_copy(hash, index);
                events.push(CacheEvent::Removed(hash));
            }
            blocks.push(index);
        }
        let sequence = Sequence {
            key,
            blocks,
            hashes,
            cached,
        };
        Some((sequence, events))
    }

    /// Gives hashes to the blocks that are full now that `tokens`, all of the sequence so far, are computed.
    pub(super) fn computed(&mut self, sequence: &mut Sequence, tokens: &[u32]) -> Option<CacheEvent> {
        if !self.is_reusing {
            return None;
        }
        let known = sequence.hashes.len();
        let parent = sequence.hashes.last().copied();
        let full = tokens.len() / self.block_size;
        for number in known..full {
            let block = &tokens[number * self.block_size..(number + 1) * self.block_size];
            let hash = block_hash(sequence.hashes.last().copied(), block, &sequence.key);
            sequence.hashes.push(hash);
            let index = sequence.blocks[number];
            self.blocks[index].hash = Some(hash);
            self.copies.entry(hash).or_default().push(index);
        }
        (full > known).then(|| {
            CacheEvent::Stored(StoredBlocks {
                hashes: sequence.hashes[known..].to_vec(),
                parent,
                tokens: tokens[known * self.block_size..full * self.block_size].to_vec(),
                key: sequence.key.clone(),
            })
        })
    }

    /// Ends a sequence. Its full blocks stay in the cache.
    pub(super) fn release(&mut self, sequence: &Sequence) {
        for index in sequence.blocks.iter().rev() {
            let block = &mut self.blocks[*index];
            block.sequences -= 1;
            if block.sequences == 0 {
                block.freed_at = self.ticks;
                self.free.insert(self.ticks, *index);
                self.ticks += 1;
            }
        }
    }

    /// Takes all hashes away, as `/reset_prefix_cache` does.
    pub(super) fn clear(&mut self) -> CacheEvent {
        self.copies.clear();
        for block in &mut self.blocks {
            block.hash = None;
        }
        CacheEvent::Cleared
    }

    /// The hashes that sequences would find now.
    pub(super) fn held(&self) -> BTreeSet<u64> {
        self.copies.keys().copied().collect()
    }

    /// The share of blocks that sequences hold.
    pub(super) fn usage(&self) -> f64 {
        let held = self.blocks.len() - self.free.len();
        held as f64 / self.blocks.len().max(1) as f64
    }

    fn forget_copy(&mut self, hash: u64, index: usize) {
        if let Some(copies) = self.copies.get_mut(&hash) {
            copies.retain(|copy| *copy != index);
            if copies.is_empty() {
                self.copies.remove(&hash);
            }
        }
    }
}

impl Sequence {
    /// Tokens of the prompt that were found in the cache.
    pub(super) fn cached(&self) -> usize {
        self.cached
    }
}

/// The engine's hash of a block: 64 bits of SHA-256 over its parent's hash, its tokens and its key. Not Signalbox's hash,
/// so that a test fails where an engine's hash is taken for one of Signalbox.
fn block_hash(parent: Option<u64>, tokens: &[u32], key: &CacheKey) -> u64 {
    let mut hash = Sha256::new();
    hash.update(parent.unwrap_or(0).to_le_bytes());
    for token in tokens {
        hash.update(token.to_le_bytes());
    }
    // The adapter enters every block, the salt the first one; the others have it from their parent.
    for part in [&key.adapter, &key.salt.clone().filter(|_| parent.is_none())] {
        hash.update(part.as_deref().unwrap_or_default());
        hash.update([0]);
    }
    let digest = hash.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(cache: &mut PrefixCache, prompt: &[u32], salt: Option<&str>) -> (usize, Vec<CacheEvent>) {
        let key = CacheKey {
            salt: salt.map(String::from),
            ..CacheKey::default()
        };
        let (mut sequence, mut events) = cache.admit(prompt, prompt.len(), key).unwrap();
        events.extend(cache.computed(&mut sequence, prompt));
        cache.release(&sequence);
        (sequence.cached(), events)
    }

    /// What a subscriber holds after these events: sets, no counts.
    fn apply(held: &mut BTreeSet<u64>, events: &[CacheEvent]) {
        for event in events {
            match event {
                CacheEvent::Stored(blocks) => held.extend(&blocks.hashes),
                CacheEvent::Removed(hash) => _ = held.remove(hash),
                CacheEvent::Cleared => held.clear(),
            }
        }
    }

    #[test]
    fn a_repeated_prompt_is_found_but_for_its_last_token() {
        let mut cache = PrefixCache::new(16, 4, true);
        let prompt: Vec<u32> = (0..10).collect();
        let (cached, events) = run(&mut cache, &prompt, None);
        assert_eq!((cached, events.len()), (0, 1));
        assert_eq!(run(&mut cache, &prompt, None), (8, Vec::new()));
        assert_eq!(run(&mut cache, &prompt[..9], None), (8, Vec::new()));
        // Its last block is computed again, and there are two copies.
        let (cached, events) = run(&mut cache, &prompt[..8], None);
        assert_eq!((cached, events.len()), (4, 1));
    }

    #[test]
    fn a_salt_separates_equal_prompts() {
        let mut cache = PrefixCache::new(16, 4, true);
        let prompt: Vec<u32> = (0..10).collect();
        run(&mut cache, &prompt, None);
        assert_eq!(run(&mut cache, &prompt, Some("a")).0, 0);
        assert_eq!(run(&mut cache, &prompt, Some("a")).0, 8);
        assert_eq!(run(&mut cache, &prompt, Some("b")).0, 0);
    }

    #[test]
    fn the_block_released_longest_ago_is_taken_first_and_the_leaf_before_its_parent() {
        let mut cache = PrefixCache::new(4, 4, true);
        let (_, events) = run(&mut cache, &(0..9).collect::<Vec<_>>(), None);
        let CacheEvent::Stored(first) = &events[0] else {
            panic!()
        };
        // One block is free, and two of the first prompt's three are needed: the unhashed one and its leaf.
        let (_, events) = run(&mut cache, &(100..112).collect::<Vec<_>>(), None);
        assert_eq!(events[0], CacheEvent::Removed(first.hashes[1]));
        assert_eq!(events.len(), 2, "{events:?}");
    }

    #[test]
    fn without_room_nothing_changes() {
        let mut cache = PrefixCache::new(2, 4, true);
        let (sequence, _) = cache.admit(&[1, 2, 3], 8, CacheKey::default()).unwrap();
        assert!(cache.admit(&[1], 1, CacheKey::default()).is_none());
        cache.release(&sequence);
        assert!(cache.admit(&[1], 8, CacheKey::default()).is_some());
    }

    #[test]
    fn a_subscriber_never_holds_a_block_that_the_cache_lacks() {
        let mut cache = PrefixCache::new(24, 4, true);
        let mut held = BTreeSet::new();
        for round in 0..500_u32 {
            let start = round * 7 % 5;
            let length = (round * 13 % 40) as usize + 1;
            let prompt: Vec<u32> = (0..length as u32).map(|token| token / 9 * start).collect();
            let (_, events) = run(&mut cache, &prompt, None);
            apply(&mut held, &events);
            if round % 97 == 96 {
                apply(&mut held, &[cache.clear()]);
            }
            assert!(held.is_subset(&cache.held()), "round {round}");
        }
        assert!(held.len() > 5);
    }
}
