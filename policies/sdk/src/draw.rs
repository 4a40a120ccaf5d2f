//! A draw among candidates of nearly equal cost.
//!
//! Without it, routers herd: the load that a router knows of the others is a moment old, so all routers send their next
//! request to the same best worker.

use crate::{Candidates, Key, Request, rendezvous::weight};

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

/// A pseudo-random number from 0 to below 1: the worker's weight for the seed.
fn draw(seed: u64, worker: u64) -> f32 {
    // An f32 holds 24 bits exactly.
    (weight(seed, worker) >> 40) as f32 / (1 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_below_one() {
        assert!((0..10_000).all(|seed| (0.0..1.0).contains(&draw(seed, 3))));
    }
}
