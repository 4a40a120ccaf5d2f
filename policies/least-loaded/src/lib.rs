//! `least-loaded` chooses the worker with the least load, without regard to KV caches.
//!
//! Several routers that see the same load choose the same worker at the same moment; `power-of-two` avoids that.

use signalbox_policy_sdk::{
    Candidates, Count, Decision, Info, LoadMeasure, Policy, Request, Settings, export_policy,
};

/// Costs that are the load. Settings: `load`, and `relative`.
#[derive(Debug, Default)]
pub struct LeastLoaded {
    load: LoadMeasure,
    /// `relative`: divide the load by the sequences that the worker computes at once, for workers of different size.
    relative: bool,
}

impl Policy for LeastLoaded {
    fn configure(&mut self, settings: &mut Settings) -> Result<(), String> {
        self.load = LoadMeasure::from_settings(settings)?;
        self.relative = settings.switch("relative", false)?;
        Ok(())
    }

    fn describe(&self) -> Info {
        let info = Info::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION")).counts([self.load.column()]);
        match self.relative {
            true => info.counts([Count::MaxRunning]),
            false => info,
        }
    }

    fn decide(&mut self, _: &Request, candidates: &Candidates) -> Decision {
        let loads = self.load.of(candidates).iter().map(|&load| load as f32);
        Decision::Costs(if self.relative {
            // The request counts too: of two idle workers the larger one is better.
            let sizes = candidates.counts(Count::MaxRunning);
            loads
                .zip(sizes)
                .map(|(load, &size)| (load + 1.0) / size.max(1) as f32)
                .collect()
        } else {
            loads.collect()
        })
    }
}

export_policy!(LeastLoaded);

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(settings: &str, candidates: &Candidates) -> Vec<f32> {
        let mut policy = LeastLoaded::default();
        policy
            .configure(&mut Settings::parse(settings).expect("JSON"))
            .expect("settings");
        match policy.decide(&Request::default(), candidates) {
            Decision::Costs(costs) => costs,
            other => panic!("costs were expected, not {other:?}"),
        }
    }

    #[test]
    fn the_cost_is_the_load() {
        let candidates = Candidates::of(3)
            .with_counts(Count::RequestsAll, &[4, 0, 9])
            .with_counts(Count::DecodeBlocksAll, &[10, 30, 20]);
        assert_eq!(costs("", &candidates), [4.0, 0.0, 9.0]);
        assert_eq!(
            costs(r#"{"load": "decode_blocks"}"#, &candidates),
            [10.0, 30.0, 20.0]
        );
    }

    #[test]
    fn a_larger_worker_takes_more_where_load_is_relative() {
        let candidates = Candidates::of(2)
            .with_counts(Count::RequestsAll, &[3, 7])
            .with_counts(Count::MaxRunning, &[8, 32]);
        let costs = costs(r#"{"relative": true}"#, &candidates);
        assert_eq!(costs, [0.5, 0.25]);
    }

    #[test]
    fn it_reads_what_its_settings_need() {
        let mut policy = LeastLoaded::default();
        assert_eq!(policy.describe().counts, ["requests-all"]);
        let mut settings = Settings::parse(r#"{"relative": true, "load": "prefill_tokens"}"#).expect("JSON");
        policy.configure(&mut settings).expect("settings");
        assert_eq!(policy.describe().counts, ["prefill-tokens-all", "max-running"]);
    }
}
