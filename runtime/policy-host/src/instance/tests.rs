use std::{sync::Arc, thread};

use proptest::prelude::*;

use super::*;
use crate::{Fallback, PolicyEngine, PolicyLimits, builtin_policies, test_support, trial_requests};

fn admitted(guest: &str, settings: &str) -> Arc<PolicyComponent> {
    test_support::engine()
        .admit(&test_support::guest(guest), settings)
        .expect(guest)
}

fn fault_of(guest: &str) -> PolicyFault {
    let mut decision = Decision {
        costs: vec![7.0],
        ..Decision::default()
    };
    let mut instance = test_support::admitted(guest).instantiate().expect(guest);
    let fault = instance
        .decide(&test_support::request(0), &test_support::idle(2), &mut decision)
        .expect_err(guest);
    assert_eq!(
        decision.costs,
        [7.0],
        "{guest} changed the decision although it faulted"
    );
    fault
}

#[test]
fn each_misbehaviour_is_a_fault_of_its_kind() {
    assert!(matches!(fault_of("trap"), PolicyFault::Trap(_)));
    assert_eq!(fault_of("loop-in-decide"), PolicyFault::Deadline { budget_ms: 2 });
    assert!(matches!(
        fault_of("memory-hog"),
        PolicyFault::Memory {
            limit: 16_777_216,
            requested: 16_777_217..
        }
    ));
    assert_eq!(fault_of("deep-recursion"), PolicyFault::Stack);
    for guest in ["wrong-count", "nan-costs", "excludes-all", "pick-out-of-range"] {
        assert!(matches!(fault_of(guest), PolicyFault::Answer(_)), "{guest}");
    }
}

#[test]
fn after_a_trap_only_a_fresh_instance_decides() {
    let component = test_support::admitted("trap");
    let mut instance = component.instantiate().expect("instance");
    let mut decision = Decision::default();
    let calm = test_support::request(1 << 32);
    instance
        .decide(&test_support::request(0), &test_support::idle(2), &mut decision)
        .expect_err("trap");
    instance
        .decide(&calm, &test_support::idle(2), &mut decision)
        .expect_err("cannot be entered again");
    let mut next = component.instantiate().expect("instance");
    next.decide(&calm, &test_support::idle(2), &mut decision)
        .expect("decision");
}

#[test]
fn a_loop_is_stopped_although_the_clock_slept() {
    // The clock of an engine sleeps after a second without calls. No other test calls this engine.
    let engine = PolicyEngine::new(PolicyLimits::default()).expect("engine");
    let component = engine
        .admit(&test_support::guest("loop-in-decide"), "")
        .expect("admitted");
    engine.ticker().wait_until_asleep();
    let mut instance = component.instantiate().expect("instance");
    let fault = instance.decide(
        &test_support::request(0),
        &test_support::idle(2),
        &mut Decision::default(),
    );
    assert_eq!(fault, Err(PolicyFault::Deadline { budget_ms: 2 }));
}

/// `kv-linear` with the fallback's weights and this router's load only. It wants no optional column.
fn kv_linear_alone() -> PolicyInstance {
    let mut builtin = builtin_policies().into_iter();
    let (_, wasm) = builtin.find(|(name, _)| *name == "kv-linear").expect("kv-linear");
    let settings = r#"{"replicas": false, "min_overlap": 0.1, "fill_weight": 0.5}"#;
    let component = test_support::engine().admit(wasm, settings);
    component.expect("kv-linear").instantiate().expect("instance")
}

#[test]
fn a_policy_is_not_called_without_candidates_or_with_uneven_columns() {
    let mut instance = kv_linear_alone();
    let mut decision = Decision::default();
    let mut decide =
        |candidates: &Candidates| instance.decide(&test_support::request(0), candidates, &mut decision);
    assert!(matches!(
        decide(&Candidates::default()),
        Err(PolicyFault::Candidates(_))
    ));
    let mut uneven = test_support::idle(3);
    uneven.requests.pop();
    let fault = decide(&uneven).expect_err("uneven");
    assert_eq!(
        fault.to_string(),
        "was not called: the column requests has 2 rows for 3 candidates"
    );
    assert!(!fault.blamed());
    decide(&test_support::idle(3)).expect("the instance still decides");

    let mut without_optional = Candidates::default();
    without_optional.resize(3);
    decide(&without_optional).expect("kv-linear wants no optional column");
    let mut instance = test_support::admitted("replica-synced")
        .instantiate()
        .expect("instance");
    let fault = instance.decide(&test_support::request(0), &without_optional, &mut decision);
    let fault = fault
        .expect_err("replica-synced wants optional columns")
        .to_string();
    assert!(fault.contains("has 0 rows for 3"), "{fault}");
}

#[test]
fn the_fallback_decides_as_kv_linear_does() {
    let mut instance = kv_linear_alone();
    let (mut of_policy, mut of_fallback) = (Decision::default(), Decision::default());
    for (request, candidates) in trial_requests(&[1, 5, 64], 16) {
        instance
            .decide(&request, &candidates, &mut of_policy)
            .expect("decision");
        Fallback.decide(&request, &candidates, &mut of_fallback);
        assert_eq!(of_policy, of_fallback);
    }
}

#[test]
fn a_learning_policy_receives_outcomes_and_passes_its_state_on() {
    let outcome = |worker, ttft_ms| Outcome {
        worker,
        ttft_ms,
        completed: true,
        ..Outcome::default()
    };
    let costs = |instance: &mut PolicyInstance| {
        let mut decision = Decision::default();
        instance
            .decide(&test_support::request(0), &test_support::idle(2), &mut decision)
            .expect("decision");
        decision.costs
    };
    let mut first = test_support::admitted("learner").instantiate().expect("instance");
    assert!(first.observes());
    // More outcomes than one call takes.
    first.observe(&vec![outcome(1, 40.0); 600]).expect("observe");
    first
        .observe(&[outcome(2, 10.0), outcome(2, 30.0)])
        .expect("observe");
    assert_eq!(costs(&mut first), [40.0, 20.0]);
    let reason = first
        .explain(&test_support::request(0), &test_support::idle(2), 1)
        .expect("explain");
    assert_eq!(reason.as_deref(), Some("it answers in 20.0 ms"));

    let snapshot = first.snapshot().expect("snapshot").expect("something");
    let mut second = test_support::admitted("learner").instantiate().expect("instance");
    assert_eq!(second.restore(&snapshot).expect("restore"), Ok(()));
    assert_eq!(costs(&mut second), [40.0, 20.0]);
    let mut forgetful = admitted("learner", r#"{"forget": true}"#)
        .instantiate()
        .expect("instance");
    assert_eq!(
        forgetful.restore(&snapshot).expect("restore"),
        Err("told to forget".into())
    );
    assert_eq!(costs(&mut forgetful), [0.0, 0.0]);
}

#[test]
fn a_policy_without_the_optional_interfaces_receives_no_such_calls() {
    let mut instance = test_support::admitted("round-robin")
        .instantiate()
        .expect("instance");
    assert!(!instance.observes());
    instance.observe(&[Outcome::default()]).expect("nothing happens");
    assert_eq!(instance.snapshot().expect("snapshot"), None);
    assert_eq!(
        instance
            .explain(&test_support::request(0), &test_support::idle(1), 0)
            .expect("explain"),
        None
    );
}

#[test]
fn numbers_come_in_the_order_of_the_description() {
    let mut candidates = test_support::idle(3);
    candidates.kv_blocks_total = vec![0, 100, 100];
    candidates.kv_blocks_used = vec![50, 50, 200];
    candidates.overlap_device = vec![0, 5, 10];
    candidates.overlap_host = vec![1, 0, 10];
    let mut decision = Decision::default();
    let mut instance = test_support::admitted("learner").instantiate().expect("instance");
    instance
        .decide(&test_support::request(0), &candidates, &mut decision)
        .expect("decision");
    // The size of the first cache is unknown. A share is at most 1.
    assert_eq!(decision.costs, [0.0 + 0.1, 0.5 + 0.5, 1.0 + 1.0]);
}

#[test]
fn a_policy_may_abstain_and_reject() {
    let mut decision = Decision::default();
    let mut opinion = |answer: &str| {
        let settings = format!(r#"{{"answer": "{answer}"}}"#);
        let mut instance = admitted("answers", &settings).instantiate().expect("instance");
        let opinion = instance.decide(&test_support::request(0), &test_support::idle(2), &mut decision);
        (opinion, decision.rejection.take())
    };
    assert_eq!(opinion("abstain"), (Ok(Opinion::Abstained), None));
    let (answered, rejection) = opinion("reject");
    assert_eq!(answered, Ok(Opinion::Decided));
    let rejection = rejection.expect("rejected");
    assert_eq!(
        (rejection.is_overload, rejection.retry_after_s, &*rejection.reason),
        (true, Some(7), "this team has had its share")
    );
    for (answer, reason) in [
        ("pair", "does not split"),
        ("wait", "does not hold requests back"),
    ] {
        let (fault, _) = opinion(answer);
        let fault = fault.expect_err(answer);
        assert!(fault.blamed() && fault.to_string().contains(reason), "{fault}");
    }
}

#[test]
fn a_panic_is_a_fault_with_its_message() {
    let fault = fault_of("trap").to_string();
    assert!(
        fault.contains("as told") && fault.contains("unreachable"),
        "{fault}"
    );
}

#[test]
fn a_policy_that_logs_much_still_decides() {
    let mut instance = admitted("answers", r#"{"answer": "log"}"#)
        .instantiate()
        .expect("instance");
    let mut decision = Decision::default();
    let opinion = instance.decide(&test_support::request(0), &test_support::idle(2), &mut decision);
    assert_eq!((opinion, decision.costs), (Ok(Opinion::Decided), vec![0.0; 2]));
}

#[test]
fn an_instance_can_move_to_another_thread() {
    let component = test_support::admitted("round-robin");
    let mut instance = component.instantiate().expect("instance");
    let picked = thread::spawn(move || {
        let mut decision = Decision::default();
        instance
            .decide(&test_support::request(4), &test_support::idle(3), &mut decision)
            .expect("decision");
        decision.pick
    });
    assert_eq!(picked.join().expect("thread"), Some(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// P-1 for any request: as many costs as candidates, none NaN, or a pick among the candidates.
    #[test]
    fn answers_name_only_candidates(
        rows in 1_usize..70, values in prop::collection::vec(any::<u32>(), 200),
        tokens in any::<u32>(), blocks in any::<u32>(), block_size in any::<u32>(),
        seed in any::<u64>(), decision_number in any::<u64>(),
    ) {
        let (mut candidates, mut values) = (Candidates::default(), values.into_iter().cycle());
        (0..rows).for_each(|_| candidates.push_row(|| values.next().unwrap_or_default()));
        let request = RequestFeatures {
            prompt_tokens: tokens, prompt_blocks: blocks, block_size, seed, decision_number, ..Default::default()
        };
        for (name, _) in builtin_policies() {
            thread_local! {
                static INSTANCES: std::cell::RefCell<std::collections::HashMap<&'static str, PolicyInstance>> =
                    std::cell::RefCell::default();
            }
            INSTANCES.with_borrow_mut(|instances| {
                let instance = instances.entry(name).or_insert_with(|| test_support::admitted(name).instantiate().expect(name));
                let mut decision = Decision::default();
                instance.decide(&request, &candidates, &mut decision).expect(name);
                match decision.pick {
                    Some(row) => prop_assert!((row as usize) < candidates.len()),
                    None => {
                        prop_assert_eq!(decision.costs.len(), candidates.len());
                        prop_assert!(decision.costs.iter().all(|cost| !cost.is_nan()));
                    }
                }
                Ok(())
            })?;
        }
    }
}
