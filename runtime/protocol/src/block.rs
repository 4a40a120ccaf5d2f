//! How tokens become KV block identities.
//!
//! A prompt is cut into KV blocks of `block_size` tokens. An incomplete last block has no identity. Each block's
//! [`SequenceHash`] covers the block and everything before it, so that one number names a whole prefix:
//!
//! ```text
//! seed   = XXH3-64("signalbox.block.v1" 0 model 0 lora 0 cache_salt)
//! hash_0 = XXH3-64(seed = seed,       tokens of block 0 as little-endian u32)
//! hash_i = XXH3-64(seed = hash_(i-1), tokens of block i as little-endian u32)
//! ```
//!
//! If one of the three has a 0 byte itself, `model 0 lora 0 cache_salt` would not be unique. Then the seed is that of
//! `"signalbox.block.v1.lengths"`, the three lengths in bytes as decimal numbers, and the three, joined by 0 bytes.
//!
//! Routers and workers compute the same hashes from the same tokens, so KV events carry hashes and never tokens.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Names a KV block together with all blocks before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SequenceHash(pub u64);

impl fmt::Debug for SequenceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Hashes token sequences of one model, LoRA adapter and cache salt. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct BlockHasher {
    seed: u64,
    block_size: usize,
}

impl BlockHasher {
    /// `block_size` is in tokens and at least 1. `lora` and `cache_salt` are empty for requests without them.
    pub fn new(model: &str, lora: &str, cache_salt: &str, block_size: usize) -> Self {
        debug_assert!(block_size > 0, "a KV block holds at least one token");
        let salt = match [model, lora, cache_salt] {
            parts if parts.iter().any(|part| part.contains('\0')) => {
                let [model_len, lora_len, salt_len] = parts.map(|part| part.len().to_string());
                [
                    "signalbox.block.v1.lengths",
                    &model_len,
                    &lora_len,
                    &salt_len,
                    model,
                    lora,
                    cache_salt,
                ]
                .join("\0")
            }
            _ => ["signalbox.block.v1", model, lora, cache_salt].join("\0"),
        };
        Self {
            seed: xxh3_64(salt.as_bytes()),
            block_size: block_size.max(1),
        }
    }

    /// Tokens per block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// The hash of the block `tokens`, which follows `parent` or, without a parent, begins the sequence.
    pub fn next(&self, parent: Option<SequenceHash>, tokens: &[u32]) -> SequenceHash {
        debug_assert_eq!(
            tokens.len(),
            self.block_size,
            "only whole blocks have an identity"
        );
        let mut chain = Chain::new(parent.map_or(self.seed, |hash| hash.0));
        chain.push(tokens)
    }

    /// The hashes of the whole blocks of `tokens`, first block first.
    pub fn hash(&self, tokens: &[u32]) -> Vec<SequenceHash> {
        let mut chain = Chain::new(self.seed);
        tokens
            .chunks_exact(self.block_size)
            .map(|block| chain.push(block))
            .collect()
    }
}

/// The running hash of a sequence, with a buffer for the bytes of one block.
struct Chain {
    hash: u64,
    bytes: Vec<u8>,
}

impl Chain {
    fn new(seed: u64) -> Self {
        Self {
            hash: seed,
            bytes: Vec::new(),
        }
    }

    fn push(&mut self, block: &[u32]) -> SequenceHash {
        self.bytes.resize(4 * block.len(), 0);
        let (places, _) = self.bytes.as_chunks_mut::<4>();
        for (place, token) in places.iter_mut().zip(block) {
            *place = token.to_le_bytes();
        }
        self.hash = xxh3_64_with_seed(&self.bytes, self.hash);
        SequenceHash(self.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_prefixes_share_hashes_until_they_differ() {
        let hasher = BlockHasher::new("m", "", "", 4);
        let a = hasher.hash(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let b = hasher.hash(&[1, 2, 3, 4, 5, 6, 7, 0]);
        assert_eq!(a.len(), 2, "the ninth token is no whole block");
        assert_eq!(a[0], b[0]);
        assert_ne!(a[1], b[1]);
    }

    #[test]
    fn a_block_by_itself_hashes_as_it_does_in_its_sequence() {
        let hasher = BlockHasher::new("m", "", "", 2);
        let all = hasher.hash(&[1, 2, 3, 4]);
        assert_eq!(hasher.next(None, &[1, 2]), all[0]);
        assert_eq!(hasher.next(Some(all[0]), &[3, 4]), all[1]);
    }

    #[test]
    fn model_lora_and_salt_separate_equal_tokens() {
        let hash = |m, l, s| BlockHasher::new(m, l, s, 2).hash(&[1, 2])[0];
        let all = [
            hash("m", "", ""),
            hash("n", "", ""),
            hash("m", "l", ""),
            hash("m", "", "l"),
            // A 0 byte within one of them is not the one between two of them.
            hash("m\0l", "", ""),
            hash("m", "l\0", ""),
            hash("m", "\0l", ""),
            hash("m", "", "\0l"),
            hash("m", "l", "\0"),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }

    /// The hashes are a wire format: other programs compute them too.
    #[test]
    fn the_hash_of_known_tokens_never_changes() {
        let hashes = BlockHasher::new("m", "", "", 2).hash(&[1, 2, 3, 4]);
        assert_eq!(hashes, KNOWN.map(SequenceHash));
    }

    /// Computed with the `xxhash` package of Python.
    const KNOWN: [u64; 2] = [0x8e24_08ab_6ad8_76f8, 0xad36_2bee_2e24_bb40];
}
