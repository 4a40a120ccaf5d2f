//! Between the ABI's types and the host's. Nothing beyond this file knows the former.

use crate::{
    bindings::types,
    fault::PolicyFault,
    features::{Candidates, Decision, Outcome, RequestFeatures},
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

/// The columns that were asked for, as slices of the caller's.
pub(crate) fn candidates<'a>(
    candidates: &'a Candidates,
    wanted: types::Columns,
    extra: &'a [f32],
) -> types::Candidates<'a> {
    use types::Columns;
    let column = |which: Columns, rows: &'a Vec<u32>| wanted.contains(which).then_some(rows.as_slice());
    types::Candidates {
        worker: &candidates.worker,
        traits: column(Columns::TRAITS, &candidates.traits),
        overlap_device: column(Columns::OVERLAP_DEVICE, &candidates.overlap_device),
        overlap_host: column(Columns::OVERLAP_HOST, &candidates.overlap_host),
        overlap_disk: column(Columns::OVERLAP_DISK, &candidates.overlap_disk),
        prefill_tokens: column(Columns::PREFILL_TOKENS, &candidates.prefill_tokens),
        decode_blocks: column(Columns::DECODE_BLOCKS, &candidates.decode_blocks),
        requests: column(Columns::REQUESTS, &candidates.requests),
        prefill_tokens_all: column(Columns::PREFILL_TOKENS_ALL, &candidates.prefill_tokens_all),
        decode_blocks_all: column(Columns::DECODE_BLOCKS_ALL, &candidates.decode_blocks_all),
        requests_all: column(Columns::REQUESTS_ALL, &candidates.requests_all),
        kv_blocks_total: column(Columns::KV_BLOCKS_TOTAL, &candidates.kv_blocks_total),
        kv_blocks_used: column(Columns::KV_BLOCKS_USED, &candidates.kv_blocks_used),
        queue_depth: column(Columns::QUEUE_DEPTH, &candidates.queue_depth),
        extra,
    }
}

/// Takes an answer over into `decision` if it is one for `rows` candidates.
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
            "{} costs for {rows} candidates",
            costs.len()
        )));
    }
    // One pass the compiler vectorises; which row it was matters only once something is wrong.
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
            "it rules out all {rows} candidates; one must have the request"
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
    fn a_cost_for_each_candidate_or_a_pick_is_a_decision() {
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
    fn anything_else_is_a_fault_that_says_what() {
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
