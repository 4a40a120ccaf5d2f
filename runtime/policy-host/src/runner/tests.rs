use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use metrics_exporter_prometheus::PrometheusBuilder;

use super::*;
use crate::{MAX_INSTANCES_PER_THREAD, PolicyEngine, PolicyLimits, test_support};

const MODEL: &str = "model";

/// A registry in which the guests of these names are stored.
fn registry(guests: &[&str]) -> PolicyRegistry {
    let registry = PolicyRegistry::for_tests("kv-aware").expect("registry");
    for guest in guests {
        registry.store_guest(guest);
    }
    registry
}

fn decide(runner: &mut PolicyRunner) -> (Decided, Decision) {
    let mut decision = Decision::default();
    let candidates = test_support::idle(3);
    let decided = runner.decide(&test_support::request(0), |_| &candidates, &mut decision);
    assert!(
        decision.pick.is_some() || decision.costs.len() == 3,
        "no decision by {}",
        decided.by
    );
    (decided, decision)
}

fn decided_by(runner: &mut PolicyRunner) -> String {
    decide(runner).0.by.to_string()
}

#[test]
fn the_default_policy_decides_until_another_one_is_activated() {
    let registry = registry(&[]);
    let (mut one, mut other) = (registry.runner(MODEL), registry.runner("another model"));
    assert_eq!(decided_by(&mut one), "kv-aware@1.0.0");
    registry.activate(MODEL, "round-robin", None).expect("activate");
    assert_eq!(decided_by(&mut one), "round-robin@1.0.0");
    assert_eq!(decided_by(&mut other), "kv-aware@1.0.0");
}

#[test]
fn the_fallback_decides_after_faults_and_the_third_fault_returns_to_the_previous_version() {
    for guest in [
        "trap",
        "loop-in-decide",
        "memory-hog",
        "deep-recursion",
        "nan-costs",
        "pick-out-of-range",
    ] {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            let registry = registry(&[guest]);
            let mut runner = registry.runner(MODEL);
            registry.activate(MODEL, "round-robin", None).expect("activate");
            registry.activate(MODEL, guest, None).expect("activate");
            for _ in 0..3 {
                let (decided, decision) = decide(&mut runner);
                assert_eq!((&*decided.by, decision.costs), (fallback::LABEL, vec![20.0; 3]));
                assert!(decided.fault.is_some());
            }
            let (decided, _) = decide(&mut runner);
            assert_eq!(&*decided.by, "round-robin@1.0.0");
            assert!(decided.fault.is_none());

            let record = registry
                .list()
                .into_iter()
                .find(|record| record.name == guest)
                .expect(guest);
            assert_eq!(record.state, "quarantined");
            assert!(record.reason.is_some());
            let refusal = registry
                .activate(MODEL, guest, None)
                .expect_err("quarantined")
                .to_string();
            assert!(refusal.contains("in quarantine, because it"), "{refusal}");
        });
        let metrics = recorder.handle().render();
        let count = |line: &str| assert!(metrics.contains(line), "{guest}: no {line:?} in {metrics}");
        count(&format!(
            "signalbox_policy_faults_total{{policy=\"{guest}@1.0.0\",kind="
        ));
        count(&format!(
            "signalbox_policy_quarantines_total{{policy=\"{guest}@1.0.0\"}} 1"
        ));
        count("signalbox_policy_swaps_total{policy=\"round-robin@1.0.0\"} 2");
    }
}

#[test]
fn a_version_in_quarantine_decides_for_no_model() {
    let registry = registry(&["trap"]);
    let (mut one, mut other) = (registry.runner("one"), registry.runner("other"));
    for model in ["one", "other"] {
        registry.activate(model, "trap", None).expect("activate");
    }
    for _ in 0..3 {
        decide(&mut one);
    }
    assert_eq!(decided_by(&mut other), "kv-aware@1.0.0");
}

#[test]
fn an_upload_of_the_same_component_ends_its_quarantine() {
    let registry = registry(&["trap"]);
    let mut runner = registry.runner(MODEL);
    registry.activate(MODEL, "trap", None).expect("activate");
    for _ in 0..3 {
        decide(&mut runner);
    }
    assert_eq!(
        registry
            .upload("trap", &test_support::guest("trap"), "")
            .expect("upload")
            .record
            .state,
        "stored"
    );
    registry.activate(MODEL, "trap", None).expect("activate");
    assert!(decide(&mut runner).0.fault.is_some());
}

#[test]
fn the_fallback_decides_without_a_fault_when_every_policy_is_in_quarantine() {
    let registry = registry(&[]);
    let mut runner = registry.runner(MODEL);
    let activation = Arc::clone(runner.activation());
    for _ in 0..3 {
        registry.note_fault(MODEL, &activation, &PolicyFault::Stack);
    }
    let (decided, _) = decide(&mut runner);
    assert_eq!(&*decided.by, fallback::LABEL);
    assert!(decided.fault.is_none());
    // The same is true for a new model.
    assert_eq!(decided_by(&mut registry.runner("new model")), fallback::LABEL);
    registry.activate(MODEL, "round-robin", None).expect("activate");
    assert_eq!(decided_by(&mut runner), "round-robin@1.0.0");
}

#[test]
fn faults_of_the_host_do_not_count_against_the_policy() {
    let registry = registry(&[]);
    let mut runner = registry.runner(MODEL);
    for _ in 0..10 {
        let mut decision = Decision::default();
        let none = Candidates::default();
        let decided = runner.decide(&test_support::request(0), |_| &none, &mut decision);
        assert_eq!(decided.fault.expect("nothing to decide on").kind(), "candidates");
        assert_eq!(decision, Decision::default());
    }
    assert_eq!(decided_by(&mut runner), "kv-aware@1.0.0");
}

/// A registry of its own engine, with places for this many instances.
fn registry_with_places(max_instances: u32) -> PolicyRegistry {
    let limits = PolicyLimits {
        max_instances,
        ..PolicyLimits::default()
    };
    let engine = PolicyEngine::new(limits).expect("engine");
    PolicyRegistry::new(engine, "kv-aware").expect("registry")
}

/// Decides until the reaper has dropped an instance and a place is free.
fn decided_in_the_end(runner: &mut PolicyRunner) -> String {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let by = decided_by(runner);
        if by != fallback::LABEL || Instant::now() > until {
            return by;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_lack_of_places_is_counted_and_ends_with_a_runner() {
    let recorder = PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        let registry = registry_with_places(1);
        let mut one = registry.runner("one");
        let mut other = registry.runner("other");
        assert_eq!(decided_by(&mut one), "kv-aware@1.0.0");
        for _ in 0..10 {
            let (decided, _) = decide(&mut other);
            assert_eq!(&*decided.by, fallback::LABEL);
            assert_eq!(decided.fault.expect("no place").kind(), "no_place");
        }
        drop(one);
        assert_eq!(decided_in_the_end(&mut other), "kv-aware@1.0.0", "no quarantine");
    });
    let metrics = recorder.handle().render();
    let counted = "signalbox_policy_faults_total{policy=\"kv-aware@1.0.0\",kind=\"no_place\"}";
    assert!(metrics.contains(counted), "{metrics}");
}

#[test]
fn an_instance_that_was_started_for_a_runner_ends_with_it() {
    let registry = registry_with_places(4);
    let runners = [registry.runner(MODEL), registry.runner(MODEL)];
    registry.activate(MODEL, "round-robin", None).expect("activate");
    // Two instances of the runners, and two that they did not take yet.
    let mut other = registry.runner("other");
    assert_eq!(decided_by(&mut other), fallback::LABEL);
    drop(runners);
    let others: Vec<_> = (0..3)
        .map(|number| {
            let mut runner = registry.runner(&format!("other-{number}"));
            assert_eq!(decided_in_the_end(&mut runner), "kv-aware@1.0.0", "{number}");
            runner
        })
        .collect();
    assert_eq!(others.len(), 3);
    assert_eq!(decided_in_the_end(&mut other), "kv-aware@1.0.0");
}

#[test]
fn every_thread_has_places_for_all_that_it_keeps() {
    for threads in [1, 16, 256] {
        let limits = PolicyLimits::for_threads(threads);
        assert!(limits.max_instances as usize >= threads * MAX_INSTANCES_PER_THREAD + 256);
    }
    // A machine of 256 cores: 8 TiB of address space.
    PolicyEngine::new(PolicyLimits::for_threads(256)).expect("engine");
    assert_eq!(PolicyLimits::for_threads(usize::MAX).max_instances, 1 << 18);
}

#[test]
fn the_state_of_a_policy_survives_a_swap_to_another_activation() {
    let registry = registry(&["learner"]);
    let mut runner = registry.runner(MODEL);
    registry.activate(MODEL, "learner", None).expect("activate");
    decide(&mut runner);
    assert!(runner.observes());
    runner.observe(&[Outcome {
        worker: 2,
        ttft_ms: 30.0,
        completed: true,
        ..Outcome::default()
    }]);
    assert_eq!(decide(&mut runner).1.costs, [0.0, 30.0, 0.0]);

    registry
        .activate(MODEL, "learner", Some(r#"{"forget": false}"#))
        .expect("activate");
    assert_eq!(decide(&mut runner).1.costs, [0.0, 30.0, 0.0]);
    assert_eq!(
        runner
            .explain(&test_support::request(0), &test_support::idle(3), 1)
            .as_deref(),
        Some("it answers in 30.0 ms")
    );
    // A policy that refuses the state starts without it.
    registry
        .activate(MODEL, "learner", Some(r#"{"forget": true}"#))
        .expect("activate");
    let (decided, decision) = decide(&mut runner);
    assert!(decided.fault.is_none());
    assert_eq!(decision.costs, [0.0; 3]);
}

/// P-2: threads decide without pause while the policy is swapped. Every decision is by one whole version, and none is
/// by the fallback.
#[test]
fn swaps_under_load_interrupt_no_decision() {
    const SWAPS: usize = 200;
    let registry = registry(&["learner"]);
    let swapping = AtomicBool::new(true);
    let seen: BTreeSet<String> = thread::scope(|scope| {
        let deciders: Vec<_> = (0..3)
            .map(|_| {
                let mut runner = registry.runner(MODEL);
                let swapping = &swapping;
                scope.spawn(move || {
                    let mut seen = BTreeSet::new();
                    while swapping.load(Relaxed) {
                        let (decided, decision) = decide(&mut runner);
                        assert!(decided.fault.is_none(), "{:?}", decided.fault);
                        // `round-robin` picks, the others return costs: the decision fits the name.
                        assert_eq!(decided.by.starts_with("round-robin@"), decision.pick.is_some());
                        seen.insert(decided.by.to_string());
                    }
                    seen
                })
            })
            .collect();
        for swap in 0..SWAPS {
            let policy = ["round-robin", "learner", "kv-aware"][swap % 3];
            let before = registry.activate(MODEL, policy, None).expect("activate");
            assert_eq!(before.number, swap as u64 + 1);
        }
        swapping.store(false, Relaxed);
        deciders
            .into_iter()
            .flat_map(|decider| decider.join().expect("decider"))
            .collect()
    });
    assert!(seen.iter().all(|by| !by.starts_with("fallback")), "{seen:?}");
    assert!(seen.len() >= 2, "{seen:?}");
}

/// The bound is far above the 14 ms of `limits.rs`, because machines that run tests can stall.
#[test]
fn a_loop_delays_its_request_by_milliseconds() {
    let registry = registry(&["loop-in-decide"]);
    let mut runner = registry.runner(MODEL);
    registry
        .activate(MODEL, "loop-in-decide", None)
        .expect("activate");
    let started = Instant::now();
    let (decided, _) = decide(&mut runner);
    assert_eq!(decided.fault.expect("a loop").kind(), "deadline");
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "the loop was not stopped"
    );
}
