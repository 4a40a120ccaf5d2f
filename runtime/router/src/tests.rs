//! The roster's rules, without actors.

use std::sync::Arc;

use signalbox_kv_index::{OverlapScores, WorkerSlot};
use signalbox_policy_host::{Candidates, candidate_traits};
use signalbox_protocol::{ReplicaLoad, WorkerCapacity, WorkerCard, WorkerEpoch, WorkerRole};
use signalbox_tokenize::{ModelArtifacts, ModelText};

use crate::{
    candidates::{NoCandidate, assemble, fill_optional},
    load::LoadTable,
    roster::{Roster, RosterError, WorkerEntry, WorkerPhase},
};

fn card(name: &str, epoch: u64) -> Arc<WorkerCard> {
    Arc::new(WorkerCard {
        id: name.parse().unwrap(),
        epoch: WorkerEpoch(epoch),
        model: "m".into(),
        address: "127.0.0.1:1".into(),
        engine: "sim".into(),
        block_size: 16,
        context_length: 1_024,
        artifacts_digest: "d".into(),
        role: WorkerRole::Aggregated,
        capacity: WorkerCapacity {
            kv_blocks: 64,
            max_sequences: 1,
            max_waiting: 1,
        },
        kv_events: true,
        labels: Default::default(),
    })
}

fn text() -> Arc<ModelText> {
    Arc::new(ModelText::load(&ModelArtifacts::byte_level()).unwrap())
}

fn join(roster: &mut Roster, card: &Arc<WorkerCard>) -> WorkerSlot {
    let slot = roster.join(card.clone(), |_| true).unwrap();
    roster.ready(card, text(), 1);
    slot
}

#[test]
fn a_later_epoch_replaces_and_an_earlier_one_is_refused() {
    let mut roster = Roster::default();
    join(&mut roster, &card("a", 2));
    assert_eq!(
        roster.join(card("a", 1), |_| true),
        Err(RosterError::Known("a".parse().unwrap()))
    );
    join(&mut roster, &card("a", 3));
    assert_eq!(
        roster.leave(&"a".parse().unwrap(), WorkerEpoch(2)),
        None,
        "the earlier life is gone already"
    );
    assert_eq!(roster.view().models["m"].workers.len(), 1);
}

#[test]
fn a_slot_is_given_again_only_when_its_requests_are_over() {
    let mut roster = Roster::default();
    let first = join(&mut roster, &card("a", 1));
    roster.leave(&"a".parse().unwrap(), WorkerEpoch(1));
    let second = roster.join(card("b", 1), |_| false).unwrap();
    assert_ne!(first, second);
    assert_eq!(roster.join(card("c", 1), |_| true).unwrap(), first);
}

#[test]
fn a_worker_that_contradicts_its_model_is_refused() {
    let mut roster = Roster::default();
    join(&mut roster, &card("a", 1));
    let other = Arc::new(WorkerCard {
        block_size: 32,
        ..(*card("b", 1)).clone()
    });
    roster.join(other.clone(), |_| true).unwrap();
    assert_eq!(roster.ready(&other, text(), 1), Some(WorkerPhase::Refused));
    assert_eq!(roster.view().models["m"].workers.len(), 1);
    // Once the other left, the model is what this worker says.
    roster.leave(&"a".parse().unwrap(), WorkerEpoch(1));
    assert_eq!(roster.ready(&other, text(), 1), Some(WorkerPhase::Ready));
    assert_eq!(roster.view().models["m"].block_size, 32);
}

#[test]
fn a_worker_that_left_before_it_was_ready_defines_no_model() {
    let mut roster = Roster::default();
    let left = card("a", 1);
    roster.join(left.clone(), |_| true).unwrap();
    roster.leave(&left.id, left.epoch);
    assert_eq!(roster.ready(&left, text(), 1), None);
    assert!(roster.view().models.is_empty());
}

#[test]
fn a_draining_worker_is_no_candidate_and_its_model_stays_known() {
    let mut roster = Roster::default();
    join(&mut roster, &card("a", 1));
    assert!(roster.drain(&"a".parse().unwrap(), WorkerEpoch(1)));
    assert!(!roster.drain(&"a".parse().unwrap(), WorkerEpoch(1)));
    let view = roster.view();
    assert!(view.models["m"].workers.is_empty());
    assert_eq!(view.workers[0].phase, WorkerPhase::Draining);
}

#[test]
fn a_full_worker_is_busy_and_an_excluded_one_unavailable() {
    let mut roster = Roster::default();
    let slot = join(&mut roster, &card("a", 1));
    let model = roster.view().models["m"].clone();
    let load = LoadTable::default();
    let (mut columns, mut rows) = (Candidates::default(), Vec::new());
    let mut check = |load: &LoadTable, usable: Option<bool>| {
        assemble(
            &model.workers,
            load,
            &OverlapScores::default(),
            usable.map(|usable| move |_: &WorkerEntry| usable),
            &mut columns,
            &mut rows,
        )
    };
    assert_eq!(check(&load, None), Ok(()));
    assert_eq!(check(&load, Some(true)), Ok(()));
    assert_eq!(check(&load, Some(false)), Err(NoCandidate::Unavailable));
    let _held = [load.reserve(slot, 1, 1), load.reserve(slot, 1, 1)];
    for usable in [None, Some(true)] {
        assert_eq!(
            check(&load, usable),
            Err(NoCandidate::Busy),
            "one running and one waiting is all it takes"
        );
    }
    assert_eq!(check(&load, Some(false)), Err(NoCandidate::Unavailable));
}

#[test]
fn rows_that_are_left_keep_what_is_theirs() {
    let mut roster = Roster::default();
    let workers = [
        ("a", WorkerRole::Prefill),
        ("b", WorkerRole::Aggregated),
        ("c", WorkerRole::Decode),
    ];
    let slots = workers.map(|(name, role)| {
        let card = Arc::new(WorkerCard {
            role,
            ..(*card(name, 1)).clone()
        });
        join(&mut roster, &card)
    });
    let model = roster.view().models["m"].clone();
    let load = LoadTable::default();
    let held = slots.map(|slot| load.reserve(slot, 10 * (slot.0 + 1), 1));
    load.set_others(
        slots[2],
        ReplicaLoad {
            prefill_tokens: 500,
            decode_blocks: 5,
            requests: 1,
        },
    );
    let overlaps = OverlapScores {
        device: vec![1, 2, 3],
        ..OverlapScores::default()
    };
    let (mut columns, mut rows) = (Candidates::default(), Vec::new());
    let may_use = Some(|worker: &WorkerEntry| worker.slot != slots[1]);
    assemble(&model.workers, &load, &overlaps, may_use, &mut columns, &mut rows).unwrap();
    fill_optional(&model.workers, &load, &rows, &mut columns);
    drop(held);
    assert_eq!(rows, [0, 2]);
    assert_eq!(columns.worker, [slots[0].0, slots[2].0]);
    assert_eq!(columns.overlap_device, [1, 3]);
    assert_eq!(columns.overlap_host, [0, 0]);
    assert_eq!(columns.prefill_tokens, [10, 30]);
    assert_eq!(columns.prefill_tokens_all, [10, 530]);
    assert_eq!(columns.requests_all, [1, 2]);
    assert_eq!(
        columns.traits,
        [candidate_traits::PREFILL, candidate_traits::DECODE]
    );
}
