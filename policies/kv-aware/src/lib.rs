//! `kv-aware` chooses the worker with the least work before it can answer. It is the default policy.
//!
//! The cost is that of [`KvCost`], in KV blocks: blocks to prefill that the worker's KV cache does not hold, plus
//! blocks of the requests that it decodes.

use signalbox_policy_sdk::{
    Candidates, Decision, Info, KvCost, Load, Policy, Request, Settings, export_policy,
};

/// The cost formula on one set of load columns. Settings: those of [`KvCost`], and `replicas`.
#[derive(Debug, Default)]
pub struct KvAware {
    cost: KvCost,
    /// `replicas`: count the requests of all routers, not only of this one. Off by default: with one router the two
    /// are the same, and with several `replica-synced` spreads requests better.
    replicas: bool,
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
        self.cost.costs(request, candidates, self.load(candidates))
    }
}

impl Policy for KvAware {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.cost = KvCost::from_settings(settings)?;
        self.replicas = settings.switch("replicas", false)?;
        Ok(())
    }

    fn describe(&self) -> Info {
        Info::new(
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            self.cost.columns(self.replicas),
        )
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
        assert_eq!(best(&policy, &candidates(29, 0)), 20);
        assert_eq!(best(&policy, &candidates(31, 0)), 10);
    }

    #[test]
    fn counts_other_routers_only_when_told() {
        let seen_by_others = candidates(0, 100);
        assert_eq!(best(&configured(""), &seen_by_others), 20);
        let policy = configured(r#"{"replicas": true}"#);
        assert_eq!(best(&policy, &seen_by_others), 10);
        assert!(policy.describe().columns.contains(Columns::DECODE_BLOCKS_ALL));
        assert!(!policy.describe().columns.contains(Columns::DECODE_BLOCKS));
    }

    #[test]
    fn refuses_settings_out_of_bounds() {
        let mut settings = Settings::parse(r#"{"overlap_credit": -1}"#).expect("JSON");
        let refusal = KvAware::default().configure(&mut settings).expect_err("negative");
        assert!(refusal.contains("overlap_credit"), "{refusal}");
    }

    #[test]
    fn says_why() {
        let reason = configured("").explain(&REQUEST, &candidates(5, 0), 1);
        assert_eq!(
            reason,
            "worker 20 holds 30 of 40 blocks and costs 55.0; the next best, worker 10, 80.0"
        );
    }
}
