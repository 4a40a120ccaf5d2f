//! A digest of the KV blocks that a worker holds, by which a router and a worker find that they disagree.

use serde::{Deserialize, Serialize};

use crate::{CacheTier, SequenceHash};

/// A number of (tier, block) pairs and their digest. It does not depend on their order, and follows each change in
/// constant time: a block is added when it is stored, and subtracted when it is removed.
///
/// The digest is a sum of the blocks' hashes. They are uniform over 64 bits, so two different sets of the same size have
/// the same sum once in 2^64 times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvDigest {
    /// Number of pairs. A block on two tiers counts twice.
    pub blocks: u64,
    /// Sum over the pairs, modulo 2^64.
    pub sum: u64,
}

/// Odd, so that a block's contribution differs from tier to tier and none is lost.
const TIER_FACTORS: [u64; 3] = [1, 0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9];

impl KvDigest {
    /// Adds a block that is stored on a tier now and was not before.
    pub fn add(&mut self, tier: CacheTier, block: SequenceHash) {
        self.add_sum(tier, 1, block.0);
    }

    /// Subtracts a block that is not on a tier any more.
    pub fn subtract(&mut self, tier: CacheTier, block: SequenceHash) {
        self.subtract_sum(tier, 1, block.0);
    }

    /// Adds blocks by their number and the sum of their hashes.
    pub fn add_sum(&mut self, tier: CacheTier, blocks: u64, sum: u64) {
        self.blocks = self.blocks.wrapping_add(blocks);
        self.sum = self
            .sum
            .wrapping_add(sum.wrapping_mul(TIER_FACTORS[tier.index()]));
    }

    /// Subtracts blocks by their number and the sum of their hashes.
    pub fn subtract_sum(&mut self, tier: CacheTier, blocks: u64, sum: u64) {
        self.blocks = self.blocks.wrapping_sub(blocks);
        self.sum = self
            .sum
            .wrapping_sub(sum.wrapping_mul(TIER_FACTORS[tier.index()]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_tiers_do() {
        let pairs = [
            (CacheTier::Device, SequenceHash(7)),
            (CacheTier::Host, SequenceHash(9)),
            (CacheTier::Disk, SequenceHash(u64::MAX)),
        ];
        let of = |pairs: &[(CacheTier, SequenceHash)]| {
            let mut digest = KvDigest::default();
            pairs.iter().for_each(|&(tier, block)| digest.add(tier, block));
            digest
        };
        let mut digest = of(&pairs);
        assert_eq!(digest, of(&[pairs[2], pairs[0], pairs[1]]));
        assert_ne!(
            digest,
            of(&[(CacheTier::Host, SequenceHash(7)), pairs[1], pairs[2]])
        );
        digest.subtract(pairs[1].0, pairs[1].1);
        assert_eq!(digest, of(&[pairs[0], pairs[2]]));
        digest.subtract(pairs[0].0, pairs[0].1);
        digest.subtract(pairs[2].0, pairs[2].1);
        assert_eq!(digest, KvDigest::default());
    }
}
