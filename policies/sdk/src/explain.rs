//! The sentence with which policies that count KV blocks explain a decision.

use crate::{Candidates, Count, Request};

/// Says how many blocks of the prompt the worker in row `chosen` holds on all tiers, what it costs, and what the next best
/// worker costs; `shown` writes a cost. It reads the columns of the three overlaps.
#[must_use]
pub fn explain_costs(
    request: &Request,
    candidates: &Candidates,
    costs: &[f32],
    chosen: usize,
    shown: impl Fn(f32) -> String,
) -> String {
    let tiers = [Count::OverlapDevice, Count::OverlapHost, Count::OverlapDisk];
    let overlap: u32 = tiers.map(|tier| candidates.counts(tier)[chosen]).iter().sum();
    let others = costs.iter().enumerate().filter(|&(row, _)| row != chosen);
    let next_best = others.map(|(_, &cost)| cost).min_by(f32::total_cmp);
    let reason = format!(
        "it holds {overlap} of {} blocks and costs {}",
        request.prompt_blocks,
        shown(costs[chosen])
    );
    match next_best {
        Some(cost) => format!("{reason}; the next best costs {}", shown(cost)),
        None => format!("{reason}; there is no other"),
    }
}
