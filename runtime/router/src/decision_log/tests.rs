use std::time::Duration;

use signalbox_policy_host::{
    Candidates, Decision, PolicyComponent, PolicyEngine, PolicyLimits, RequestFeatures, builtin_policies,
    trial_requests,
};
use signalbox_protocol::{SequenceHash, WorkerId};

use super::*;
use crate::{recorded_decision::RecordedDecision, selection::select_row, test_support::policies};

/// What a test lets a decision be.
#[derive(Default)]
struct Made {
    session: u64,
    blocks: Vec<SequenceHash>,
}

fn decide(log: &DecisionLog, request: &str, costs: &[f32], chosen_row: usize) -> DecisionTicket {
    decide_as(log, request, costs, chosen_row, Made::default())
}

fn decide_as(
    log: &DecisionLog,
    request: &str,
    costs: &[f32],
    chosen_row: usize,
    made: Made,
) -> DecisionTicket {
    let rows: Vec<usize> = (0..costs.len()).collect();
    let ids: Arc<[WorkerId]> = rows
        .iter()
        .map(|row| format!("w{row}").parse().unwrap())
        .collect();
    let columns = Candidates {
        worker: vec![0; costs.len()],
        requests: (0..costs.len() as u32).collect(),
        labels: vec![("gpu".into(), vec![7; costs.len()])],
        ..Candidates::default()
    };
    let decision = Decision {
        costs: costs.to_vec(),
        ..Decision::default()
    };
    let mut features = RequestFeatures::default();
    features.keys.session = made.session;
    log.record(Decided {
        at_unix_ms: 1,
        took_ns: 1_500,
        request: RequestId::from_client(request).as_ref(),
        model: &"m".into(),
        policy: &"p@1".into(),
        component: None,
        features,
        blocks: &made.blocks,
        ids: &ids,
        rows: &rows,
        columns: &columns,
        decision: &decision,
        chosen_row,
    })
}

fn all(logs: &DecisionLogs) -> Vec<DecisionView> {
    logs.find(&DecisionFilter {
        limit: usize::MAX,
        ..DecisionFilter::default()
    })
}

fn of_request(logs: &DecisionLogs, request: &str) -> DecisionView {
    let filter = DecisionFilter {
        request: Some(request.into()),
        limit: 1,
        ..DecisionFilter::default()
    };
    logs.find(&filter).pop().unwrap()
}

#[test]
fn a_decision_is_told_in_words_with_the_next_best() {
    let logs = DecisionLogs::default();
    let log = logs.add();
    let ticket = decide(&log, "a", &[9.0, 5.0, 7.5], 1);
    let view = &all(&logs)[0];
    assert_eq!(
        view.explanation,
        "p@1 chose w1, one of 3 candidates, at a cost of 5.0; the next best, w2, costs 7.5, 2.5 more"
    );
    assert_eq!(ticket.explanation().as_ref(), Some(&view.explanation));
    let order: Vec<_> = view
        .candidates
        .iter()
        .map(|candidate| &*candidate.worker)
        .collect();
    assert_eq!(order, ["w1", "w2", "w0"]);
    let columns = &view.candidates[0].columns;
    assert_eq!(
        (&columns["requests"], &columns["label:gpu"]),
        (&1.into(), &7.into())
    );
}

#[test]
fn equal_costs_are_counted_in_words_that_fit_their_number() {
    let logs = DecisionLogs::default();
    let log = logs.add();
    decide(&log, "two", &[5.0, 5.0, f32::INFINITY], 0);
    let tied = of_request(&logs, "two");
    assert_eq!(
        tied.explanation,
        "p@1 chose w0, one of 3 candidates, at a cost of 5.0; w1 costs the same, and the request's seed chose between the two"
    );
    assert_eq!(tied.candidates[2].cost, None, "ruled out");
    decide(&log, "three", &[5.0, 5.0, 5.0], 2);
    assert!(
        of_request(&logs, "three")
            .explanation
            .ends_with("2 others cost the same, and the request's seed chose among them")
    );
    decide(&log, "one", &[5.0], 0);
    assert_eq!(
        of_request(&logs, "one").explanation,
        "p@1 chose w0, the only candidate, at a cost of 5.0"
    );
}

#[test]
fn the_ring_keeps_the_latest_decisions_and_an_outcome_finds_its_own() {
    let logs = DecisionLogs::default();
    let (log, _other) = (logs.add(), logs.add());
    let first = decide(&log, "first", &[1.0], 0);
    let second = decide(&log, "second", &[1.0], 0);
    let outcome = DecisionOutcome {
        completed: true,
        output_tokens: 3,
        ..DecisionOutcome::default()
    };
    second.ended(outcome);
    for _ in 0..MAX_RECORDS - 1 {
        decide(&log, "later", &[1.0], 0);
    }
    // The record of the first decision has been written over.
    assert_eq!(first.explanation(), None);
    first.ended(outcome);
    let kept = all(&logs);
    assert_eq!(kept.len(), MAX_RECORDS);
    let ended: Vec<_> = kept.iter().filter(|view| view.outcome.is_some()).collect();
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].request.as_deref(), Some("second"));
}

#[test]
fn among_many_candidates_some_decisions_keep_their_rows() {
    let logs = DecisionLogs::default();
    let log = logs.add();
    for _ in 0..SAMPLED {
        decide(&log, "x", &vec![1.0; MAX_ROWS + 1], 0);
    }
    let kept = all(&logs);
    let with_rows = kept.iter().filter(|view| !view.candidates.is_empty()).count();
    assert_eq!((kept.len(), with_rows), (SAMPLED as usize, 1));
    assert!(kept.iter().all(|view| view.candidate_count == MAX_ROWS + 1));
    assert!(
        kept.iter().all(|view| view.worker == "w0"),
        "the choice is always kept"
    );
}

/// The next decision of the feed. Those of this test are there already.
fn next(feed: &DecisionFeed) -> Option<RecordedDecision> {
    match feed.next(Duration::ZERO) {
        NextDecision::Decision(decision) => Some(*decision),
        NextDecision::Idle | NextDecision::Ended => None,
    }
}

#[test]
fn a_sampled_decision_leaves_whole_when_its_request_has_ended() {
    let (sampler, feed) = decision_feed("router-1".parse().unwrap(), 1.0);
    let logs = DecisionLogs::with_sampler(Some(sampler));
    let (_first, log) = (logs.add(), logs.add());
    let costs = vec![1.0; MAX_ROWS + 1];
    let made = Made {
        blocks: vec![SequenceHash(9)],
        ..Made::default()
    };
    drop(decide(&log, "lost", &[1.0], 0));
    let ticket = decide_as(&log, "r", &costs, 4, made);
    assert_eq!(next(&feed), None, "its outcome is not known");
    // The ring goes on, and the copy stays.
    for _ in 0..MAX_RECORDS {
        drop(decide(&log, "later", &[1.0], 0));
    }
    let outcome = DecisionOutcome {
        completed: true,
        ttft_ms: Some(3.0),
        ..DecisionOutcome::default()
    };
    ticket.ended(outcome);
    let record = next(&feed).unwrap();
    assert_eq!(
        (record.router.as_str(), record.thread, record.number),
        ("router-1", 1, 1)
    );
    assert_eq!((record.chosen, &*record.workers[4]), (4, "w4"));
    assert_eq!(record.costs, costs);
    assert_eq!(record.columns.requests.len(), costs.len());
    assert_eq!(record.blocks, [SequenceHash(9)]);
    assert_eq!(record.outcome, Some(outcome));
    assert_eq!(next(&feed), None);
    drop((logs, log, _first));
    assert!(matches!(feed.next(Duration::ZERO), NextDecision::Ended));
}

#[test]
fn a_sample_has_whole_sessions_and_about_its_share_of_them() {
    let (sampler, feed) = decision_feed("router-1".parse().unwrap(), 0.25);
    let logs = DecisionLogs::with_sampler(Some(sampler));
    let log = logs.add();
    for turn in 0..3 {
        for session in 1..=2_000 {
            let made = Made {
                session,
                ..Made::default()
            };
            decide_as(&log, &format!("{turn}-{session}"), &[1.0], 0, made).ended(DecisionOutcome::default());
        }
    }
    let mut turns = std::collections::BTreeMap::<u64, u32>::new();
    while let Some(record) = next(&feed) {
        assert_eq!(record.sample, 0.25);
        *turns.entry(record.features.keys.session).or_default() += 1;
    }
    assert!(turns.values().all(|turns| *turns == 3), "whole sessions");
    // Six standard deviations around 500.
    assert!((384..=616).contains(&turns.len()), "{}", turns.len());
}

#[test]
fn copies_that_wait_take_a_bounded_memory() {
    let (sampler, feed) = decision_feed("router-1".parse().unwrap(), 1.0);
    let logs = DecisionLogs::with_sampler(Some(sampler));
    let log = logs.add();
    let large = || Made {
        blocks: vec![SequenceHash(1); 1 << 20],
        ..Made::default()
    };
    // Eight MiB each, and 64 in all.
    let tickets: Vec<_> = (0..12)
        .map(|_| decide_as(&log, "r", &[1.0], 0, large()))
        .collect();
    let copied = tickets.iter().filter(|ticket| ticket.sampled.is_some()).count();
    assert_eq!(copied, 7);
    for ticket in tickets {
        ticket.ended(DecisionOutcome::default());
    }
    while next(&feed).is_some() {}
    let again = decide_as(&log, "r", &[1.0], 0, large());
    assert!(again.sampled.is_some(), "what was read makes room");
}

/// Records a decision of this component among five candidates.
fn record_by(logs: &DecisionLogs, component: &Arc<PolicyComponent>, request: &str) {
    let (features, columns) = trial_requests(&[5], 1).next().unwrap();
    let mut decision = Decision::default();
    let mut instance = component.instantiate().unwrap();
    instance.decide(&features, &columns, &mut decision).unwrap();
    let ids: Arc<[WorkerId]> = (0..5).map(|row| format!("w{row}").parse().unwrap()).collect();
    let chosen_row = select_row(&decision, 5, features.seed).unwrap();
    logs.add().record(Decided {
        at_unix_ms: 1,
        took_ns: 1,
        request: RequestId::from_client(request).as_ref(),
        model: &"m".into(),
        policy: &"p@1".into(),
        component: Some(component),
        features,
        blocks: &[],
        ids: &ids,
        rows: &[0, 1, 2, 3, 4],
        columns: &columns,
        decision: &decision,
        chosen_row,
    });
}

fn explained(logs: &DecisionLogs, request: &str) -> DecisionView {
    let filter = DecisionFilter {
        request: Some(request.into()),
        explained: true,
        limit: 1,
        ..DecisionFilter::default()
    };
    logs.find(&filter).pop().unwrap()
}

#[test]
fn the_policy_that_decided_explains_the_recorded_decision_when_asked() {
    let logs = DecisionLogs::default();
    let policies = policies();
    let component = |policy: &str| {
        let model = format!("explained by {policy}");
        policies.activate(&model, policy, None).unwrap();
        policies.deciding(&model).component.clone()
    };
    record_by(&logs, &component("kv-linear"), "explains");
    let view = explained(&logs, "explains");
    let words = view.policy_explanation.unwrap_or_default();
    assert!(words.len() > 10 && view.not_explained.is_none(), "{words}");
    record_by(&logs, &component("round-robin"), "silent");
    let view = explained(&logs, "silent");
    assert_eq!(view.policy_explanation, None);
    assert!(
        view.not_explained
            .unwrap_or_default()
            .contains("does not explain")
    );
    // Nobody asked.
    let unasked = of_request(&logs, "explains");
    assert_eq!((unasked.policy_explanation, unasked.not_explained), (None, None));
}

#[test]
fn a_record_keeps_no_version_of_a_policy_in_memory_and_says_so() {
    let logs = DecisionLogs::default();
    let (_, wasm) = builtin_policies()
        .into_iter()
        .find(|(name, _)| *name == "kv-linear")
        .unwrap();
    let component = PolicyEngine::new(PolicyLimits::default())
        .unwrap()
        .admit(wasm, "")
        .unwrap();
    record_by(&logs, &component, "gone");
    drop(component);
    let reason = explained(&logs, "gone").not_explained.unwrap_or_default();
    assert!(reason.contains("not loaded any more"), "{reason}");
}
