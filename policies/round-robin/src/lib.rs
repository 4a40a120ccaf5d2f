//! `round-robin` chooses every worker in turn, without regard to its KV cache and its load. It is the baseline for
//! measuring other policies, and the template to copy for a policy of your own.

use signalbox_policy_sdk::{Candidates, Columns, Decision, Info, Policy, Request, export_policy};

/// Picks the candidate whose turn it is, by the number of the decision. It has no settings and no memory.
#[derive(Debug, Default)]
pub struct RoundRobin;

impl Policy for RoundRobin {
    fn describe(&self) -> Info {
        // The column `worker` is always present; the policy needs no other.
        Info::new(
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            Columns::empty(),
        )
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        // The order of the rows means nothing, so turns go by worker number.
        let mut rows: Vec<u32> = (0..candidates.len() as u32).collect();
        let turn = (request.decision_number % rows.len() as u64) as usize;
        let (_, row, _) = rows.select_nth_unstable_by_key(turn, |&row| candidates.worker[row as usize]);
        Decision::Pick(*row)
    }
}

export_policy!(RoundRobin);

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of the worker (not its row) that decision `number` picks among `workers`.
    fn worker(number: u64, workers: &[u32]) -> u32 {
        let request = Request {
            prompt_tokens: 100,
            prompt_blocks: 6,
            block_size: 16,
            expected_output_tokens: 0,
            priority: 0,
            session: 0,
            lora: 0,
            seed: 0,
            decision_number: number,
        };
        let candidates = Candidates {
            worker: workers.to_vec(),
            ..Candidates::default()
        };
        match RoundRobin.decide(&request, &candidates) {
            Decision::Pick(row) => workers[row as usize],
            Decision::Costs(costs) => panic!("a pick was expected, not {costs:?}"),
        }
    }

    #[test]
    fn workers_take_turns() {
        let turns: Vec<u32> = (0..6).map(|number| worker(number, &[4, 7, 9])).collect();
        assert_eq!(turns, [4, 7, 9, 4, 7, 9]);
    }

    #[test]
    fn turns_do_not_depend_on_the_order_of_rows() {
        for number in 0..6 {
            assert_eq!(worker(number, &[9, 4, 7]), worker(number, &[4, 7, 9]));
        }
    }

    #[test]
    fn a_single_worker_gets_every_request() {
        assert!((0..3).chain([u64::MAX]).all(|number| worker(number, &[5]) == 5));
    }
}
