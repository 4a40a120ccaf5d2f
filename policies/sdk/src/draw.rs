//! A draw among candidates of nearly equal cost.
//!
//! Without it, routers herd: the load that a router knows of the others is a moment old, so all routers send their next
//! request to the same best worker.

use crate::{Candidates, Key, Request};

/// Candidates whose cost differs by less than this share of the prompt's own cost count as nearly equal. A request
/// of another router that this one does not see yet changes a worker's cost by about a whole prompt, so a difference
/// of a tenth is below what a router can know.
pub const DEFAULT_SPREAD: f32 = 0.1;

/// Adds to each cost a surcharge that is drawn for each candidate and decision, below `width`: near ties change places,
/// larger differences stay. It reads [`Key::Worker`].
pub fn draw_among_near_ties(costs: &mut [f32], width: f32, request: &Request, candidates: &Candidates) {
    for (cost, &worker) in costs.iter_mut().zip(candidates.keys(Key::Worker)) {
        *cost += width * draw(request.seed, worker);
    }
}

/// A pseudo-random number from 0 to below 1: the seed and the worker through MurmurHash3's 64-bit finaliser.
fn draw(seed: u64, worker: u64) -> f32 {
    let mut bits = seed ^ worker.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^= bits >> 33;
    // An f32 holds 24 bits exactly.
    (bits >> 40) as f32 / (1 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_below_one() {
        assert!((0..10_000).all(|seed| (0.0..1.0).contains(&draw(seed, 3))));
    }
}
