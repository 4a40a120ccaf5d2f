//! `shortest-queue` chooses the worker with the fewest requests in flight. A worker that already holds a part of the
//! prompt may have some requests more.
//!
//! The crate shows the parts of a policy: the columns it wants (`describe`), a setting (`configure`), the decision
//! (`decide`), and unit tests that need neither WebAssembly nor a router.

use signalbox_policy_sdk::{Candidates, Columns, Decision, Info, Policy, Request, Settings, export_policy};

/// The number of requests in flight, less an allowance for a KV cache that holds the prompt.
#[derive(Debug)]
pub struct ShortestQueue {
    /// The requests that a worker may have more than another one when it holds the whole prompt; in proportion when it
    /// holds a part.
    forgiven: f32,
}

impl Default for ShortestQueue {
    fn default() -> Self {
        Self { forgiven: 2.0 }
    }
}

impl Policy for ShortestQueue {
    fn describe(&self) -> Info {
        let columns = Columns::REQUESTS_ALL.union(Columns::OVERLAP_DEVICE);
        Info::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), columns)
    }

    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.forgiven = settings.number("forgiven", self.forgiven, 0.0..=1000.0)?;
        Ok(())
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        let blocks = request.prompt_blocks.max(1) as f32;
        let rows = candidates.requests_all.iter().zip(&candidates.overlap_device);
        // The lowest cost wins; the router breaks ties from the request's seed.
        Decision::Costs(
            rows.map(|(&requests, &overlap)| requests as f32 - self.forgiven * overlap as f32 / blocks)
                .collect(),
        )
    }
}

export_policy!(ShortestQueue);

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(requests: &[u32], overlap: &[u32]) -> Vec<f32> {
        let request = Request {
            prompt_tokens: 160,
            prompt_blocks: 10,
            block_size: 16,
            expected_output_tokens: 0,
            priority: 0,
            session: 0,
            lora: 0,
            seed: 0,
            decision_number: 0,
        };
        let candidates = Candidates {
            worker: (0..requests.len() as u32).collect(),
            requests_all: requests.to_vec(),
            overlap_device: overlap.to_vec(),
            ..Candidates::default()
        };
        match ShortestQueue::default().decide(&request, &candidates) {
            Decision::Costs(costs) => costs,
            Decision::Pick(row) => panic!("costs were expected, not the pick {row}"),
        }
    }

    #[test]
    fn the_cost_is_the_number_of_requests() {
        assert_eq!(costs(&[3, 1, 2], &[0, 0, 0]), [3.0, 1.0, 2.0]);
    }

    #[test]
    fn a_warm_cache_is_worth_two_requests_and_no_more() {
        let costs = costs(&[2, 1, 4], &[10, 0, 10]);
        assert!(costs[0] < costs[1] && costs[1] < costs[2], "{costs:?}");
    }
}
