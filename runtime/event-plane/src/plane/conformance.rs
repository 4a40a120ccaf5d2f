//! The conformance tests, which every event plane passes.

use std::{ops::Range, sync::Arc, time::Duration};

use signalbox_protocol::{CacheTier, KvEvent, KvEventBatch, SequenceHash, WorkerEpoch, WorkerId};

use crate::{Delivery, EventPlane, Subscription};

const FIRST: WorkerEpoch = WorkerEpoch(1000);
const SECOND: WorkerEpoch = WorkerEpoch(2000);
/// Fails a test that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Checks the planes that `plane` creates. Each is empty, receives what is published on it from then on, and retains
/// `retained` batches per worker, at least 8.
pub(crate) async fn of<P: EventPlane>(retained: usize, plane: impl AsyncFn() -> Arc<P>) {
    let retained = retained as u64;
    batches_arrive_in_order_before_and_after(&*plane().await).await;
    a_subscription_may_come_before_the_first_batch(&*plane().await).await;
    a_subscription_from_now_on_leaves_out_earlier_batches(&*plane().await).await;
    a_new_epoch_follows_the_old_one(&*plane().await).await;
    workers_are_separate(&*plane().await).await;
    a_position_not_retained_is_skipped(&*plane().await, retained).await;
    a_subscription_that_falls_behind_reports_it(&*plane().await, retained).await;
    a_gap_in_the_published_batches_is_reported(&*plane().await).await;
    a_repeated_batch_is_no_gap(&*plane().await).await;
    forgetting_closes_subscriptions_and_starts_over(&*plane().await).await;
}

pub(crate) fn worker(name: &str) -> WorkerId {
    name.parse().unwrap()
}

async fn batches_arrive_in_order_before_and_after(plane: &impl EventPlane) {
    publish_and_settle(plane, "a", FIRST, 0..3).await;
    let mut all = plane.subscribe(&worker("a"), Some((FIRST, 0)));
    let mut rest = plane.subscribe(&worker("a"), Some((FIRST, 2)));
    expect(&mut all, FIRST, 0..3).await;
    publish(plane, "a", FIRST, 3..5);
    expect(&mut all, FIRST, 3..5).await;
    expect(&mut rest, FIRST, 2..5).await;
}

async fn a_subscription_may_come_before_the_first_batch(plane: &impl EventPlane) {
    let mut from_now = plane.subscribe(&worker("a"), None);
    let mut from_start = plane.subscribe(&worker("a"), Some((FIRST, 0)));
    publish(plane, "a", FIRST, 0..2);
    expect(&mut from_now, FIRST, 0..2).await;
    expect(&mut from_start, FIRST, 0..2).await;
}

async fn a_subscription_from_now_on_leaves_out_earlier_batches(plane: &impl EventPlane) {
    publish_and_settle(plane, "a", FIRST, 0..3).await;
    let mut subscription = plane.subscribe(&worker("a"), None);
    publish(plane, "a", FIRST, 3..5);
    expect(&mut subscription, FIRST, 3..5).await;
}

async fn a_new_epoch_follows_the_old_one(plane: &impl EventPlane) {
    publish_and_settle(plane, "a", FIRST, 0..3).await;
    let mut subscription = plane.subscribe(&worker("a"), Some((FIRST, 1)));
    publish(plane, "a", SECOND, 0..2);
    expect(&mut subscription, FIRST, 1..3).await;
    expect(&mut subscription, SECOND, 0..2).await;
}

async fn workers_are_separate(plane: &impl EventPlane) {
    let mut a = plane.subscribe(&worker("a"), None);
    publish(plane, "b", SECOND, 0..2);
    publish(plane, "a", FIRST, 0..2);
    expect(&mut a, FIRST, 0..2).await;
}

async fn a_position_not_retained_is_skipped(plane: &impl EventPlane, retained: u64) {
    let published = 2 * retained;
    publish_and_settle(plane, "a", FIRST, 0..published).await;
    let mut subscription = plane.subscribe(&worker("a"), Some((FIRST, 1)));
    assert_eq!(next(&mut subscription).await, Delivery::Skipped);
    let first = expect_batch(&mut subscription).await;
    assert!(
        first > 1 && first >= published - retained,
        "batch {first} is one of the last {retained}"
    );
    expect(&mut subscription, FIRST, first + 1..published).await;
}

async fn a_subscription_that_falls_behind_reports_it(plane: &impl EventPlane, retained: u64) {
    let mut subscription = plane.subscribe(&worker("a"), None);
    publish(plane, "a", FIRST, 0..1);
    expect(&mut subscription, FIRST, 0..1).await;
    let published = 100 * retained;
    publish_and_settle(plane, "a", FIRST, 1..published).await;
    // Some batches may be in flight already. A gap is reported right before the batch that follows it.
    let (mut expected, mut skips) = (1, 0);
    while expected < published {
        match next(&mut subscription).await {
            Delivery::Skipped => {
                let after = expect_batch(&mut subscription).await;
                assert!(after >= expected);
                (expected, skips) = (after + 1, skips + 1);
            }
            Delivery::Batch(batch) => {
                assert!(
                    batch.sequence <= expected,
                    "batch {} came instead of {expected} without a report",
                    batch.sequence
                );
                expected = expected.max(batch.sequence + 1);
            }
            Delivery::Closed => panic!("the worker was not forgotten"),
        }
    }
    assert!(
        skips > 0,
        "a plane that retains {retained} batches cannot hold {published}"
    );
}

async fn a_gap_in_the_published_batches_is_reported(plane: &impl EventPlane) {
    let mut subscription = plane.subscribe(&worker("a"), None);
    publish(plane, "a", FIRST, 0..1);
    publish(plane, "a", FIRST, 3..4);
    publish(plane, "a", SECOND, 1..2);
    expect(&mut subscription, FIRST, 0..1).await;
    for (epoch, sequence) in [(FIRST, 3), (SECOND, 1)] {
        assert_eq!(next(&mut subscription).await, Delivery::Skipped);
        expect(&mut subscription, epoch, sequence..sequence + 1).await;
    }
}

async fn a_repeated_batch_is_no_gap(plane: &impl EventPlane) {
    let mut subscription = plane.subscribe(&worker("a"), None);
    publish(plane, "a", FIRST, 0..3);
    publish(plane, "a", FIRST, 1..2);
    publish(plane, "a", FIRST, 3..4);
    let mut expected = 0;
    while expected < 4 {
        let sequence = expect_batch(&mut subscription).await;
        assert!(sequence <= expected);
        expected = expected.max(sequence + 1);
    }
}

async fn forgetting_closes_subscriptions_and_starts_over(plane: &impl EventPlane) {
    publish_and_settle(plane, "a", FIRST, 0..2).await;
    let mut subscription = plane.subscribe(&worker("a"), Some((FIRST, 2)));
    plane.forget(&worker("a"));
    plane.forget(&worker("never-seen"));
    assert_eq!(next(&mut subscription).await, Delivery::Closed);
    assert_eq!(next(&mut subscription).await, Delivery::Closed);
    publish(plane, "a", SECOND, 0..1);
    let mut again = plane.subscribe(&worker("a"), Some((FIRST, 0)));
    expect(&mut again, SECOND, 0..1).await;
}

fn publish(plane: &impl EventPlane, name: &str, epoch: WorkerEpoch, sequences: Range<u64>) {
    for sequence in sequences {
        plane.publish(&worker(name), batch(epoch, sequence));
    }
}

/// Publishes, and returns when the last batch is available to later subscriptions.
async fn publish_and_settle(plane: &impl EventPlane, name: &str, epoch: WorkerEpoch, sequences: Range<u64>) {
    let mut witness = plane.subscribe(&worker(name), None);
    let last = sequences.end - 1;
    publish(plane, name, epoch, sequences);
    // The subscription may skip batches.
    while next(&mut witness).await != Delivery::Batch(batch(epoch, last)) {}
}

/// A batch whose content names its epoch and sequence.
fn batch(epoch: WorkerEpoch, sequence: u64) -> Arc<KvEventBatch> {
    let blocks = vec![SequenceHash(epoch.0 + sequence)];
    Arc::new(KvEventBatch {
        epoch,
        sequence,
        events: vec![KvEvent::Removed {
            tier: CacheTier::Device,
            blocks,
        }],
    })
}

async fn next(subscription: &mut Subscription) -> Delivery {
    tokio::time::timeout(PATIENCE, subscription.next())
        .await
        .expect("a delivery")
}

async fn expect(subscription: &mut Subscription, epoch: WorkerEpoch, sequences: Range<u64>) {
    for sequence in sequences {
        assert_eq!(next(subscription).await, Delivery::Batch(batch(epoch, sequence)));
    }
}

/// The sequence of the batch that comes next.
async fn expect_batch(subscription: &mut Subscription) -> u64 {
    match next(subscription).await {
        Delivery::Batch(batch) => batch.sequence,
        other => panic!("{other:?} instead of a batch"),
    }
}
