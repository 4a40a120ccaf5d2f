//! From a policy's answer to one candidate.

use signalbox_policy_host::Decision;

/// Costs are searched this many at a time, so that the compiler counts equal ones with vector instructions.
const STRETCH: usize = 64;

/// The row of the candidate that gets the request: the policy's pick, or the row with the lowest cost.
///
/// `seed` is the request's seed and breaks ties: among rows of equal lowest cost each seed names one, and over many
/// seeds every such row is named equally often. The result depends on the arguments alone, so a recorded decision
/// replays.
///
/// `None` if the pick is no row (P-1) or every cost is infinite.
pub(crate) fn select_row(decision: &Decision, candidates: usize, seed: u64) -> Option<usize> {
    if let Some(row) = decision.pick {
        return Some(row as usize).filter(|row| *row < candidates);
    }
    let costs = decision.costs.get(..candidates).unwrap_or(&decision.costs);
    let lowest = lowest(costs);
    if !lowest.is_finite() {
        return None;
    }
    let count_equal = |costs: &[f32]| costs.iter().filter(|&&cost| cost == lowest).count();
    let mut nth = match count_equal(costs) {
        1 => 0,
        many => below(seed, many),
    };
    // First the stretch that holds the row, then the row in it.
    for (number, stretch) in costs.chunks(STRETCH).enumerate() {
        let equal = count_equal(stretch);
        if nth < equal {
            let mut rows = (0..stretch.len()).filter(|&row| stretch[row] == lowest);
            return Some(number * STRETCH + rows.nth(nth)?);
        }
        nth -= equal;
    }
    None
}

/// A number below `bound` from a seed: SplitMix64's output for the seed, scaled by a multiplication and a shift.
///
/// Later releases will replay recorded decisions with it, so it never changes. The seed is mixed first because the
/// policy may have used its bits already.
fn below(seed: u64, bound: usize) -> usize {
    ((u128::from(scramble(seed)) * bound as u128) >> 64) as usize
}

/// SplitMix64's output function: each bit of the input changes half of the output's bits.
pub(crate) fn scramble(bits: u64) -> u64 {
    let mut mixed = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The lowest cost, or +inf if no cost is a number. Eight lanes, which the compiler turns into vector instructions.
fn lowest(costs: &[f32]) -> f32 {
    const LANES: usize = 8;
    let lower = |a: f32, b: f32| if b < a { b } else { a };
    let mut lanes = [f32::INFINITY; LANES];
    let (chunks, rest) = costs.as_chunks::<LANES>();
    for chunk in chunks {
        for (lowest, &cost) in lanes.iter_mut().zip(chunk) {
            *lowest = lower(*lowest, cost);
        }
    }
    lanes
        .into_iter()
        .chain(rest.iter().copied())
        .fold(f32::INFINITY, lower)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn costs(costs: &[f32]) -> Decision {
        Decision {
            costs: costs.to_vec(),
            ..Decision::default()
        }
    }

    #[test]
    fn the_lowest_finite_cost_wins() {
        let decision = costs(&[f32::INFINITY, 3.0, 1.0, f32::NAN]);
        assert_eq!(select_row(&decision, 4, 0), Some(2));
        assert_eq!(select_row(&costs(&[f32::INFINITY; 2]), 2, 0), None);
    }

    #[test]
    fn the_lowest_cost_is_found_in_every_row() {
        for candidates in [1, 7, 8, 9, 64, 65, 200] {
            for lowest in 0..candidates {
                let mut decision = costs(&vec![2.0; candidates]);
                decision.costs[lowest] = 1.0;
                assert_eq!(select_row(&decision, candidates, 0), Some(lowest));
            }
        }
    }

    #[test]
    fn a_pick_out_of_range_names_no_candidate() {
        let decision = Decision {
            pick: Some(2),
            ..Decision::default()
        };
        assert_eq!(select_row(&decision, 2, 0), None);
        assert_eq!(select_row(&decision, 3, 0), Some(2));
    }

    #[test]
    fn the_draw_of_a_seed_never_changes() {
        let drawn = [0, 1, 2, 42, u64::MAX].map(|seed| below(seed, 1_000));
        assert_eq!(drawn, RECORDED);
    }

    /// Computed in Python from the published SplitMix64: (output * 1,000) >> 64.
    const RECORDED: [usize; 5] = [883, 566, 591, 741, 893];

    #[test]
    fn equal_costs_are_chosen_equally_often_over_many_seeds() {
        // More rows than a stretch, with higher costs between the equal ones.
        let mut decision = costs(&[2.0; 100]);
        let equal = [3, 20, 63, 64, 99];
        for row in equal {
            decision.costs[row] = 1.0;
        }
        let mut chosen = [0_u32; 100];
        for seed in 0..50_000 {
            chosen[select_row(&decision, 100, seed).unwrap()] += 1;
        }
        for row in equal {
            // Six standard deviations around 10,000.
            assert!((9_460..=10_540).contains(&chosen[row]), "row {row}: {chosen:?}");
        }
        let chosen_equal: u32 = equal.iter().map(|&row| chosen[row]).sum();
        assert_eq!(chosen_equal, 50_000);
    }

    proptest! {
        /// Whole numbers below 4 make ties frequent.
        #[test]
        fn the_row_depends_on_costs_and_seed_alone_and_has_the_lowest_cost(
            whole in proptest::collection::vec(0_u8..4, 1..200), seed in any::<u64>(),
        ) {
            let as_costs: Vec<f32> = whole.iter().copied().map(f32::from).collect();
            let row = select_row(&costs(&as_costs), whole.len(), seed);
            prop_assert_eq!(row, select_row(&costs(&as_costs), whole.len(), seed));
            let row = row.unwrap();
            prop_assert_eq!(Some(&whole[row]), whole.iter().min());
            // The other costs decide nothing.
            let lowest = as_costs[row];
            let raised: Vec<f32> = as_costs
                .iter()
                .map(|&cost| if cost == lowest { cost } else { cost * 3.0 + 1.0 })
                .collect();
            prop_assert_eq!(select_row(&costs(&raised), whole.len(), seed), Some(row));
        }
    }
}
