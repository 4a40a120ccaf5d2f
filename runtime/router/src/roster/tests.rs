use super::*;
use crate::test_support::{card, join, text};

fn id(name: &str) -> WorkerId {
    name.parse().unwrap()
}

/// A card of a worker with an address of its own.
fn card_at(name: &str, epoch: u64, address: &str) -> Arc<WorkerCard> {
    Arc::new(WorkerCard {
        address: address.into(),
        ..(*card(name, epoch)).clone()
    })
}

/// Each present worker's id, epoch and phase, and whether it is listed.
fn present(roster: &Roster) -> Vec<(String, u64, WorkerPhase, bool)> {
    roster
        .workers()
        .map(|entry| {
            (
                entry.card.id.to_string(),
                entry.card.epoch.0,
                entry.phase,
                entry.listed,
            )
        })
        .collect()
}

/// A roster with the ready worker `a` in epoch 1 at the address `here`, which discovery does not list.
fn with_unlisted() -> Roster {
    let mut roster = Roster::default();
    join(&mut roster, &card_at("a", 1, "here"));
    assert_eq!(
        roster.depart(&id("a"), WorkerEpoch(1), Departure::LeaseEnded, true),
        Departed::Kept
    );
    roster
}

#[test]
fn a_later_epoch_replaces_and_an_earlier_one_is_refused() {
    let mut roster = Roster::default();
    join(&mut roster, &card("a", 2));
    for epoch in [1, 2] {
        assert_eq!(
            roster.join(card("a", epoch), |_| true),
            Err(RosterError::Known(id("a")))
        );
    }
    join(&mut roster, &card("a", 3));
    assert_eq!(
        roster.leave(&id("a"), WorkerEpoch(2)),
        None,
        "the earlier incarnation has left already"
    );
    assert_eq!(roster.view().models["m"].workers.len(), 1);
}

#[test]
fn a_slot_is_given_again_only_when_its_requests_are_over() {
    let mut roster = Roster::default();
    let first = join(&mut roster, &card("a", 1));
    roster.leave(&id("a"), WorkerEpoch(1));
    assert_eq!(
        roster.join(card("b", 1), |_| false),
        Ok(Joined::New(WorkerSlot(first.0 + 1)))
    );
    assert_eq!(roster.join(card("c", 1), |_| true), Ok(Joined::New(first)));
}

#[test]
fn a_full_roster_refuses_a_worker_and_keeps_the_earlier_incarnation_of_it() {
    let mut roster = Roster::default();
    for number in 0..MAX_WORKERS {
        roster.join(card(&format!("w{number}"), 1), |_| true).unwrap();
    }
    assert_eq!(
        roster.join(card("x", 1), |_| true),
        Err(RosterError::Full(id("x")))
    );
    assert_eq!(
        roster.join(card("w7", 2), |_| false),
        Err(RosterError::Full(id("w7"))),
        "requests to the earlier incarnation hold its slot"
    );
    assert_eq!(
        roster.workers["w7".parse::<WorkerId>().as_ref().unwrap()]
            .card
            .epoch,
        WorkerEpoch(1)
    );
    assert_eq!(
        roster.join(card("w7", 2), |_| true),
        Ok(Joined::New(WorkerSlot(7)))
    );
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
    // After the other worker left, this worker's card defines the model.
    roster.leave(&id("a"), WorkerEpoch(1));
    assert_eq!(roster.ready(&other, text(), 1), Some(WorkerPhase::Ready));
    assert_eq!(roster.view().models["m"].block_size, 32);
}

#[test]
fn engines_that_read_bodies_and_engines_that_do_not_never_serve_one_model() {
    let mut roster = Roster::default();
    let reader = |name: &str| {
        Arc::new(WorkerCard {
            reads_body: true,
            ..(*card(name, 1)).clone()
        })
    };
    join(&mut roster, &reader("a"));
    join(&mut roster, &reader("b"));
    roster.join(card("c", 1), |_| true).unwrap();
    assert_eq!(roster.ready(&card("c", 1), text(), 1), Some(WorkerPhase::Refused));
    let view = roster.view();
    assert!(view.models["m"].reads_body);
    assert_eq!(view.models["m"].workers.len(), 2);
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
    join(&mut roster, &card_at("a", 1, "here"));
    assert_eq!(roster.drain("elsewhere"), None);
    assert_eq!(roster.drain("here").map(|card| card.id.clone()), Some(id("a")));
    assert_eq!(roster.drain("here"), None, "it drains already");
    let view = roster.view();
    assert!(view.models["m"].workers.is_empty());
    assert_eq!(view.workers[0].phase, WorkerPhase::Draining);
}

#[test]
fn a_worker_that_is_not_ready_yet_does_not_drain() {
    let mut roster = Roster::default();
    roster.join(card_at("a", 1, "here"), |_| true).unwrap();
    assert_eq!(roster.drain("here"), None);
    assert_eq!(roster.workers().next().unwrap().phase, WorkerPhase::Preparing);
}

#[test]
fn only_a_worker_whose_lease_ended_and_that_answers_is_kept() {
    let cases = [
        (1, Departure::LeaseEnded, true, Departed::Kept),
        (1, Departure::LeaseEnded, false, Departed::Left),
        (1, Departure::Withdrawn, true, Departed::Left),
        (1, Departure::Withdrawn, false, Departed::Left),
        (2, Departure::LeaseEnded, true, Departed::Unknown),
        (2, Departure::Withdrawn, false, Departed::Unknown),
    ];
    for (epoch, departure, answers, expected) in cases {
        let mut roster = Roster::default();
        join(&mut roster, &card("a", 1));
        let case = (epoch, departure, answers);
        assert_eq!(
            roster.depart(&id("a"), WorkerEpoch(epoch), departure, answers),
            expected,
            "{case:?}"
        );
        let is_present = roster.workers().count() == 1;
        assert_eq!(is_present, expected != Departed::Left, "{case:?}");
    }
}

#[test]
fn a_worker_that_is_listed_again_keeps_its_slot_and_its_phase() {
    let mut roster = with_unlisted();
    assert_eq!(present(&roster), [("a".into(), 1, WorkerPhase::Ready, false)]);
    assert_eq!(
        roster.join(card_at("a", 1, "here"), |_| true),
        Ok(Joined::Relisted)
    );
    assert_eq!(present(&roster), [("a".into(), 1, WorkerPhase::Ready, true)]);
}

#[test]
fn another_card_replaces_that_of_an_unlisted_worker() {
    for (epoch, address) in [(2, "here"), (1, "there")] {
        let mut roster = with_unlisted();
        assert_eq!(
            roster.join(card_at("a", epoch, address), |_| true),
            Ok(Joined::New(WorkerSlot(1))),
        );
        assert_eq!(
            present(&roster),
            [("a".into(), epoch, WorkerPhase::Preparing, true)]
        );
        assert_eq!(
            roster.join(card("b", 1), |_| true),
            Ok(Joined::New(WorkerSlot(0))),
            "the earlier slot is vacant"
        );
    }
}

#[test]
fn an_unlisted_worker_leaves_when_its_connection_ends_and_a_listed_one_stays() {
    let mut roster = with_unlisted();
    assert_eq!(roster.lose("elsewhere"), None);
    assert_eq!(roster.lose("here").map(|card| card.id.clone()), Some(id("a")));
    assert_eq!(present(&roster), []);

    let mut roster = Roster::default();
    join(&mut roster, &card_at("a", 1, "here"));
    assert_eq!(roster.lose("here"), None);
    assert_eq!(roster.workers().count(), 1);
}

#[test]
fn an_unlisted_worker_leaves_although_a_listed_one_has_its_address() {
    let mut roster = with_unlisted();
    join(&mut roster, &card_at("0", 1, "here"));
    assert_eq!(roster.reach("here", WorkerEpoch(1)), None);
    assert_eq!(roster.lose("here").map(|card| card.id.clone()), Some(id("a")));
    assert_eq!(
        roster
            .workers()
            .map(|entry| entry.card.id.clone())
            .collect::<Vec<_>>(),
        [id("0")]
    );
}

#[test]
fn an_unlisted_worker_leaves_when_another_incarnation_answers_at_its_address() {
    let mut roster = with_unlisted();
    assert_eq!(roster.reach("here", WorkerEpoch(1)), None, "it answers itself");
    assert_eq!(
        roster.reach("here", WorkerEpoch(2)).map(|card| card.epoch),
        Some(WorkerEpoch(1))
    );
    assert_eq!(present(&roster), []);

    let mut roster = Roster::default();
    join(&mut roster, &card_at("a", 1, "here"));
    assert_eq!(
        roster.reach("here", WorkerEpoch(2)),
        None,
        "discovery will report the other incarnation of a listed worker"
    );
}

#[test]
fn a_restored_roster_has_the_workers_slots_and_models_of_the_view() {
    let mut roster = Roster::default();
    let cards = ["a", "b", "c"].map(|name| card_at(name, 1, name));
    let slots = cards.each_ref().map(|card| join(&mut roster, card));
    roster.drain("b");
    roster.leave(&id("a"), WorkerEpoch(1));
    let view = roster.view();

    let mut restored = Roster::restore(&view);
    assert_eq!(
        present(&restored),
        [
            ("b".into(), 1, WorkerPhase::Draining, false),
            ("c".into(), 1, WorkerPhase::Ready, false),
        ]
    );
    assert!(restored.known_text(&cards[0]).is_some());
    assert_eq!(restored.join(cards[2].clone(), |_| true), Ok(Joined::Relisted));
    assert_eq!(restored.workers().last().unwrap().slot, slots[2]);
    assert_eq!(
        restored.join(card("d", 1), |slot| slot != slots[0]),
        Ok(Joined::New(WorkerSlot(3))),
        "requests hold the slot of the worker that left"
    );
    assert_eq!(restored.join(card("e", 1), |_| true), Ok(Joined::New(slots[0])));
    assert_eq!(restored.view().models["m"].workers.len(), 1);
}
