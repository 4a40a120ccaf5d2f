//! When a link is usable. Where a wait matters the clock is paused, and the worker's address never sends a hello.

use std::{sync::Arc, time::Duration};

use signalbox_protocol::WorkerCard;
use signalbox_request_plane::LinkError;

use super::*;
use crate::test_support::{TestWorker, call_parts, entry, silent_address, until};

/// A dial gives up after a second, and the next one starts 5 to 10 seconds later.
fn slow_to_dial_again() -> LinkConfig {
    LinkConfig {
        connect_timeout: Duration::from_secs(1),
        backoff_min: Duration::from_secs(10),
        backoff_max: Duration::from_secs(10),
        ..LinkConfig::default()
    }
}

fn later_incarnation(worker: &WorkerEntry) -> WorkerEntry {
    let card = WorkerCard {
        epoch: WorkerEpoch(2),
        ..(*worker.card).clone()
    };
    WorkerEntry {
        card: Arc::new(card),
        ..worker.clone()
    }
}

#[actix_rt::test]
async fn a_link_is_usable_while_it_is_dialled_and_up_after_that() {
    let server = TestWorker::start().await;
    let worker = entry(0, &server.address);
    let mut links = Links::new(LinkConfig::default());
    assert!(
        links.is_usable(&worker) && !links.is_up(&worker),
        "no link was opened yet"
    );
    links.follow(std::slice::from_ref(&worker));
    let link = links.get(&worker);
    assert_eq!(link.state(), LinkState::Connecting);
    assert!(links.is_usable(&worker) && !links.is_up(&worker) && !links.are_all_up());
    until(|| link.state() == LinkState::Up).await;
    assert!(links.is_usable(&worker) && links.is_up(&worker) && links.are_all_up());
}

#[actix_rt::test]
async fn a_link_that_waits_to_dial_again_is_not_usable_until_it_dials() {
    let (_silent, address) = silent_address();
    let (worker, other) = (entry(0, &address), entry(1, &address));
    tokio::time::pause();
    let mut links = Links::new(slow_to_dial_again());
    links.follow(std::slice::from_ref(&worker));

    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(links.get(&worker).state(), LinkState::Backoff);
    assert!(!links.is_usable(&worker) && !links.are_all_up());
    assert!(
        links.is_usable(&other),
        "a worker without a link is not held back by another one's link"
    );

    let link = links.get(&worker);
    until(|| link.state() == LinkState::Connecting).await;
    assert!(links.is_usable(&worker) && !links.is_up(&worker));
}

#[actix_rt::test]
async fn a_worker_is_not_dialled_before_it_is_ready_and_keeps_its_link_while_it_drains() {
    let (_silent, address) = silent_address();
    let mut worker = entry(0, &address);
    let mut links = Links::new(LinkConfig::default());
    for phase in [WorkerPhase::Preparing, WorkerPhase::Refused] {
        worker.phase = phase;
        links.follow(std::slice::from_ref(&worker));
        assert!(links.by_slot.iter().flatten().next().is_none(), "{phase:?}");
    }
    worker.phase = WorkerPhase::Ready;
    links.follow(std::slice::from_ref(&worker));
    let link = links.get(&worker);
    worker.phase = WorkerPhase::Draining;
    links.follow(std::slice::from_ref(&worker));
    assert_ne!(link.state(), LinkState::Closed);
}

#[actix_rt::test]
async fn a_link_is_closed_when_its_worker_leaves_and_others_stay_open() {
    let (_silent, address) = silent_address();
    let workers = [entry(0, &address), entry(1, &address)];
    let mut links = Links::new(LinkConfig::default());
    links.follow(&workers);
    let [leaving, staying] = workers.each_ref().map(|worker| links.get(worker));
    links.follow(&workers[1..]);
    assert_eq!(leaving.state(), LinkState::Closed);
    assert_eq!(staying.state(), LinkState::Connecting);
    assert!(matches!(
        leaving.open(call_parts()),
        Err(LinkError::Unreachable { .. })
    ));
}

#[actix_rt::test]
async fn a_later_incarnation_gets_a_link_of_its_own() {
    let (_silent, address) = silent_address();
    let earlier = entry(0, &address);
    let later = later_incarnation(&earlier);
    let mut links = Links::new(LinkConfig::default());
    let earlier_link = links.get(&earlier);
    let later_link = links.get(&later);
    assert_eq!(earlier_link.state(), LinkState::Closed);
    assert_eq!(later_link.state(), LinkState::Connecting);
    links.follow(std::slice::from_ref(&later));
    assert_eq!(later_link.state(), LinkState::Connecting);
}
