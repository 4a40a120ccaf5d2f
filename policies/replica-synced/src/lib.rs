//! `replica-synced` is `kv-linear` for several routers: it counts the load of all routers, and lets candidates that are
//! nearly as good as the best share the requests, also where it knows of no other router.

use signalbox_policy_sdk::{
    Candidates, DEFAULT_SPREAD, Decision, Info, Key, KvCost, Load, Policy, Request, Settings,
    draw_among_near_ties, export_policy,
};

/// The cost formula on the load of all routers, with a draw among near ties. Settings: those of [`KvCost`], and
/// `spread`.
#[derive(Debug)]
pub struct ReplicaSynced {
    cost: KvCost,
    /// `spread`: the largest difference in cost that the draw can bridge, as a share of the prompt's blocks; 0 for no
    /// draw.
    spread: f32,
}

impl Default for ReplicaSynced {
    fn default() -> Self {
        Self {
            cost: KvCost::default(),
            spread: DEFAULT_SPREAD,
        }
    }
}

impl Policy for ReplicaSynced {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.cost = KvCost::from_settings(settings, KvCost::default())?;
        self.spread = settings.number("spread", DEFAULT_SPREAD, 0.0..=10.0)?;
        Ok(())
    }

    fn describe(&self) -> Info {
        Info::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
            .counts(self.cost.columns(Load::OfAllRouters))
            .keys([Key::Worker])
    }

    fn decide(&mut self, request: &Request, candidates: &Candidates) -> Decision {
        let mut costs = self.cost.costs(request, candidates, Load::OfAllRouters);
        let width = self.spread * request.prompt_blocks.max(1) as f32;
        draw_among_near_ties(&mut costs, width, request, candidates);
        Decision::Costs(costs)
    }
}

export_policy!(ReplicaSynced);

#[cfg(test)]
mod tests {
    use signalbox_policy_sdk::Count;

    use super::*;

    /// The row that is chosen for a prompt of 40 blocks. Each worker holds `overlap` blocks of the prompt; the requests
    /// of all routers have `all` blocks there.
    fn chosen(settings: &str, seed: u64, overlap: &[u32], all: &[u32]) -> usize {
        let (idle, total) = (vec![0; overlap.len()], vec![1_000; overlap.len()]);
        let workers: Vec<u64> = (1..=overlap.len() as u64).collect();
        let candidates = Candidates::of(overlap.len())
            .with_counts(Count::OverlapDevice, overlap)
            .with_counts(Count::OverlapHost, &idle)
            .with_counts(Count::OverlapDisk, &idle)
            .with_counts(Count::PrefillTokensAll, &idle)
            .with_counts(Count::DecodeBlocksAll, all)
            .with_counts(Count::KvBlocksTotal, &total)
            .with_counts(Count::KvBlocksUsed, &idle)
            .with_keys(Key::Worker, &workers);
        let request = Request {
            prompt_tokens: 640,
            prompt_blocks: 40,
            block_size: 16,
            seed,
            ..Request::default()
        };
        let mut policy = ReplicaSynced::default();
        policy
            .configure(&mut Settings::parse(settings).expect("JSON"))
            .expect("settings");
        match policy.decide(&request, &candidates) {
            Decision::Costs(costs) => (0..costs.len())
                .min_by(|&a, &b| costs[a].total_cmp(&costs[b]))
                .expect("a candidate"),
            other => panic!("costs were expected, not {other:?}"),
        }
    }

    #[test]
    fn equal_workers_share_requests_about_equally() {
        let mut counts = [0; 4];
        for seed in 0..4_000 {
            counts[chosen("", seed, &[0; 4], &[0; 4])] += 1;
        }
        assert!(
            counts.iter().all(|count| (850..1_150).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn near_ties_are_drawn_and_clear_differences_are_not() {
        // Within 4 of 40 blocks both have requests; beyond, only the better one.
        assert!((0..100).any(|seed| chosen("", seed, &[20, 22], &[0, 0]) == 0));
        assert!((0..100).all(|seed| chosen("", seed, &[20, 25], &[0, 0]) == 1));
    }

    #[test]
    fn without_spread_the_lowest_cost_wins() {
        assert!((0..100).all(|seed| chosen(r#"{"spread": 0}"#, seed, &[20, 21], &[0, 0]) == 1));
    }

    #[test]
    fn other_routers_load_counts() {
        assert!((0..100).all(|seed| chosen("", seed, &[20, 20], &[30, 0]) == 1));
    }
}
