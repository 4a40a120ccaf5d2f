//! From a policy's answer to one candidate.

use signalbox_policy_host::Decision;

/// The row an answer names: its pick, or the lowest cost, where `draw` chooses among equal ones. `draw(n)` gives a
/// number below `n`. `None` where the answer excludes everybody (every cost infinite) or names no row (P-1).
pub(crate) fn select_row(
    decision: &Decision,
    candidates: usize,
    mut draw: impl FnMut(u32) -> u32,
) -> Option<usize> {
    if let Some(row) = decision.pick {
        return Some(row as usize).filter(|row| *row < candidates);
    }
    let costs = decision.costs.get(..candidates).unwrap_or(&decision.costs);
    let least = least(costs);
    if !least.is_finite() {
        return None;
    }
    let equals = |costs: &[f32]| costs.iter().filter(|&&cost| cost == least).count();
    let mut nth = match equals(costs) {
        1 => 0,
        many => draw(many as u32) as usize,
    };
    // The stretch it is in first: whole stretches are counted by SIMD.
    for (stretch, costs) in costs.chunks(STRETCH).enumerate() {
        let here = equals(costs);
        if nth < here {
            let mut rows = (0..costs.len()).filter(|&row| costs[row] == least);
            return Some(stretch * STRETCH + rows.nth(nth)?);
        }
        nth -= here;
    }
    None
}

const STRETCH: usize = 64;

/// The lowest cost that is a number, +inf where there is none. In lanes, which the compiler makes SIMD of.
fn least(costs: &[f32]) -> f32 {
    const LANES: usize = 8;
    let lower = |a: f32, b: f32| if b < a { b } else { a };
    let mut lanes = [f32::INFINITY; LANES];
    let (chunks, rest) = costs.as_chunks::<LANES>();
    for chunk in chunks {
        for (least, &cost) in lanes.iter_mut().zip(chunk) {
            *least = lower(*least, cost);
        }
    }
    lanes
        .into_iter()
        .chain(rest.iter().copied())
        .fold(f32::INFINITY, lower)
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
        assert_eq!(select_row(&decision, 4, |_| 0), Some(2));
        assert_eq!(select_row(&costs(&[f32::INFINITY; 2]), 2, |_| 0), None);
    }

    #[test]
    fn equal_costs_are_all_chosen_by_some_draw() {
        let decision = costs(&[1.0, 1.0, 1.0]);
        for row in 0..3 {
            let draw = |below| {
                assert_eq!(below, 3);
                row
            };
            assert_eq!(select_row(&decision, 3, draw), Some(row as usize));
        }
    }

    #[test]
    fn the_lowest_is_found_wherever_it_is() {
        for candidates in [1, 7, 8, 9, 64, 65, 200] {
            for lowest in 0..candidates {
                let mut decision = costs(&vec![2.0; candidates]);
                decision.costs[lowest] = 1.0;
                assert_eq!(select_row(&decision, candidates, |_| 0), Some(lowest));
            }
        }
    }

    #[test]
    fn a_pick_out_of_range_names_nobody() {
        let decision = Decision {
            costs: Vec::new(),
            pick: Some(2),
        };
        assert_eq!(select_row(&decision, 2, |_| 0), None);
        assert_eq!(select_row(&decision, 3, |_| 0), Some(2));
    }
}
