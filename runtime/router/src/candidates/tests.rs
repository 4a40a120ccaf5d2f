//! Which workers become candidates, and with which columns.

use std::sync::Arc;

use signalbox_protocol::{ReplicaLoad, WorkerCard};

use super::*;
use crate::{
    roster::Roster,
    test_support::{card, join},
};

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
    let _reservations = [load.reserve(slot, 1, 1), load.reserve(slot, 1, 1)];
    for usable in [None, Some(true)] {
        assert_eq!(
            check(&load, usable),
            Err(NoCandidate::Busy),
            "the worker takes one running and one waiting request"
        );
    }
    assert_eq!(check(&load, Some(false)), Err(NoCandidate::Unavailable));
}

#[test]
fn a_row_keeps_its_values_when_another_worker_is_left_out() {
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
    let reservations = slots.map(|slot| load.reserve(slot, 10 * (slot.0 + 1), 1));
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
    drop(reservations);
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

#[test]
fn the_traits_mark_an_overlap_that_is_approximate_or_partial() {
    let mut roster = Roster::default();
    let slots = ["a", "b", "c"].map(|name| join(&mut roster, &card(name, 1)));
    let model = roster.view().models["m"].clone();
    let load = LoadTable::default();
    load.set_event_state(slots[0], EventState::Following);
    load.begin_learning(slots[1]);
    load.set_event_state(slots[2], EventState::Resyncing);
    let (mut columns, mut rows) = (Candidates::default(), Vec::new());
    let anyone = None::<fn(&WorkerEntry) -> bool>;
    let overlaps = OverlapScores::default();
    assemble(&model.workers, &load, &overlaps, anyone, &mut columns, &mut rows).unwrap();
    fill_optional(&model.workers, &load, &rows, &mut columns);
    let both = candidate_traits::PREFILL | candidate_traits::DECODE;
    assert_eq!(
        columns.traits,
        [
            both,
            both | candidate_traits::APPROXIMATE,
            both | candidate_traits::PARTIAL
        ]
    );
}
