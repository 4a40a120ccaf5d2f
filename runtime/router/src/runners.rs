//! The policy runners of one thread: one for each model that it decides for.
//!
//! A runner holds a policy instance, and the host has places for a bounded number of them. So a thread keeps those of the
//! models that it decided for lately. A model that is asked for again gets a new runner, which takes some 30 µs: its policy
//! decides, whatever the number of models.

use std::time::{Duration, Instant};

use hashbrown::HashMap;
use metrics::{counter, describe_counter};
use signalbox_policy_host::{MAX_INSTANCES_PER_THREAD, PolicyRegistry, PolicyRunner};

/// How long a runner may be without a decision until it is dropped. Its instance holds some 200 KiB.
const UNUSED: Duration = Duration::from_secs(600);

/// The runners of one thread.
#[derive(Debug)]
pub(crate) struct Runners {
    policies: PolicyRegistry,
    /// Most runners at a time.
    most: usize,
    /// By the name of the model.
    kept: HashMap<String, KeptRunner>,
}

#[derive(Debug)]
struct KeptRunner {
    runner: PolicyRunner,
    last_used: Instant,
}

impl Runners {
    pub(crate) fn new(policies: PolicyRegistry) -> Self {
        describe_counter!(
            "signalbox_policy_runners_evicted_total",
            "Policy instances that a thread dropped for those of other models, because it decides for more models than it keeps instances"
        );
        Self {
            policies,
            most: MAX_INSTANCES_PER_THREAD,
            kept: HashMap::new(),
        }
    }

    /// The runner of a model's policy, which decides at `now`.
    pub(crate) fn of(&mut self, model: &str, now: Instant) -> &mut PolicyRunner {
        if self.kept.len() >= self.most && !self.kept.contains_key(model) {
            self.evict();
        }
        let policies = &self.policies;
        let kept = self.kept.entry_ref(model).or_insert_with(|| KeptRunner {
            runner: policies.runner(model),
            last_used: now,
        });
        kept.last_used = now;
        &mut kept.runner
    }

    /// The runner of a model's policy, if there is one. Nothing is started.
    pub(crate) fn kept(&mut self, model: &str) -> Option<&mut PolicyRunner> {
        self.kept.get_mut(model).map(|kept| &mut kept.runner)
    }

    /// Drops runners that made no decision for long. One whose policy keeps state stays while its model `is_served`.
    pub(crate) fn drop_unused(&mut self, now: Instant, is_served: impl Fn(&str) -> bool) {
        self.kept.retain(|model, kept| {
            now.saturating_duration_since(kept.last_used) < UNUSED
                || kept.runner.keeps_state() && is_served(model)
        });
    }

    /// Drops the runner whose last decision is the longest ago.
    fn evict(&mut self) {
        let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.last_used);
        if let Some(model) = oldest.map(|(model, _)| model.clone()) {
            self.kept.remove(&model);
            counter!("signalbox_policy_runners_evicted_total").increment(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, path::Path};

    use signalbox_policy_host::{Decision, PolicyEngine, PolicyLimits, trial_requests};

    use super::*;
    use crate::test_support::policies;

    /// The policy that decides for `model` at `now`.
    fn decided_by(runners: &mut Runners, model: &str, now: Instant) -> String {
        let (request, candidates) = trial_requests(&[3], 1).next().unwrap();
        let mut decision = Decision::default();
        let decided = runners
            .of(model, now)
            .decide(&request, |_| &candidates, &mut decision);
        decided.by.to_string()
    }

    #[test]
    fn a_thread_with_more_models_than_places_has_each_decided_by_its_policy() {
        let limits = PolicyLimits {
            decide_budget_ms: 10_000,
            configure_budget_ms: 10_000,
            max_instances: 300,
            ..PolicyLimits::default()
        };
        let policies = PolicyRegistry::new(PolicyEngine::new(limits).unwrap(), "kv-aware").unwrap();
        let (mut runners, start) = (Runners::new(policies), Instant::now());
        for round in 0..2 {
            for model in 0..400 {
                let now = start + Duration::from_millis(round * 400 + model);
                let by = decided_by(&mut runners, &format!("model-{model}"), now);
                assert_eq!(by, "kv-aware@1.0.0", "model {model} in round {round}");
            }
        }
        assert_eq!(runners.kept.len(), MAX_INSTANCES_PER_THREAD);
    }

    #[test]
    fn the_runner_that_was_used_least_recently_makes_room() {
        let (mut runners, start) = (Runners::new(policies()), Instant::now());
        runners.most = 3;
        for (second, model) in ["a", "b", "c", "a", "d"].into_iter().enumerate() {
            decided_by(&mut runners, model, start + Duration::from_secs(second as u64));
        }
        let kept: HashSet<_> = runners.kept.keys().map(String::as_str).collect();
        assert_eq!(kept, HashSet::from(["a", "c", "d"]));
    }

    #[test]
    fn a_runner_without_decisions_is_dropped_and_one_with_state_only_with_its_model() {
        let policies = policies();
        let learner =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration-tests/guests/learner.wasm");
        policies
            .upload("learner", &std::fs::read(learner).unwrap(), "")
            .unwrap();
        policies.activate("with state", "learner", None).unwrap();
        let (mut runners, start) = (Runners::new(policies), Instant::now());
        for model in ["with state", "used", "unused"] {
            decided_by(&mut runners, model, start);
        }
        let later = start + UNUSED;
        decided_by(&mut runners, "used", later);
        let kept = |runners: &Runners| {
            let mut kept: Vec<_> = runners.kept.keys().cloned().collect();
            kept.sort();
            kept
        };
        runners.drop_unused(later - Duration::from_secs(1), |_| true);
        assert_eq!(kept(&runners), ["unused", "used", "with state"]);
        runners.drop_unused(later, |_| true);
        assert_eq!(kept(&runners), ["used", "with state"]);
        runners.drop_unused(later, |_| false);
        assert_eq!(kept(&runners), ["used"]);
    }
}
