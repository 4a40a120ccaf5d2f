use signalbox_protocol::PlaneState;

use super::*;
use crate::{
    codec::HEADER_LEN,
    plane::{Delivery, conformance},
};

const EPOCH: WorkerEpoch = WorkerEpoch(1);

fn publish(plane: &MemoryPlane, worker: &str, sequence: u64) {
    plane.publish(
        &conformance::worker(worker),
        Arc::new(KvEventBatch {
            epoch: EPOCH,
            sequence,
            events: vec![],
        }),
    );
}

fn follow(plane: &MemoryPlane, worker: &str, wanted: u64) -> Subscription {
    plane.subscribe(&conformance::worker(worker), Some((EPOCH, wanted)))
}

async fn expect_batch(subscription: &mut Subscription, sequence: u64) {
    match subscription.next().await {
        Delivery::Batch(batch) => assert_eq!(batch.sequence, sequence),
        other => panic!("{other:?} instead of batch {sequence}"),
    }
}

#[tokio::test]
async fn it_conforms_to_the_event_plane() {
    let retained = 8;
    conformance::of(retained, async || {
        MemoryPlane::with_retention(Retention {
            batches: retained,
            bytes: 1 << 20,
        })
    })
    .await;
}

#[tokio::test]
async fn it_is_always_up() {
    let status = MemoryPlane::new().status();
    assert_eq!(
        (status.borrow().kind.as_str(), status.borrow().state),
        ("memory", PlaneState::Up)
    );
}

#[tokio::test]
async fn batches_beyond_the_bound_on_bytes_are_skipped() {
    let plane = MemoryPlane::with_retention(Retention {
        batches: 100,
        bytes: 3 * HEADER_LEN,
    });
    (0..10).for_each(|sequence| publish(&plane, "a", sequence));
    let mut subscription = follow(&plane, "a", 0);
    assert_eq!(subscription.next().await, Delivery::Skipped);
    expect_batch(&mut subscription, 7).await;
}

#[tokio::test]
async fn every_subscription_reports_a_loss_even_if_its_worker_is_silent() {
    let plane = MemoryPlane::new();
    let (mut a, mut silent) = (follow(&plane, "a", 0), follow(&plane, "silent", 0));
    publish(&plane, "a", 0);
    expect_batch(&mut a, 0).await;
    plane.skip_all();
    assert_eq!(a.next().await, Delivery::Skipped);
    assert_eq!(silent.next().await, Delivery::Skipped);
    publish(&plane, "a", 5);
    expect_batch(&mut a, 5).await;

    plane.skip(&conformance::worker("a"));
    plane.skip(&conformance::worker("unknown"));
    publish(&plane, "silent", 0);
    assert_eq!(a.next().await, Delivery::Skipped);
    expect_batch(&mut silent, 0).await;
}

#[tokio::test]
async fn the_next_subscription_reports_a_loss_that_none_has_reported() {
    let plane = MemoryPlane::new();
    publish(&plane, "a", 0);
    plane.skip_all();
    for worker in ["a", "not seen before"] {
        let worker = worker.replace(' ', "-");
        let mut first = follow(&plane, &worker, 1);
        assert_eq!(first.next().await, Delivery::Skipped, "{worker}");
        let mut second = follow(&plane, &worker, 1);
        publish(&plane, &worker, 1);
        expect_batch(&mut second, 1).await;
    }
    // A subscription at the time of the loss, dropped before it reports the loss.
    let unread = follow(&plane, "a", 2);
    plane.skip_all();
    drop(unread);
    assert_eq!(follow(&plane, "a", 2).next().await, Delivery::Skipped);
}

#[tokio::test]
async fn workers_are_bounded_and_those_with_subscriptions_stay() {
    let plane = MemoryPlane::bounded(Retention::default(), 8);
    let mut followed = follow(&plane, "followed", 0);
    for number in 0..100 {
        publish(&plane, &format!("unknown-{number}"), 0);
        assert!(plane.inner.workers.lock().logs.len() <= 8);
    }
    publish(&plane, "followed", 0);
    expect_batch(&mut followed, 0).await;
    // The newest log stays. A dropped log may have had batches that are lost now.
    let mut newest = follow(&plane, "unknown-99", 0);
    assert_eq!(
        newest.next().await,
        Delivery::Skipped,
        "the log began after others were dropped"
    );
    expect_batch(&mut newest, 0).await;
    assert_eq!(follow(&plane, "unknown-0", 1).next().await, Delivery::Skipped);
    // When all logs have subscriptions, a new worker gets none.
    let all: Vec<_> = (0..8)
        .map(|number| follow(&plane, &format!("w{number}"), 0))
        .collect();
    publish(&plane, "one-more", 0);
    assert!(
        !plane
            .inner
            .workers
            .lock()
            .logs
            .contains_key(&conformance::worker("one-more"))
    );
    drop(all);
}
