//! Random numbers from the seed of a decision, for policies that draw.

/// A stream of pseudo-random numbers that [`Request::seed`](crate::Request::seed) determines (SplitMix64), so that a recorded
/// decision can be replayed.
#[derive(Debug, Clone)]
pub struct Draws(u64);

impl Draws {
    /// The stream of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number: all 64 bits are random.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number from 0 to below `limit`, each about equally likely; 0 if `limit` is 0.
    pub const fn below(&mut self, limit: u32) -> u32 {
        (((self.bits() >> 32) * limit as u64) >> 32) as u32
    }

    /// A number from 0 to below 1.
    pub const fn unit(&mut self) -> f64 {
        // An f64 holds 53 bits exactly.
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_below_their_limit_and_reach_every_number_equally() {
        let mut counts = [0; 5];
        for seed in 0..10_000 {
            counts[Draws::new(seed).below(5) as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (1_850..2_150).contains(count)),
            "{counts:?}"
        );
        assert_eq!(Draws::new(1).below(0), 0);
        assert!((0..10_000).all(|seed| (0.0..1.0).contains(&Draws::new(seed).unit())));
    }
}
