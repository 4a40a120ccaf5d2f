//! `{{name}}` sends each request to the worker with the least work before the request's first token.

use signalbox_policy_sdk::{
    Candidates, Count, Decision, Info, Policy, Request, Settings, export_policy,
};

/// The cost of a worker in KV blocks: those of other prompts that wait there, those of this prompt that it does not hold, and a
/// surcharge for each request in flight.
#[derive(Debug)]
pub struct LeastWork {
    /// `request_weight`: the KV blocks that a request in flight counts as.
    request_weight: f32,
}

impl Default for LeastWork {
    fn default() -> Self {
        Self {
            request_weight: 1.0,
        }
    }
}

impl Policy for LeastWork {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.request_weight = settings.number("request_weight", 1.0, 0.0..=1000.0)?;
        Ok(())
    }

    /// What it reads. Reading anything else is a fault that names it.
    fn describe(&self) -> Info {
        Info::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")).counts([
            Count::OverlapDevice,
            Count::PrefillTokensAll,
            Count::RequestsAll,
        ])
    }

    /// The lowest cost wins; `f32::INFINITY` rules a worker out.
    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        let overlap = candidates.counts(Count::OverlapDevice);
        let waiting = candidates.counts(Count::PrefillTokensAll);
        let requests = candidates.counts(Count::RequestsAll);
        let cost = |row: usize| {
            let queued = f64::from(waiting[row]) / f64::from(request.block_size);
            let missing = f64::from(request.prompt_blocks) - f64::from(overlap[row]);
            let in_flight = f64::from(requests[row]) * f64::from(self.request_weight);
            (queued + missing + in_flight) as f32
        };
        Decision::Costs((0..candidates.len()).map(cost).collect())
    }
}

export_policy!(LeastWork);

#[cfg(test)]
mod tests {
    use super::*;

    /// The costs of two workers: the first has 20 of the prompt's 40 blocks and a request, the second neither.
    fn costs(settings: &str) -> Vec<f32> {
        let mut policy = LeastWork::default();
        policy
            .configure(&mut Settings::parse(settings).unwrap())
            .unwrap();
        let candidates = Candidates::of(2)
            .with_counts(Count::OverlapDevice, &[20, 0])
            .with_counts(Count::PrefillTokensAll, &[32, 0])
            .with_counts(Count::RequestsAll, &[1, 0]);
        let request = Request {
            prompt_blocks: 40,
            block_size: 16,
            ..Request::default()
        };
        match policy.decide(&request, &candidates) {
            Decision::Costs(costs) => costs,
            other => panic!("costs were expected, not {other:?}"),
        }
    }

    #[test]
    fn a_worker_that_holds_the_prompt_costs_less_unless_requests_weigh_more() {
        assert_eq!(costs(""), [23.0, 40.0]);
        assert_eq!(costs(r#"{"request_weight": 100}"#), [122.0, 40.0]);
    }
}
