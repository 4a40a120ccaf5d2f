//! `kv-aware` chooses the worker that is expected to send the first token soonest. It is the default policy.
//!
//! The cost is that of [`TtftCost`], in milliseconds: the prefill of what is queued and of the tokens that the worker's KV
//! cache does not hold, and what placing the request there costs other requests. How fast each worker is, the policy learns
//! from what workers and routers measure ([`WorkerSpeeds`]). The load is that of all routers. Where there are other routers,
//! candidates that are nearly as good as the best share the requests, by a random draw for each decision.

use signalbox_policy_sdk::{
    Candidates, Count, DEFAULT_SPREAD, Decision, Info, Key, MeasuredRows, Number, Policy, RecentPlacements,
    Request, RequestCount, RequestLength, Settings, StepCurves, TtftCost, WorkerRows, WorkerSpeeds,
    draw_among_near_ties, explain_costs, export_policy,
};

/// The cost formula, and what it learned of the workers. Settings: those of [`TtftCost`], `replicas` and `spread`.
#[derive(Debug)]
pub struct KvAware {
    cost: TtftCost,
    curves: StepCurves,
    speeds: WorkerSpeeds,
    recent: RecentPlacements,
    /// `replicas`: count the requests of all routers, not only of this one, and draw among near ties where there are other
    /// routers.
    replicas: bool,
    /// `spread`: the largest difference in cost that the draw can bridge, as a share of the time to prefill the prompt; 0
    /// for no draw.
    spread: f32,
}

impl Default for KvAware {
    fn default() -> Self {
        Self {
            cost: TtftCost::default(),
            curves: StepCurves::default(),
            speeds: WorkerSpeeds::default(),
            recent: RecentPlacements::default(),
            replicas: true,
            spread: DEFAULT_SPREAD,
        }
    }
}

impl KvAware {
    /// The columns of prefill tokens, decode blocks and requests.
    fn load(&self) -> [Count; 3] {
        if self.replicas {
            [
                Count::PrefillTokensAll,
                Count::DecodeBlocksAll,
                Count::RequestsAll,
            ]
        } else {
            [Count::PrefillTokens, Count::DecodeBlocks, Count::Requests]
        }
    }

    /// Learns from what is measured now.
    fn follow(&mut self, candidates: &Candidates) {
        let [_, decode_blocks, _] = self.load();
        let measured = MeasuredRows {
            prefill_tokens_per_s: candidates.numbers(Number::PrefillTokensPerS),
            prefill_step_tokens: candidates.numbers(Number::PrefillStepTokens),
            decode_step_ms: candidates.numbers(Number::DecodeStepMs),
            decode_step_blocks: candidates.numbers(Number::DecodeStepBlocks),
            decode_blocks: candidates.counts(decode_blocks),
            kv_blocks_total: candidates.counts(Count::KvBlocksTotal),
        };
        let workers = candidates.keys(Key::Worker).iter().copied();
        self.speeds
            .follow(workers, &self.curves, self.cost.step_tokens, &measured);
    }

    /// The costs with what was learned up to the latest decision.
    fn costs(&self, request: &Request, candidates: &Candidates, recent_share: &[f32]) -> Vec<f32> {
        let [prefill_tokens, decode_blocks, requests] = self.load();
        let workers = WorkerRows {
            overlap_device: candidates.counts(Count::OverlapDevice),
            overlap_host: candidates.counts(Count::OverlapHost),
            overlap_disk: candidates.counts(Count::OverlapDisk),
            prefill_tokens: candidates.counts(prefill_tokens),
            decode_blocks: candidates.counts(decode_blocks),
            requests: candidates.counts(requests),
            kv_blocks_total: candidates.counts(Count::KvBlocksTotal),
            prefill_scale: &self.speeds.prefill_scale,
            decode_scale: &self.speeds.decode_scale,
            recent_share,
        };
        let length = RequestLength {
            prompt_tokens: request.prompt_tokens,
            block_size: request.block_size,
            answer_limit: request.max_output_tokens,
        };
        let mut costs = self.cost.costs(&self.curves, &length, &workers);
        if self.replicas && request.count(RequestCount::OtherRouters) > 0 {
            let width = self.spread * self.cost.prompt_ms(&self.curves, &length);
            draw_among_near_ties(&mut costs, width, request, candidates);
        }
        costs
    }
}

impl Policy for KvAware {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.cost = TtftCost::from_settings(settings)?;
        self.replicas = settings.switch("replicas", true)?;
        self.spread = settings.number("spread", DEFAULT_SPREAD, 0.0..=10.0)?;
        Ok(())
    }

    fn describe(&self) -> Info {
        let overlaps = [Count::OverlapDevice, Count::OverlapHost, Count::OverlapDisk];
        let counts = overlaps
            .into_iter()
            .chain(self.load())
            .chain([Count::KvBlocksTotal]);
        let info = Info::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
            .counts(counts)
            .numbers([
                Number::PrefillTokensPerS,
                Number::PrefillStepTokens,
                Number::DecodeStepMs,
                Number::DecodeStepBlocks,
            ])
            .keys([Key::Worker]);
        match self.replicas {
            true => info.request_counts([RequestCount::OtherRouters]),
            false => info,
        }
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        self.follow(candidates);
        let workers = candidates.keys(Key::Worker).iter().copied();
        let shares = self.recent.shares(workers);
        let costs = self.costs(request, candidates, &shares);
        self.recent.place(&costs, request.prompt_blocks as f32);
        Decision::Costs(costs)
    }

    /// The costs that it names lack `churn`, since the decision itself has changed what was placed lately.
    fn explain(&self, request: &Request, candidates: &Candidates, chosen: usize) -> String {
        let costs = self.costs(request, candidates, &vec![0.0; candidates.len()]);
        explain_costs(request, candidates, &costs, chosen, |cost| {
            format!("{cost:.0} ms")
        })
    }
}

export_policy!(KvAware, explaining);

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::*;

    fn request() -> Request {
        Request {
            prompt_tokens: 6_400,
            prompt_blocks: 400,
            block_size: 16,
            ..Request::default()
        }
        .with_count(RequestCount::OtherRouters, 0)
    }

    /// Two workers that hold `overlap` blocks of the prompt. The first one is idle. At the second one wait
    /// `prefill_tokens` of this router, `prefill_tokens_all` of all.
    fn candidates(overlap: [u32; 2], prefill_tokens: u32, prefill_tokens_all: u32) -> Candidates {
        measured(overlap, prefill_tokens, prefill_tokens_all, [0.0; 2])
    }

    fn measured(overlap: [u32; 2], own: u32, all: u32, rate: [f32; 2]) -> Candidates {
        Candidates::of(2)
            .with_counts(Count::OverlapDevice, &overlap)
            .with_counts(Count::OverlapHost, &[0, 0])
            .with_counts(Count::OverlapDisk, &[0, 0])
            .with_counts(Count::PrefillTokens, &[0, own])
            .with_counts(Count::DecodeBlocks, &[0, 0])
            .with_counts(Count::Requests, &[0, 0])
            .with_counts(Count::PrefillTokensAll, &[0, all])
            .with_counts(Count::DecodeBlocksAll, &[0, 0])
            .with_counts(Count::RequestsAll, &[0, 0])
            .with_counts(Count::KvBlocksTotal, &[10_000; 2])
            .with_numbers(Number::PrefillTokensPerS, &rate)
            .with_numbers(Number::PrefillStepTokens, &[2_000.0; 2])
            .with_numbers(Number::DecodeStepBlocks, &[0.0; 2])
            .with_numbers(Number::DecodeStepMs, &[0.0; 2])
            .with_keys(Key::Worker, &[10, 20])
    }

    fn configured(settings: &str) -> KvAware {
        let mut policy = KvAware::default();
        policy
            .configure(&mut Settings::parse(settings).expect("JSON"))
            .expect("settings");
        policy
    }

    /// The row with the lower cost for a policy that has made no decision before.
    fn best(settings: &str, request: &Request, candidates: &Candidates) -> Option<usize> {
        match compare(&mut configured(settings), request, candidates) {
            Ordering::Less => Some(0),
            Ordering::Equal => None,
            Ordering::Greater => Some(1),
        }
    }

    fn compare(policy: &mut KvAware, request: &Request, candidates: &Candidates) -> Ordering {
        match policy.decide(request, candidates) {
            Decision::Costs(costs) => costs[0].total_cmp(&costs[1]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn prefers_the_cache_until_its_holder_is_busier_than_the_cache_saves() {
        let best = |waiting| best("", &request(), &candidates([0, 300], waiting, waiting));
        assert_eq!((best(4_500), best(7_000)), (Some(1), Some(0)));
    }

    #[test]
    fn counts_the_requests_of_all_routers_unless_told_not_to() {
        let seen_by_others = candidates([0, 300], 0, 20_000);
        assert_eq!(best("", &request(), &seen_by_others), Some(0));
        let alone = r#"{"replicas": false}"#;
        let several = request().with_count(RequestCount::OtherRouters, 7);
        assert_eq!(best(alone, &several, &seen_by_others), Some(1));
        assert_eq!(configured(alone).describe().request_counts, [""; 0]);
        let reads = configured("").describe();
        assert!(reads.counts.contains(&Count::DecodeBlocksAll.into()));
        assert!(!reads.counts.contains(&Count::DecodeBlocks.into()));
    }

    #[test]
    fn a_worker_that_computes_faster_is_preferred() {
        let faster = measured([0, 0], 0, 0, [20_000.0, 40_000.0]);
        assert_eq!(best("", &request(), &faster), Some(1));
        let unknown = measured([0, 0], 0, 0, [20_000.0, 0.0]);
        assert_eq!(best("", &request(), &unknown), None);
    }

    /// The workers that get 200 requests, of two that hold `first` and 300 blocks of the prompt.
    fn chosen(other_routers: u32, first: u32) -> [usize; 2] {
        let mut counts = [0; 2];
        for seed in 0..200 {
            let request = Request { seed, ..request() }.with_count(RequestCount::OtherRouters, other_routers);
            counts[best("", &request, &candidates([first, 300], 0, 0)).expect("no tie")] += 1;
        }
        counts
    }

    #[test]
    fn near_ties_share_the_requests_only_where_there_are_other_routers() {
        assert_eq!(chosen(0, 290), [0, 200]);
        let shared = chosen(7, 290);
        assert!(shared[0] > 40 && shared[1] > shared[0], "{shared:?}");
        assert_eq!(
            chosen(7, 250),
            [0, 200],
            "more than a tenth of the prompt is no near tie"
        );
    }

    /// A new conversation goes where less was placed lately, although both workers are idle again.
    #[test]
    fn of_idle_workers_the_one_that_got_less_lately_gets_a_new_prompt() {
        let mut policy = configured("");
        let (held, nothing_held) = (candidates([0, 300], 0, 0), candidates([0, 0], 0, 0));
        assert_eq!(compare(&mut policy, &request(), &nothing_held), Ordering::Equal);
        assert_eq!(compare(&mut policy, &request(), &held), Ordering::Greater);
        assert_eq!(compare(&mut policy, &request(), &nothing_held), Ordering::Less);
    }

    #[test]
    fn refuses_settings_out_of_bounds() {
        let mut settings = Settings::parse(r#"{"pressure_ms": -1}"#).expect("JSON");
        let refusal = KvAware::default().configure(&mut settings).expect_err("negative");
        assert!(refusal.contains("pressure_ms"), "{refusal}");
    }

    #[test]
    fn says_why() {
        let (mut policy, candidates) = (configured(""), candidates([0, 300], 5, 5));
        compare(&mut policy, &request(), &candidates);
        assert_eq!(
            policy.explain(&request(), &candidates, 1),
            "it holds 300 of 400 blocks and costs 48 ms; the next best costs 137 ms"
        );
    }
}
