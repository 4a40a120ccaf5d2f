//! `kv-aware` chooses the worker with the least work before it can answer. It is the default policy.
//!
//! The cost is that of [`KvCost`], in KV blocks: blocks to prefill that the worker's KV cache does not hold, plus
//! blocks of the requests that it decodes, those of all routers. Where there are other routers, candidates that are nearly
//! as good as the best share the requests, by a random draw for each decision.

use signalbox_policy_sdk::{
    Candidates, DEFAULT_SPREAD, Decision, Info, KvCost, Load, Policy, Request, Settings,
    draw_among_near_ties, export_policy,
};

/// The only signal that this policy asks for: the number of other routers.
const OTHER_ROUTERS: &str = "other-routers";

/// The cost formula on one set of load columns. Settings: those of [`KvCost`], `replicas` and `spread`.
#[derive(Debug)]
pub struct KvAware {
    cost: KvCost,
    /// `replicas`: count the requests of all routers, not only of this one, and draw among near ties where there are other
    /// routers.
    replicas: bool,
    /// `spread`: the largest difference in cost that the draw can bridge, as a share of the prompt's blocks; 0 for no
    /// draw.
    spread: f32,
}

impl Default for KvAware {
    fn default() -> Self {
        Self {
            cost: KvCost::default(),
            replicas: true,
            spread: DEFAULT_SPREAD,
        }
    }
}

impl KvAware {
    fn load<'a>(&self, candidates: &'a Candidates) -> Load<'a> {
        if self.replicas {
            Load::of_all_routers(candidates)
        } else {
            Load::own(candidates)
        }
    }

    fn costs(&self, request: &Request, candidates: &Candidates) -> Vec<f32> {
        let mut costs = self.cost.costs(request, candidates, self.load(candidates));
        // The same for each candidate; no column if this router's load alone counts.
        if candidates.signal(0).first().is_some_and(|&routers| routers > 0.0) {
            draw_among_near_ties(&mut costs, self.spread, request, candidates);
        }
        costs
    }
}

impl Policy for KvAware {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.cost = KvCost::from_settings(settings)?;
        self.replicas = settings.switch("replicas", true)?;
        self.spread = settings.number("spread", DEFAULT_SPREAD, 0.0..=10.0)?;
        Ok(())
    }

    fn describe(&self) -> Info {
        let info = Info::new(
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            self.cost.columns(self.replicas),
        );
        match self.replicas {
            true => info.with_signals(&[OTHER_ROUTERS]),
            false => info,
        }
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        Decision::Costs(self.costs(request, candidates))
    }

    fn explain(&self, request: &Request, candidates: &Candidates, chosen: usize) -> String {
        let costs = self.costs(request, candidates);
        let overlap = candidates.overlap_device[chosen]
            + candidates.overlap_host[chosen]
            + candidates.overlap_disk[chosen];
        let rival = (0..costs.len())
            .filter(|&row| row != chosen)
            .min_by(|&a, &b| costs[a].total_cmp(&costs[b]));
        let reason = format!(
            "worker {} holds {overlap} of {} blocks and costs {:.1}",
            candidates.worker[chosen], request.prompt_blocks, costs[chosen]
        );
        match rival {
            Some(row) => format!(
                "{reason}; the next best, worker {}, {:.1}",
                candidates.worker[row], costs[row]
            ),
            None => format!("{reason}; there is no other"),
        }
    }
}

export_policy!(KvAware, explaining);

#[cfg(test)]
mod tests {
    use signalbox_policy_sdk::Columns;

    use super::*;

    const REQUEST: Request = Request {
        prompt_tokens: 640,
        prompt_blocks: 40,
        block_size: 16,
        expected_output_tokens: 64,
        priority: 0,
        session: 0,
        lora: 0,
        seed: 0,
        decision_number: 0,
    };

    /// Worker 10 holds nothing and is idle; worker 20 holds 30 blocks of the prompt and is at work.
    fn candidates(decode_blocks: u32, decode_blocks_all: u32) -> Candidates {
        Candidates {
            worker: vec![10, 20],
            overlap_device: vec![0, 30],
            overlap_host: vec![0, 0],
            overlap_disk: vec![0, 0],
            prefill_tokens: vec![0, 0],
            decode_blocks: vec![0, decode_blocks],
            requests: vec![0, 1],
            prefill_tokens_all: vec![0, 0],
            decode_blocks_all: vec![0, decode_blocks_all],
            requests_all: vec![0, 1],
            kv_blocks_total: vec![1_000; 2],
            kv_blocks_used: vec![0; 2],
            ..Candidates::default()
        }
    }

    fn configured(settings: &str) -> KvAware {
        let mut policy = KvAware::default();
        policy
            .configure(&mut Settings::parse(settings).expect("JSON"))
            .expect("settings");
        policy
    }

    fn best(policy: &KvAware, candidates: &Candidates) -> u32 {
        let costs = policy.costs(&REQUEST, candidates);
        candidates.worker[if costs[0] < costs[1] { 0 } else { 1 }]
    }

    #[test]
    fn prefers_the_cache_until_its_holder_is_busier_than_the_cache_saves() {
        let policy = configured("");
        assert_eq!(best(&policy, &candidates(29, 29)), 20);
        assert_eq!(best(&policy, &candidates(31, 31)), 10);
    }

    #[test]
    fn counts_the_requests_of_all_routers_unless_told_not_to() {
        let seen_by_others = candidates(0, 100);
        let policy = configured("");
        assert_eq!(best(&policy, &seen_by_others), 10);
        assert!(policy.describe().columns.contains(Columns::DECODE_BLOCKS_ALL));
        assert!(!policy.describe().columns.contains(Columns::DECODE_BLOCKS));
        assert_eq!(policy.describe().extra, [OTHER_ROUTERS]);
        let alone = configured(r#"{"replicas": false}"#);
        assert_eq!(best(&alone, &seen_by_others), 20);
        assert_eq!(alone.describe().extra, [""; 0]);
    }

    /// The workers that get 200 requests, of two that hold 30 and `other` blocks of the prompt.
    fn chosen(other_routers: f32, other: u32) -> [usize; 2] {
        let policy = configured("");
        let mut candidates = candidates(0, 0);
        candidates.overlap_device = vec![other, 30];
        candidates.extra = vec![other_routers; 2];
        let mut counts = [0; 2];
        for seed in 0..200 {
            let costs = policy.costs(&Request { seed, ..REQUEST }, &candidates);
            counts[usize::from(costs[1] < costs[0])] += 1;
        }
        counts
    }

    #[test]
    fn near_ties_share_the_requests_only_where_there_are_other_routers() {
        assert_eq!(chosen(0.0, 29), [0, 200]);
        let shared = chosen(7.0, 29);
        assert!(shared[0] > 40 && shared[1] > shared[0], "{shared:?}");
        assert_eq!(
            chosen(7.0, 25),
            [0, 200],
            "more than a tenth of the prompt is no near tie"
        );
    }

    #[test]
    fn refuses_settings_out_of_bounds() {
        let mut settings = Settings::parse(r#"{"overlap_credit": -1}"#).expect("JSON");
        let refusal = KvAware::default().configure(&mut settings).expect_err("negative");
        assert!(refusal.contains("overlap_credit"), "{refusal}");
    }

    #[test]
    fn says_why() {
        let reason = configured("").explain(&REQUEST, &candidates(5, 5), 1);
        assert_eq!(
            reason,
            "worker 20 holds 30 of 40 blocks and costs 55.0; the next best, worker 10, 80.0"
        );
    }
}
