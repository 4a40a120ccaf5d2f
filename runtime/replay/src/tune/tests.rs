use std::sync::atomic::AtomicUsize;

use super::*;
use crate::{
    cluster::{ClusterConfig, WorkerShape},
    figures::ServiceLimits,
    trace::Arrival,
    workload::Workload,
};

fn range(text: &str) -> SettingRange {
    text.parse().unwrap()
}

#[test]
fn a_range_is_a_name_with_two_numbers() {
    assert_eq!(
        range("churn=0..1.5"),
        SettingRange {
            name: "churn".into(),
            low: 0.0,
            high: 1.5
        }
    );
    for wrong in [
        "churn",
        "churn=1",
        "churn=2..1",
        "=0..1",
        "churn=a..b",
        "churn=0..inf",
    ] {
        assert!(
            wrong.parse::<SettingRange>().unwrap_err().contains("LOW..HIGH"),
            "{wrong}"
        );
    }
    assert!("fast".parse::<Goal>().unwrap_err().contains("mean_ttft_ms"));
}

#[test]
fn places_of_a_range_are_values_within_it() {
    for text in ["a=0..200", "a=0.1..10", "a=-5..5"] {
        let range = range(text);
        let values: Vec<f64> = (0..=10).map(|place| range.at(f64::from(place) / 10.0)).collect();
        assert_eq!((values[0], values[10]), (range.low, range.high), "{text}");
        assert!(values.is_sorted(), "{values:?}");
    }
    assert_eq!(range("a=0.1..10").at(0.5), 1.0);
}

#[test]
fn halves_share_no_session_and_lose_no_request() {
    let workload: Workload = "requests=200,turns=3,rate=2".parse().unwrap();
    let trace = workload.trace(3);
    let (searched, held_back) = halves(&trace);
    assert_eq!(searched.requests.len() + held_back.requests.len(), 200);
    assert!(searched.requests.len() > 60 && held_back.requests.len() > 60);
    for half in [&searched, &held_back] {
        assert_eq!(half.requests[0].arrival, Arrival::At(std::time::Duration::ZERO));
        for request in &half.requests {
            if let Arrival::After { previous, .. } = request.arrival {
                assert_eq!(half.requests[previous].session, request.session);
            }
        }
        let other = if std::ptr::eq(half, &searched) {
            &held_back
        } else {
            &searched
        };
        let is_there = |session| other.requests.iter().any(|request| request.session == session);
        assert!(half.requests.iter().all(|request| !is_there(request.session)));
    }
}

fn search(goal: Goal, policy: &str, ranges: &[&str]) -> Tuned {
    let cluster = ClusterConfig {
        workers: vec![
            WorkerShape {
                kv_blocks: 1_000,
                ..WorkerShape::default()
            };
            3
        ],
        ..ClusterConfig::default()
    };
    let plan = Plan {
        cluster: &cluster,
        limits: ServiceLimits::default(),
        policies: &[],
        seeds: &[4],
        threads: 1,
        ended: &AtomicUsize::new(0),
    };
    let workload: Workload = "requests=80,rate=10,groups=3,shared=2048,prompt=200,answer=20"
        .parse()
        .unwrap();
    let search = Search {
        policy: &policy.parse().unwrap(),
        ranges: &ranges.iter().map(|text| range(text)).collect::<Vec<_>>(),
        goal,
        guards: Guards::default(),
        trials: 6,
        plan: &plan,
    };
    search.run(|seed| workload.trace(seed)).unwrap()
}

#[test]
fn what_is_chosen_is_no_worse_than_the_policys_own_settings_and_repeats() {
    // With this credit alone the cache counts for nothing.
    let bad = r#"kv-linear={"credit_decay":0}"#;
    let tuned = search(Goal::MeanTtft, bad, &["overlap_credit=0..2"]);
    assert_eq!(tuned.trials.len(), 7);
    let chosen = &tuned.trials[tuned.chosen];
    let held_back = |trial: &Trial| trial.held_back.unwrap().mean_ttft_ms;
    assert!(chosen.keeps_guards && held_back(chosen) <= held_back(&tuned.trials[0]));
    assert!(
        !tuned.front.is_empty()
            && tuned
                .front
                .iter()
                .all(|&number| tuned.trials[number].keeps_guards)
    );
    assert_eq!(search(Goal::MeanTtft, bad, &["overlap_credit=0..2"]), tuned);
    assert!(tune_table(&tuned, Goal::MeanTtft).contains("6 trials"));
}

#[test]
fn a_trial_that_breaks_a_guard_is_not_chosen() {
    let own = Outcome {
        mean_ttft_ms: 100.0,
        p90_ttft_ms: 150.0,
        p99_ttft_ms: 200.0,
        mean_e2e_ms: 1_000.0,
        largest_worker_share: 0.3,
        completed: 10.0,
    };
    let guards = Guards::default();
    assert!(own.keeps(&guards, &own));
    for worse in [
        Outcome {
            p99_ttft_ms: 210.0,
            ..own
        },
        Outcome {
            mean_e2e_ms: 1_020.0,
            ..own
        },
        Outcome {
            largest_worker_share: 0.4,
            ..own
        },
        Outcome {
            completed: 9.0,
            ..own
        },
    ] {
        let faster = Outcome {
            mean_ttft_ms: 1.0,
            ..worse
        };
        assert!(!faster.keeps(&guards, &own), "{faster:?}");
    }
}

#[test]
fn without_ranges_there_is_nothing_to_search() {
    assert!(SettingRange::of_builtin("mine.wasm").is_empty());
    assert!(!SettingRange::of_builtin("kv-aware").is_empty());
}
