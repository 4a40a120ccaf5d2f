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

/// A card of a worker with another block size.
fn card_of(name: &str, block_size: u32) -> Arc<WorkerCard> {
    Arc::new(WorkerCard {
        block_size,
        ..(*card(name, 1)).clone()
    })
}

fn joined(roster: &mut Roster, card: &Arc<WorkerCard>) -> Vec<(String, WorkerPhase)> {
    roster.join(card.clone(), |_| true).unwrap();
    assert!(roster.loaded(card, text()));
    judged(roster)
}

/// The workers whose phase changes.
fn judged(roster: &mut Roster) -> Vec<(String, WorkerPhase)> {
    let judged = roster.judge(1).into_iter();
    judged
        .map(|judged| (judged.card.id.to_string(), judged.phase))
        .collect()
}

/// The block size and the number of workers of each version, in the order of the view.
fn versions(roster: &Roster) -> Vec<(u32, usize)> {
    let view = roster.view();
    let versions = view.models["m"].versions.iter();
    versions
        .map(|version| (version.id.block_size, version.workers))
        .collect()
}

#[test]
fn workers_of_several_versions_serve_a_model_beside_each_other() {
    let mut roster = Roster::default();
    join(&mut roster, &card("a", 1));
    join(&mut roster, &card("b", 1));
    let other_size = card_of("c", 32);
    let other_tokenizer = Arc::new(WorkerCard {
        artifacts_digest: "e".into(),
        context_length: 9_000,
        ..(*card("d", 1)).clone()
    });
    let other_kind = Arc::new(WorkerCard {
        reads_body: true,
        ..(*card("e", 1)).clone()
    });
    for card in [&other_size, &other_tokenizer, &other_kind] {
        join(&mut roster, card);
    }
    let view = roster.view();
    let model = &view.models["m"];
    assert_eq!(model.workers.len(), 5);
    assert_eq!(
        versions(&roster)[0],
        (16, 2),
        "the one with most workers is first"
    );
    let ids: HashSet<_> = model.versions.iter().map(|version| version.id).collect();
    let cards = [&card("a", 1), &other_size, &other_tokenizer, &other_kind];
    assert_eq!(ids, cards.map(|card| VersionId::of(card)).into());
    assert_eq!(model.longest_context(), 9_000);
    assert_eq!(model.workers.shortest_context(), 1_024);
    // The workers of the first version leave: the others serve on.
    roster.leave(&id("a"), WorkerEpoch(1));
    roster.leave(&id("b"), WorkerEpoch(1));
    assert_eq!(judged(&mut roster), []);
    assert_eq!(roster.view().models["m"].workers.len(), 3);
}

#[test]
fn the_order_of_versions_depends_on_the_workers_alone() {
    let cards = [
        card_of("a", 32),
        card_of("b", 16),
        card_of("c", 32),
        card_of("d", 8),
    ];
    let order = |names: [usize; 4]| {
        let mut roster = Roster::default();
        for name in names {
            join(&mut roster, &cards[name]);
        }
        versions(&roster)
    };
    let first = order([0, 1, 2, 3]);
    assert_eq!(first[0], (32, 2));
    assert_eq!(order([3, 2, 1, 0]), first);
    assert_eq!(order([1, 0, 3, 2]), first);
}

#[test]
fn a_worker_of_one_version_too_many_is_refused_until_a_version_is_gone() {
    let mut roster = Roster::default();
    for (name, block_size) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
        for copy in ["0", "1"] {
            join(&mut roster, &card_of(&format!("{name}{copy}"), block_size));
        }
    }
    let refused = joined(&mut roster, &card_of("e0", 5));
    assert_eq!(refused, [("e0".into(), WorkerPhase::Refused)]);
    assert_eq!(roster.refused(), 1);
    roster.leave(&id("a0"), WorkerEpoch(1));
    roster.leave(&id("a1"), WorkerEpoch(1));
    assert_eq!(judged(&mut roster), [("e0".into(), WorkerPhase::Ready)]);
    assert_eq!(roster.refused(), 0);
    assert_eq!(roster.view().models["m"].workers.len(), 7);
}

#[test]
fn a_draining_worker_makes_room_for_another_version() {
    let mut roster = Roster::default();
    for (name, block_size) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
        let card = Arc::new(WorkerCard {
            address: name.into(),
            ..(*card_of(name, block_size)).clone()
        });
        join(&mut roster, &card);
    }
    for address in ["a", "b", "c"] {
        join(&mut roster, &card_at(&format!("{address}-again"), 1, "elsewhere"));
    }
    // Version 16 has three workers now, so that one of the four others is refused.
    assert_eq!(roster.refused(), 1);
    assert!(roster.drain("a").is_some() || roster.drain("b").is_some());
    roster.judge(1);
    assert_eq!(roster.refused(), 0);
}

#[test]
fn a_model_too_many_is_refused_until_another_one_has_no_worker() {
    let mut roster = Roster::default();
    let named = |number: usize| {
        Arc::new(WorkerCard {
            model: format!("m{number}"),
            ..(*card(&format!("w{number}"), 1)).clone()
        })
    };
    for number in 0..=MAX_MODELS {
        roster.join(named(number), |_| true).unwrap();
        assert!(roster.loaded(&named(number), text()));
    }
    roster.judge(1);
    assert_eq!(roster.refused(), 1);
    roster.leave(&id("w3"), WorkerEpoch(1));
    roster.judge(1);
    assert_eq!(roster.refused(), 0);
    let view = roster.view();
    assert_eq!(view.models.len(), MAX_MODELS);
    assert!(!view.models.contains_key("m3"));
}

#[test]
fn a_worker_restarted_in_place_with_another_version_changes_the_model() {
    let mut roster = Roster::default();
    join(&mut roster, &card("a", 1));
    join(&mut roster, &card("b", 1));
    let restarted = Arc::new(WorkerCard {
        epoch: WorkerEpoch(2),
        ..(*card_of("a", 32)).clone()
    });
    join(&mut roster, &restarted);
    assert_eq!(
        versions(&roster).into_iter().collect::<HashSet<_>>(),
        [(16, 1), (32, 1)].into()
    );
    let restarted = Arc::new(WorkerCard {
        epoch: WorkerEpoch(2),
        ..(*card_of("b", 32)).clone()
    });
    join(&mut roster, &restarted);
    assert_eq!(versions(&roster), [(32, 2)]);
}

#[test]
fn a_worker_that_left_before_it_was_ready_defines_no_model() {
    let mut roster = Roster::default();
    let left = card("a", 1);
    roster.join(left.clone(), |_| true).unwrap();
    roster.leave(&left.id, left.epoch);
    assert!(!roster.loaded(&left, text()));
    assert_eq!(roster.judge(1), []);
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
    assert_eq!(roster.lose("elsewhere"), None);
    assert_eq!(roster.lose("here").map(|card| card.id.clone()), Some(id("a")));
    assert_eq!(
        roster
            .workers()
            .map(|entry| entry.card.id.clone())
            .collect::<Vec<_>>(),
        [id("0")]
    );
}

/// The present workers: id, epoch, phase, and whether discovery lists it.
type Present = Vec<(String, u64, WorkerPhase, bool)>;

/// A worker answers at the address of another one: what leaves, and what is present then.
fn reached(roster: &mut Roster, found: &Arc<WorkerCard>) -> (Option<u64>, Present) {
    let earlier = roster.reach("here", found).map(|earlier| earlier.card.epoch.0);
    if earlier.is_some() {
        roster.adopt(found.clone(), |_| true).unwrap();
    }
    (earlier, present(roster))
}

#[test]
fn an_incarnation_that_answers_replaces_the_one_at_its_address_whether_listed_or_not() {
    for listed in [false, true] {
        let mut roster = with_unlisted();
        if listed {
            roster.join(card_at("a", 1, "here"), |_| true).unwrap();
        }
        let unchanged = vec![("a".into(), 1, WorkerPhase::Ready, listed)];
        assert_eq!(reached(&mut roster, &card_at("a", 1, "here")), (None, unchanged));
        let replaced = vec![("a".into(), 2, WorkerPhase::Preparing, listed)];
        assert_eq!(
            reached(&mut roster, &card_at("a", 2, "here")),
            (Some(1), replaced.clone())
        );
        let departed = roster.depart(&id("a"), WorkerEpoch(7), Departure::LeaseEnded, true);
        assert_eq!((departed, present(&roster)), (Departed::Unknown, replaced));
    }
}

/// Also one whose epoch is smaller, because its clock went backwards: what answers is what is there.
#[test]
fn a_restart_while_discovery_is_away_is_settled_when_discovery_is_back() {
    for epoch in [2, 1] {
        let first = 3 - epoch;
        let restarted = || {
            let mut roster = Roster::default();
            join(&mut roster, &card_at("a", first, "here"));
            reached(&mut roster, &card_at("a", epoch, "here"));
            assert_eq!(
                roster.lose("here"),
                None,
                "discovery lists its id: it may come back"
            );
            roster
        };
        let mut roster = restarted();
        let joined = roster.join(card_at("a", epoch, "here"), |_| true);
        assert_eq!(joined, Ok(Joined::Relisted));
        let old = roster.depart(&id("a"), WorkerEpoch(first), Departure::LeaseEnded, true);
        assert_eq!(old, Departed::Unknown);
        assert_eq!(
            present(&roster),
            [("a".into(), epoch, WorkerPhase::Preparing, true)]
        );

        for (answers, expected) in [(true, Departed::Kept), (false, Departed::Left)] {
            for departure in [Departure::LeaseEnded, Departure::Withdrawn] {
                let mut roster = restarted();
                let old = roster.depart(&id("a"), WorkerEpoch(first), departure, answers);
                assert_eq!(old, expected, "only the earlier incarnation was listed");
                let kept = roster.workers().map(|entry| entry.listed).collect::<Vec<_>>();
                assert_eq!(kept, if answers { vec![false] } else { vec![] });
            }
        }

        let mut roster = restarted();
        reached(&mut roster, &card_at("a", 5, "here"));
        let old = roster.depart(&id("a"), WorkerEpoch(first), Departure::LeaseEnded, true);
        assert_eq!(old, Departed::Kept, "also after a second restart");
    }
}

#[test]
fn another_worker_that_answers_at_an_address_replaces_the_one_there() {
    let mut roster = Roster::default();
    join(&mut roster, &card_at("a", 1, "here"));
    let found = card_at("b", 4, "here");
    assert_eq!(
        reached(&mut roster, &found),
        (Some(1), vec![("b".into(), 4, WorkerPhase::Preparing, false)])
    );
    assert_eq!(roster.join(found, |_| true), Ok(Joined::Relisted));
    assert_eq!(
        roster.depart(&id("a"), WorkerEpoch(1), Departure::LeaseEnded, true),
        Departed::Unknown
    );
    join(&mut roster, &card_at("c", 1, "there"));
    let elsewhere = card_at("b", 4, "there");
    assert_eq!(
        roster
            .reach("there", &elsewhere)
            .map(|earlier| earlier.card.id.clone()),
        Some(id("c"))
    );
    assert_eq!(
        roster.adopt(elsewhere, |_| true),
        Err(RosterError::Known(id("b"))),
        "a worker that is present elsewhere stays there"
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
