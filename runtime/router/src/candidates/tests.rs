//! Which workers become candidates, and with which columns.

use std::sync::Arc;

use signalbox_policy_host::ColumnGroups;
use signalbox_protocol::{LoadReport, ReplicaLoad, WorkerCard, WorkerReport, name_hash};

use super::*;
use crate::{
    breaker::Fault,
    roster::Roster,
    test_support::{card, join},
};

/// Fills every column, and the labels `gpu` and `price`, at 500 ms.
fn fill_all(workers: &ReadyWorkers, load: &LoadTable, rows: &[usize], columns: &mut Candidates) {
    let wanted = Wanted {
        groups: ColumnGroups::ALL,
        labels: &["gpu".into()],
        number_labels: &["price".into()],
    };
    let sources = Sources {
        workers,
        load,
        latency: &LatencyTable::default(),
        affinity: &AffinityTable::default(),
        rows,
        session: 0,
        now_ms: 500,
    };
    fill_wanted(wanted, &sources, columns);
}

#[test]
fn labels_reports_and_measurements_are_columns() {
    let mut roster = Roster::default();
    let labels = |labels: &[(&str, &str)]| {
        let labels = labels
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        labels.collect::<std::collections::BTreeMap<_, _>>()
    };
    let cards = [
        ("a", labels(&[("gpu", "h100"), ("price", "2.5"), ("zone", "z1")])),
        ("b", labels(&[("gpu", "l4"), ("price", "cheap")])),
        ("c", labels(&[("gpu", "h100")])),
    ];
    let slots = cards.map(|(name, labels)| {
        let card = WorkerCard {
            labels,
            ..(*card(name, 1)).clone()
        };
        join(&mut roster, &Arc::new(card))
    });
    let model = roster.view().models["m"].clone();
    let load = LoadTable::default();
    let report = WorkerReport {
        load: LoadReport {
            running: 3,
            active_kv_blocks: 40,
            used_kv_blocks: 100,
            prefill_tokens_per_s: 8_000,
            decode_step_us: 12_500,
            prefill_step_tokens: 700,
            decode_step_blocks: 30,
            ..LoadReport::default()
        },
        ..WorkerReport::default()
    };
    load.report(slots[2], &report, 380);
    let (latency, affinity) = (LatencyTable::default(), AffinityTable::default());
    latency.add_ttft(slots[0], 0.2, 1_000);
    latency.add_itl(slots[0], 0.03);
    affinity.note(9, slots[2], 100);
    let (mut columns, mut rows) = (Candidates::default(), Vec::new());
    let may_use = Some(|worker: &WorkerEntry| worker.slot != slots[1]);
    let overlaps = OverlapScores::default();
    assemble(&model.workers, &load, &overlaps, may_use, &mut columns, &mut rows).unwrap();
    let wanted = Wanted {
        groups: ColumnGroups::ALL,
        labels: &["gpu".into(), "absent".into()],
        number_labels: &["price".into()],
    };
    let sources = Sources {
        workers: &model.workers,
        load: &load,
        latency: &latency,
        affinity: &affinity,
        rows: &rows,
        session: 9,
        now_ms: 500,
    };
    fill_wanted(wanted, &sources, &mut columns);
    assert_eq!(columns.worker_key, [name_hash("a"), name_hash("c")]);
    assert_eq!(columns.zone, [name_hash("z1"), 0]);
    assert_eq!(columns.labels[0].1, [name_hash("h100"); 2]);
    assert_eq!(columns.labels[1].1, [0; 2]);
    assert_eq!(columns.number_labels[0].1, [2.5, 0.0]);
    assert_eq!(columns.running, [0, 3]);
    assert_eq!(
        (columns.kv_blocks_active[1], columns.kv_blocks_evictable[1]),
        (40, 60)
    );
    assert_eq!(columns.report_age_ms, [0.0, 120.0]);
    assert_eq!(columns.affinity_age_ms, [0.0, 400.0]);
    // The first worker measures nothing itself: 1,000 tokens in 200 ms.
    let rounded = |column: &[f32]| {
        column
            .iter()
            .map(|value| value.round() as u32)
            .collect::<Vec<_>>()
    };
    assert_eq!(rounded(&columns.prefill_tokens_per_s), [5_000, 8_000]);
    assert_eq!(columns.prefill_step_tokens, [1_000.0, 700.0]);
    assert_eq!(columns.decode_step_blocks, [0.0, 30.0]);
    assert_eq!(rounded(&columns.decode_step_ms), [30, 13]);
    assert_eq!(rounded(&columns.ttft_ms), [200, 0]);
    // A number that is none; asked for again, with all workers.
    assert_eq!(&*model.workers.label(&"price".into()).1, [2.5, 0.0, 0.0]);
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
    fill_all(&model.workers, &load, &rows, &mut columns);
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
    fill_all(&model.workers, &load, &rows, &mut columns);
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

#[test]
fn an_ejected_worker_is_a_candidate_only_where_every_other_is_ejected_or_may_not_be_used() {
    let mut roster = Roster::default();
    let cards = ["a", "b"].map(|name| card(name, 1));
    let slots = cards.each_ref().map(|card| join(&mut roster, card));
    let model = roster.view().models["m"].clone();
    let load = LoadTable::default();
    let (mut columns, mut rows) = (Candidates::default(), Vec::new());
    let overlaps = OverlapScores::default();
    for (slot, card) in slots.iter().zip(&cards) {
        load.health().join(*slot, card);
    }
    let fail = |slot| load.health().attempt(slot, 30).failed(Fault::Error, "broken");
    let anyone = None::<fn(&WorkerEntry) -> bool>;
    (0..2).for_each(|_| fail(slots[0]));
    assemble(&model.workers, &load, &overlaps, anyone, &mut columns, &mut rows).unwrap();
    assert_eq!(rows, [0, 1], "two failures do not eject");
    assert_eq!(
        (&*columns.requests, &*columns.prefill_tokens),
        (&[2, 0][..], &[60, 0][..])
    );
    fail(slots[0]);
    assemble(&model.workers, &load, &overlaps, anyone, &mut columns, &mut rows).unwrap();
    assert_eq!((&*rows, &*columns.worker), (&[1][..], &[slots[1].0][..]));
    // The other one failed this request.
    let not_b = Some(|worker: &WorkerEntry| worker.slot != slots[1]);
    assemble(&model.workers, &load, &overlaps, not_b, &mut columns, &mut rows).unwrap();
    assert_eq!(rows, [0]);
    let _full = [load.reserve(slots[1], 1, 1), load.reserve(slots[1], 1, 1)];
    assert_eq!(
        assemble(&model.workers, &load, &overlaps, anyone, &mut columns, &mut rows),
        Err(NoCandidate::Busy),
        "what one worker has no room for does not go to a sick one"
    );
}
