//! How every event plane behaves: one body of tests for all implementations.

use std::{ops::Range, sync::Arc, time::Duration};

use signalbox_protocol::{CacheTier, KvEvent, KvEventBatch, SequenceHash, WorkerEpoch, WorkerId};

use crate::{Delivery, EventPlane, Subscription};

const FIRST: WorkerEpoch = WorkerEpoch(1000);
const SECOND: WorkerEpoch = WorkerEpoch(2000);
/// Only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// Checks planes that `plane` makes and that keep `retained` batches of a worker, at least 8. Each is empty, and
/// what is published on it is received from then on.
pub(crate) async fn of<P: EventPlane>(retained: usize, plane: impl AsyncFn() -> Arc<P>) {
    let retained = retained as u64;
    batches_arrive_in_order_before_and_after(&*plane().await).await;
    a_subscription_may_come_before_the_first_batch(&*plane().await).await;
    from_now_on_leaves_out_what_was(&*plane().await).await;
    a_new_epoch_follows_the_old_one(&*plane().await).await;
    workers_are_apart(&*plane().await).await;
    a_position_no_longer_kept_is_skipped(&*plane().await, retained).await;
    one_who_falls_behind_is_told(&*plane().await, retained).await;
    a_hole_in_what_was_published_is_told(&*plane().await).await;
    what_is_published_twice_does_not_look_like_a_hole(&*plane().await).await;
    forgetting_closes_and_starts_over(&*plane().await).await;
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

async fn from_now_on_leaves_out_what_was(plane: &impl EventPlane) {
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

async fn workers_are_apart(plane: &impl EventPlane) {
    let mut a = plane.subscribe(&worker("a"), None);
    publish(plane, "b", SECOND, 0..2);
    publish(plane, "a", FIRST, 0..2);
    expect(&mut a, FIRST, 0..2).await;
}

async fn a_position_no_longer_kept_is_skipped(plane: &impl EventPlane, retained: u64) {
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

async fn one_who_falls_behind_is_told(plane: &impl EventPlane, retained: u64) {
    let mut subscription = plane.subscribe(&worker("a"), None);
    publish(plane, "a", FIRST, 0..1);
    expect(&mut subscription, FIRST, 0..1).await;
    let published = 100 * retained;
    publish_and_settle(plane, "a", FIRST, 1..published).await;
    // A plane may have some under way already; whatever is missing is told right before what comes after.
    let (mut expected, mut told) = (1, 0);
    while expected < published {
        match next(&mut subscription).await {
            Delivery::Skipped => {
                let after = expect_batch(&mut subscription).await;
                assert!(after >= expected);
                (expected, told) = (after + 1, told + 1);
            }
            Delivery::Batch(batch) => {
                assert!(
                    batch.sequence <= expected,
                    "batch {} after {expected} unannounced",
                    batch.sequence
                );
                expected = expected.max(batch.sequence + 1);
            }
            Delivery::Closed => panic!("nobody forgot the worker"),
        }
    }
    assert!(
        told > 0,
        "{published} batches fit into no plane that keeps {retained}"
    );
}

async fn a_hole_in_what_was_published_is_told(plane: &impl EventPlane) {
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

async fn what_is_published_twice_does_not_look_like_a_hole(plane: &impl EventPlane) {
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

async fn forgetting_closes_and_starts_over(plane: &impl EventPlane) {
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

/// Publishes, and returns when the last one is where those who come late find it.
async fn publish_and_settle(plane: &impl EventPlane, name: &str, epoch: WorkerEpoch, sequences: Range<u64>) {
    let mut witness = plane.subscribe(&worker(name), None);
    let last = sequences.end - 1;
    publish(plane, name, epoch, sequences);
    // It may skip some.
    while next(&mut witness).await != Delivery::Batch(batch(epoch, last)) {}
}

/// Tells its epoch and sequence in its content too.
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
