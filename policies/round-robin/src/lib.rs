//! `round-robin` chooses every worker in turn, without regard to its KV cache and its load. It is the baseline for
//! measuring other policies, and the template to copy for a policy of your own.

use signalbox_policy_sdk::{Candidates, Decision, Info, Key, Policy, Request, export_policy};

/// Picks the candidate whose turn it is, by the number of the decision. It has no settings and no memory.
#[derive(Debug, Default)]
pub struct RoundRobin;

impl Policy for RoundRobin {
    fn describe(&self) -> Info {
        Info::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")).keys([Key::Worker])
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        // The order of the rows means nothing, so turns go by the workers' keys.
        let workers = candidates.keys(Key::Worker);
        let mut rows: Vec<u32> = (0..candidates.len() as u32).collect();
        let turn = (request.decision_number % rows.len() as u64) as usize;
        let (_, row, _) = rows.select_nth_unstable_by_key(turn, |&row| workers[row as usize]);
        Decision::Pick(*row)
    }
}

export_policy!(RoundRobin);

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of the worker (not its row) that decision `number` picks among `workers`.
    fn worker(number: u64, workers: &[u64]) -> u64 {
        let request = Request {
            decision_number: number,
            ..Request::default()
        };
        let candidates = Candidates::of(workers.len()).with_keys(Key::Worker, workers);
        match RoundRobin.decide(&request, &candidates) {
            Decision::Pick(row) => workers[row as usize],
            other => panic!("a pick was expected, not {other:?}"),
        }
    }

    #[test]
    fn workers_take_turns() {
        let turns: Vec<u64> = (0..6).map(|number| worker(number, &[4, 7, 9])).collect();
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
