//! `kv-linear` chooses by the formula of NVIDIA Dynamo's KV router, so that results compare.
//!
//! The cost is that of [`KvCost`], in KV blocks: blocks to prefill that the worker's KV cache does not hold, plus
//! blocks of the requests that it decodes, those of all routers. Where there are other routers, candidates that are nearly
//! as good as the best share the requests, by a random draw for each decision.

use signalbox_policy_sdk::{
    Candidates, DEFAULT_SPREAD, Decision, Info, Key, KvCost, Load, Policy, Request, RequestCount, Settings,
    draw_among_near_ties, explain_costs, export_policy,
};

/// The cost formula on one set of load columns. Settings: those of [`KvCost`], `replicas` and `spread`.
#[derive(Debug)]
pub struct KvLinear {
    cost: KvCost,
    /// `replicas`: count the requests of all routers, not only of this one, and draw among near ties where there are other
    /// routers.
    replicas: bool,
    /// `spread`: the largest difference in cost that the draw can bridge, as a share of the prompt's blocks; 0 for no
    /// draw.
    spread: f32,
}

impl Default for KvLinear {
    fn default() -> Self {
        Self {
            cost: KvCost::DYNAMO,
            replicas: true,
            spread: DEFAULT_SPREAD,
        }
    }
}

impl KvLinear {
    fn load(&self) -> Load {
        if self.replicas {
            Load::OfAllRouters
        } else {
            Load::Own
        }
    }

    fn costs(&self, request: &Request, candidates: &Candidates) -> Vec<f32> {
        let mut costs = self.cost.costs(request, candidates, self.load());
        if self.replicas && request.count(RequestCount::OtherRouters) > 0 {
            let width = self.spread * request.prompt_blocks.max(1) as f32;
            draw_among_near_ties(&mut costs, width, request, candidates);
        }
        costs
    }
}

impl Policy for KvLinear {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.cost = KvCost::from_settings(settings, KvCost::DYNAMO)?;
        self.replicas = settings.switch("replicas", true)?;
        self.spread = settings.number("spread", DEFAULT_SPREAD, 0.0..=10.0)?;
        Ok(())
    }

    fn describe(&self) -> Info {
        let info = Info::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
            .counts(self.cost.columns(self.load()));
        match self.replicas {
            true => info
                .keys([Key::Worker])
                .request_counts([RequestCount::OtherRouters]),
            false => info,
        }
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        Decision::Costs(self.costs(request, candidates))
    }

    fn explain(&self, request: &Request, candidates: &Candidates, chosen: usize) -> String {
        let costs = self.costs(request, candidates);
        explain_costs(request, candidates, &costs, chosen, |cost| format!("{cost:.1}"))
    }
}

export_policy!(KvLinear, explaining);

#[cfg(test)]
mod tests {
    use signalbox_policy_sdk::Count;

    use super::*;

    fn request() -> Request {
        Request {
            prompt_tokens: 640,
            prompt_blocks: 40,
            block_size: 16,
            ..Request::default()
        }
    }

    /// The first worker holds `overlap` blocks of the prompt and is idle; the second one holds 30 and is at work.
    fn candidates(overlap: u32, decode_blocks: u32, decode_blocks_all: u32) -> Candidates {
        Candidates::of(2)
            .with_counts(Count::OverlapDevice, &[overlap, 30])
            .with_counts(Count::OverlapHost, &[0, 0])
            .with_counts(Count::OverlapDisk, &[0, 0])
            .with_counts(Count::PrefillTokens, &[0, 0])
            .with_counts(Count::DecodeBlocks, &[0, decode_blocks])
            .with_counts(Count::PrefillTokensAll, &[0, 0])
            .with_counts(Count::DecodeBlocksAll, &[0, decode_blocks_all])
            .with_counts(Count::KvBlocksTotal, &[1_000; 2])
            .with_counts(Count::KvBlocksUsed, &[0; 2])
            .with_keys(Key::Worker, &[10, 20])
    }

    fn configured(settings: &str) -> KvLinear {
        let mut policy = KvLinear::default();
        policy
            .configure(&mut Settings::parse(settings).expect("JSON"))
            .expect("settings");
        policy
    }

    /// The row that gets a request where there are this many other routers.
    fn best(policy: &KvLinear, request: &Request, candidates: &Candidates, other_routers: u32) -> usize {
        let request = request
            .clone()
            .with_count(RequestCount::OtherRouters, other_routers);
        let costs = policy.costs(&request, candidates);
        usize::from(costs[1] < costs[0])
    }

    #[test]
    fn prefers_the_cache_until_its_holder_is_busier_than_the_cache_saves() {
        let policy = configured("");
        assert_eq!(best(&policy, &request(), &candidates(0, 29, 29), 0), 1);
        assert_eq!(best(&policy, &request(), &candidates(0, 31, 31), 0), 0);
    }

    #[test]
    fn counts_the_requests_of_all_routers_unless_told_not_to() {
        let seen_by_others = candidates(0, 0, 100);
        let policy = configured("");
        assert_eq!(best(&policy, &request(), &seen_by_others, 0), 0);
        let reads = policy.describe();
        assert!(reads.counts.contains(&Count::DecodeBlocksAll.into()));
        assert!(!reads.counts.contains(&Count::DecodeBlocks.into()));
        assert_eq!(reads.request_counts, [RequestCount::OtherRouters.name()]);
        let alone = configured(r#"{"replicas": false}"#);
        assert_eq!(best(&alone, &request(), &seen_by_others, 7), 1);
        assert_eq!(alone.describe().request_counts, [""; 0]);
    }

    /// The workers that get 200 requests, of two that hold `other` and 30 blocks of the prompt.
    fn chosen(other_routers: u32, other: u32) -> [usize; 2] {
        let policy = configured("");
        let mut counts = [0; 2];
        for seed in 0..200 {
            let request = Request { seed, ..request() };
            counts[best(&policy, &request, &candidates(other, 0, 0), other_routers)] += 1;
        }
        counts
    }

    #[test]
    fn near_ties_share_the_requests_only_where_there_are_other_routers() {
        assert_eq!(chosen(0, 29), [0, 200]);
        let shared = chosen(7, 29);
        assert!(shared[0] > 40 && shared[1] > shared[0], "{shared:?}");
        assert_eq!(
            chosen(7, 25),
            [0, 200],
            "more than a tenth of the prompt is no near tie"
        );
    }

    #[test]
    fn refuses_settings_out_of_bounds() {
        let mut settings = Settings::parse(r#"{"overlap_credit": -1}"#).expect("JSON");
        let refusal = KvLinear::default()
            .configure(&mut settings)
            .expect_err("negative");
        assert!(refusal.contains("overlap_credit"), "{refusal}");
    }

    #[test]
    fn says_why() {
        let request = request().with_count(RequestCount::OtherRouters, 0);
        let reason = configured("").explain(&request, &candidates(0, 5, 5), 1);
        assert_eq!(
            reason,
            "it holds 30 of 40 blocks and costs 55.0; the next best costs 80.0"
        );
    }
}
