//! Converts between the types of the host and those of the WIT.

use crate::{
    bindings::types,
    candidates::{Candidates, Presence, for_each_column},
    fault::PolicyFault,
    features::{Decision, Outcome, RequestFeatures},
};

impl From<&RequestFeatures> for types::Request {
    fn from(request: &RequestFeatures) -> Self {
        let &RequestFeatures {
            prompt_tokens,
            prompt_blocks,
            block_size,
            expected_output_tokens,
            priority,
            session,
            lora,
            seed,
            decision_number,
            other_routers: _,
        } = request;
        Self {
            prompt_tokens,
            prompt_blocks,
            block_size,
            expected_output_tokens,
            priority,
            session,
            lora,
            seed,
            decision_number,
        }
    }
}

impl From<&Outcome> for types::Outcome {
    fn from(outcome: &Outcome) -> Self {
        let &Outcome {
            worker,
            prompt_tokens,
            cached_tokens,
            overlap_blocks,
            output_tokens,
            ttft_ms,
            total_ms,
            completed,
        } = outcome;
        Self {
            worker,
            prompt_tokens,
            cached_tokens,
            overlap_blocks,
            output_tokens,
            ttft_ms,
            total_ms,
            completed,
        }
    }
}

macro_rules! define_conversion {
    ($($(#[$doc:meta])* $presence:ident $column:ident: $flag:ident, trial $value:expr;)*) => {
        /// The `wanted` columns as slices of `candidates`, and the signals.
        pub(crate) fn candidates<'a>(
            candidates: &'a Candidates,
            wanted: types::Columns,
            extra: &'a [f32],
        ) -> types::Candidates<'a> {
            let column =
                |flag: types::Columns, rows: &'a Vec<u32>| wanted.contains(flag).then_some(rows.as_slice());
            types::Candidates {
                worker: &candidates.worker,
                $($column: column(types::Columns::$flag, &candidates.$column),)*
                extra,
            }
        }

        /// Whether any of the `wanted` columns is optional.
        pub(crate) fn wants_optional(wanted: types::Columns) -> bool {
            $((!Presence::$presence.is_required() && wanted.contains(types::Columns::$flag)) ||)* false
        }
    };
}

for_each_column!(define_conversion);

/// Checks an answer to `rows` candidates and stores it in `decision`, which stays as it is when the answer is a fault.
pub(crate) fn accept(
    answer: types::Decision,
    rows: usize,
    decision: &mut Decision,
) -> Result<(), PolicyFault> {
    match answer {
        types::Decision::Pick(row) if (row as usize) < rows => {
            decision.costs.clear();
            decision.pick = Some(row);
            Ok(())
        }
        types::Decision::Pick(row) => Err(PolicyFault::Answer(format!(
            "it picked row {row} of {rows} candidates; rows count from 0"
        ))),
        types::Decision::Costs(costs) => {
            check_costs(&costs, rows)?;
            decision.costs = costs;
            decision.pick = None;
            Ok(())
        }
    }
}

fn check_costs(costs: &[f32], rows: usize) -> Result<(), PolicyFault> {
    if costs.len() != rows {
        return Err(PolicyFault::Answer(format!(
            "it returned {} costs for {rows} candidates",
            costs.len()
        )));
    }
    // The compiler vectorises this pass. Which row is wrong is searched for only after a fault.
    let sound = costs
        .iter()
        .fold(true, |sound, &cost| sound & (cost > f32::NEG_INFINITY));
    if !sound {
        let row = costs
            .iter()
            .position(|&cost| cost.is_nan() || cost == f32::NEG_INFINITY)
            .unwrap_or_default();
        return Err(PolicyFault::Answer(format!(
            "the cost of row {row} is {}; a cost is a number, or +inf to rule the candidate out",
            costs[row]
        )));
    }
    if costs.iter().all(|&cost| cost == f32::INFINITY) {
        return Err(PolicyFault::Answer(format!(
            "it rules out all {rows} candidates; at least one must stay"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(answer: types::Decision) -> Result<Decision, String> {
        let mut decision = Decision {
            costs: vec![9.0],
            pick: Some(9),
        };
        accept(answer, 2, &mut decision).map_err(|fault| fault.to_string())?;
        Ok(decision)
    }

    #[test]
    fn costs_for_all_candidates_and_a_pick_are_decisions() {
        let costs = vec![1.0, f32::INFINITY];
        let expected = Decision {
            costs: costs.clone(),
            pick: None,
        };
        assert_eq!(accepted(types::Decision::Costs(costs)), Ok(expected));
        assert_eq!(
            accepted(types::Decision::Pick(1)),
            Ok(Decision {
                costs: vec![],
                pick: Some(1)
            })
        );
    }

    #[test]
    fn any_other_answer_is_a_fault_with_its_reason() {
        let nonsense = [
            (types::Decision::Pick(2), "picked row 2 of 2"),
            (types::Decision::Costs(vec![1.0]), "1 costs for 2"),
            (types::Decision::Costs(vec![]), "0 costs for 2"),
            (types::Decision::Costs(vec![0.0, f32::NAN]), "row 1 is NaN"),
            (
                types::Decision::Costs(vec![f32::NEG_INFINITY, 0.0]),
                "row 0 is -inf",
            ),
            (types::Decision::Costs(vec![f32::INFINITY; 2]), "rules out all 2"),
        ];
        for (answer, reason) in nonsense {
            let fault = accepted(answer).expect_err(reason);
            assert!(fault.contains(reason), "{fault}");
        }
    }
}
