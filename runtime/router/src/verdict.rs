//! From a policy's answer to one candidate.

use signalbox_policy_host::Decision;

/// The row an answer names: its pick, or the lowest cost, where `draw` chooses among equal ones. `draw(n)` gives a
/// number below `n`. `None` where the answer excludes everybody (every cost infinite) or names no row (P-1).
pub(crate) fn pick(
    decision: &Decision,
    candidates: usize,
    mut draw: impl FnMut(u32) -> u32,
) -> Option<usize> {
    if let Some(row) = decision.pick {
        return Some(row as usize).filter(|row| *row < candidates);
    }
    let mut best: Option<(usize, f32)> = None;
    let mut equals = 1;
    for (row, &cost) in decision.costs.iter().enumerate().take(candidates) {
        if !cost.is_finite() {
            continue;
        }
        match best {
            Some((_, least)) if cost > least => {}
            Some((_, least)) if cost == least => {
                // Reservoir sampling: each of k equal costs stays with probability 1/k.
                equals += 1;
                if draw(equals) == 0 {
                    best = Some((row, cost));
                }
            }
            _ => {
                equals = 1;
                best = Some((row, cost));
            }
        }
    }
    best.map(|(row, _)| row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(costs: &[f32]) -> Decision {
        Decision {
            costs: costs.to_vec(),
            pick: None,
        }
    }

    #[test]
    fn the_lowest_finite_cost_wins() {
        let decision = costs(&[f32::INFINITY, 3.0, 1.0, f32::NAN]);
        assert_eq!(pick(&decision, 4, |_| 0), Some(2));
        assert_eq!(pick(&costs(&[f32::INFINITY; 2]), 2, |_| 0), None);
    }

    #[test]
    fn equal_costs_are_all_chosen_by_some_draw() {
        let decision = costs(&[1.0, 1.0, 1.0]);
        assert_eq!(pick(&decision, 3, |_| 1), Some(0));
        assert_eq!(pick(&decision, 3, |_| 0), Some(2));
        assert_eq!(pick(&decision, 3, |n| u32::from(n == 3)), Some(1));
    }

    #[test]
    fn a_pick_out_of_range_names_nobody() {
        let decision = Decision {
            costs: Vec::new(),
            pick: Some(2),
        };
        assert_eq!(pick(&decision, 2, |_| 0), None);
        assert_eq!(pick(&decision, 3, |_| 0), Some(2));
    }
}
