//! The rules of the roster, without actors.

use std::sync::Arc;

use signalbox_protocol::{WorkerCard, WorkerEpoch};

use crate::{
    roster::{Roster, RosterError, WorkerPhase},
    test_support::{card, join, text},
};

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
        "the earlier incarnation has left already"
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
    // After the other worker left, this worker's card defines the model.
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
