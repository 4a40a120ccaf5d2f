//! Converts between the types of the host and those of the WIT.

use crate::{
    bindings::types,
    fault::PolicyFault,
    features::{Decision, Outcome, Rejection},
};

/// Longest advice when to try again, in seconds, and longest reason of a rejection, in bytes (`wit/types.wit`).
const MAX_RETRY_AFTER_S: u32 = 3_600;
const MAX_REASON_BYTES: usize = 200;

/// What a valid answer of a policy amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opinion {
    /// A decision.
    Decided,
    /// The policy leaves the decision to others.
    Abstained,
}

impl From<&Outcome> for types::Outcome {
    fn from(outcome: &Outcome) -> Self {
        let &Outcome {
            worker,
            decision_number,
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
            decision_number,
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

/// Checks an answer to `rows` candidates and stores it in `decision`, which stays as it is when the answer is a fault or
/// no decision.
pub(crate) fn accept(
    answer: types::Decision,
    rows: usize,
    decision: &mut Decision,
) -> Result<Opinion, PolicyFault> {
    let answered = match answer {
        types::Decision::Abstain => return Ok(Opinion::Abstained),
        types::Decision::Costs(costs) => {
            check_costs(&costs, rows)?;
            Decision {
                costs,
                ..Decision::default()
            }
        }
        types::Decision::Pick(row) if (row as usize) < rows => Decision {
            // The buffer of the last decision.
            costs: {
                let mut costs = std::mem::take(&mut decision.costs);
                costs.clear();
                costs
            },
            pick: Some(row),
            rejection: None,
        },
        types::Decision::Pick(row) => {
            return Err(PolicyFault::Answer(format!(
                "it picked row {row} of {rows} candidates; rows count from 0"
            )));
        }
        types::Decision::Reject(rejection) => Decision {
            rejection: Some(check_rejection(rejection)?),
            ..Decision::default()
        },
        types::Decision::Pair(_) => {
            return Err(PolicyFault::Answer(
                "it answered with a pair; this host does not split a request between two workers yet".into(),
            ));
        }
        types::Decision::Wait(_) => {
            return Err(PolicyFault::Answer(
                "it answered to wait; this host does not hold requests back yet".into(),
            ));
        }
    };
    *decision = answered;
    Ok(Opinion::Decided)
}

fn check_rejection(rejection: types::Rejection) -> Result<Rejection, PolicyFault> {
    let types::Rejection {
        status,
        retry_after_s,
        reason,
    } = rejection;
    let wrong = if status != 429 && status != 503 {
        format!("with the status {status}; 429 and 503 are possible")
    } else if retry_after_s > MAX_RETRY_AFTER_S {
        format!("for {retry_after_s} s; at most {MAX_RETRY_AFTER_S} are possible")
    } else if reason.is_empty() || reason.len() > MAX_REASON_BYTES || reason.contains(char::is_control) {
        format!("without a reason of 1 to {MAX_REASON_BYTES} bytes in one line")
    } else {
        return Ok(Rejection {
            is_overload: status == 429,
            retry_after_s: (retry_after_s > 0).then_some(retry_after_s),
            reason,
        });
    };
    Err(PolicyFault::Answer(format!("it rejected the request {wrong}")))
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

    fn accepted(answer: types::Decision) -> Result<(Opinion, Decision), String> {
        let mut decision = Decision {
            costs: vec![9.0],
            pick: Some(9),
            rejection: None,
        };
        let opinion = accept(answer, 2, &mut decision).map_err(|fault| fault.to_string())?;
        Ok((opinion, decision))
    }

    fn rejection(status: u16, retry_after_s: u32, reason: &str) -> types::Decision {
        types::Decision::Reject(types::Rejection {
            status,
            retry_after_s,
            reason: reason.into(),
        })
    }

    #[test]
    fn costs_for_all_candidates_a_pick_and_a_rejection_are_decisions() {
        let costs = vec![1.0, f32::INFINITY];
        let expected = Decision {
            costs: costs.clone(),
            ..Decision::default()
        };
        assert_eq!(
            accepted(types::Decision::Costs(costs)),
            Ok((Opinion::Decided, expected))
        );
        let picked = Decision {
            pick: Some(1),
            ..Decision::default()
        };
        assert_eq!(accepted(types::Decision::Pick(1)), Ok((Opinion::Decided, picked)));
        for (status, retry_after_s) in [(429, 0), (503, 7)] {
            let (_, decision) = accepted(rejection(status, retry_after_s, "too much")).unwrap();
            let expected = Rejection {
                is_overload: status == 429,
                retry_after_s: (retry_after_s > 0).then_some(retry_after_s),
                reason: "too much".into(),
            };
            assert_eq!(decision.rejection, Some(expected));
            assert_eq!((decision.costs.len(), decision.pick), (0, None));
        }
    }

    #[test]
    fn an_abstention_changes_nothing() {
        let (opinion, decision) = accepted(types::Decision::Abstain).unwrap();
        assert_eq!((opinion, decision.pick), (Opinion::Abstained, Some(9)));
    }

    #[test]
    fn any_other_answer_is_a_fault_with_its_reason() {
        let pair = types::Pair {
            prefill: 0,
            decode: 1,
        };
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
            (types::Decision::Pair(pair), "does not split"),
            (types::Decision::Wait(5), "does not hold requests back"),
            (rejection(500, 0, "x"), "the status 500"),
            (rejection(429, 3_601, "x"), "for 3601 s"),
            (rejection(429, 0, ""), "without a reason"),
            (rejection(429, 0, "two\nlines"), "in one line"),
        ];
        for (answer, reason) in nonsense {
            let fault = accepted(answer).expect_err(reason);
            assert!(fault.contains(reason), "{fault}");
        }
    }
}
