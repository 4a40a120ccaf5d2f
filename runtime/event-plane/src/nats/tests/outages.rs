//! Outages of the server, and streams that lose unread messages.

use super::*;

/// Reads until batch `last`, and returns the number of skips. Between two skips no batch may be missing.
async fn read_until(subscription: &mut Subscription, last: u64) -> usize {
    let (mut expected, mut skipped) = (None, 0);
    loop {
        match next(subscription).await {
            Delivery::Skipped => (expected, skipped) = (None, skipped + 1),
            Delivery::Closed => panic!("the worker was not forgotten"),
            Delivery::Batch(found) => {
                let wanted = expected.unwrap_or(found.sequence);
                assert!(
                    found.sequence <= wanted,
                    "batch {} came instead of {wanted}",
                    found.sequence
                );
                assert_eq!(found, batch(found.sequence));
                expected = Some(wanted.max(found.sequence + 1));
                if found.sequence == last {
                    return skipped;
                }
            }
        }
    }
}

#[tokio::test]
async fn batches_published_before_the_server_started_arrive() {
    let mut server = NatsServer::prepare();
    let (at_worker, at_router) = (plane(&server).await, plane(&server).await);
    publish(&at_worker, "a", 0..1000);
    let mut subscription = at_router.subscribe(&worker("a"), Some((EPOCH, 0)));
    assert_eq!(at_router.status().borrow().state, PlaneState::Connecting);
    server.start();
    // The stream is younger than the subscription, so that an earlier stream may have been lost.
    assert_eq!(next(&mut subscription).await, Delivery::Skipped);
    assert_eq!(read_until(&mut subscription, 999).await, 0);
    becomes(&at_router, |state, _| *state == PlaneState::Up).await;
}

#[tokio::test]
async fn a_server_that_is_killed_under_load_loses_nothing() {
    let mut server = NatsServer::started();
    plane(&server).await.ready().await;
    let (at_worker, at_router) = (plane(&server).await, plane(&server).await);
    at_router.ready().await;
    let mut subscription = at_router.subscribe(&worker("a"), Some((EPOCH, 0)));
    let mut skips = 0;
    for round in 0..4 {
        let from = round * 300;
        publish(&at_worker, "a", from..from + 100);
        skips += read_until(&mut subscription, from + 50).await;
        publish(&at_worker, "a", from + 100..from + 200);
        server.kill();
        publish(&at_worker, "a", from + 200..from + 300);
        becomes(&at_worker, |state, _| *state == PlaneState::Down).await;
        server.start();
        skips += read_until(&mut subscription, from + 299).await;
    }
    assert_eq!(skips, 0, "a file survives `kill -9`");
}

#[tokio::test]
async fn a_server_that_hangs_for_a_while_loses_nothing() {
    let server = NatsServer::started();
    plane(&server).await.ready().await;
    let (at_worker, at_router) = (plane(&server).await, plane(&server).await);
    at_router.ready().await;
    let mut subscription = at_router.subscribe(&worker("a"), Some((EPOCH, 0)));
    publish(&at_worker, "a", 0..10);
    expect(&mut subscription, 0..10).await;
    server.suspend();
    publish(&at_worker, "a", 10..1000);
    becomes(&at_worker, |state, _| *state == PlaneState::Down).await;
    server.resume();
    assert_eq!(read_until(&mut subscription, 999).await, 0);
}

#[tokio::test]
async fn a_server_that_comes_back_empty_is_reported_to_all_subscriptions() {
    let mut server = NatsServer::started();
    plane(&server).await.ready().await;
    let (at_worker, at_router) = (plane(&server).await, plane(&server).await);
    at_router.ready().await;
    let mut a = at_router.subscribe(&worker("a"), Some((EPOCH, 0)));
    let mut silent = at_router.subscribe(&worker("silent"), Some((EPOCH, 0)));
    publish(&at_worker, "a", 0..10);
    expect(&mut a, 0..10).await;
    server.wipe();
    publish(&at_worker, "a", 10..20);
    server.start();
    assert_eq!(next(&mut silent).await, Delivery::Skipped);
    assert_eq!(read_until(&mut a, 19).await, 1);
}

#[tokio::test]
async fn an_overflowing_publish_queue_makes_a_gap_that_is_reported() {
    let mut server = NatsServer::started();
    plane(&server).await.ready().await;
    let at_router = plane(&server).await;
    at_router.ready().await;
    let config = NatsPlaneConfig {
        namespace: "own".into(),
        publish_queue: Retention {
            batches: 10,
            bytes: 1 << 20,
        },
        ..NatsPlaneConfig::default()
    };
    let at_worker = NatsPlane::start(connect(&server).await, config);
    becomes(&at_worker, |state, _| *state == PlaneState::Up).await;
    let mut subscription = at_router.subscribe(&worker("a"), Some((EPOCH, 0)));
    publish(&at_worker, "a", 0..1);
    expect(&mut subscription, 0..1).await;
    server.kill();
    becomes(&at_worker, |state, _| *state == PlaneState::Down).await;
    publish(&at_worker, "a", 1..100);
    server.start();
    assert_eq!(next(&mut subscription).await, Delivery::Skipped);
    expect(&mut subscription, 90..100).await;
}

/// A router whose runtime is paused between two calls of [`run`](Self::run).
struct StoppedRouter {
    runtime: tokio::runtime::Runtime,
    plane: Arc<NatsPlane>,
    a: Subscription,
    silent: Subscription,
}

impl StoppedRouter {
    /// A router that has read batch 0 of worker `a`.
    fn new(server: &NatsServer) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (plane, a, silent) = runtime.block_on(async {
            plane(server).await.ready().await;
            let plane = plane(server).await;
            plane.ready().await;
            let mut a = plane.subscribe(&worker("a"), Some((EPOCH, 0)));
            let silent = plane.subscribe(&worker("silent"), Some((EPOCH, 0)));
            publish(&plane, "a", 0..1);
            expect(&mut a, 0..1).await;
            (plane, a, silent)
        });
        Self {
            runtime,
            plane,
            a,
            silent,
        }
    }

    /// Both subscriptions report the loss, and continue.
    fn expect_loss(mut self) {
        self.runtime.block_on(async {
            assert_eq!(next(&mut self.silent).await, Delivery::Skipped);
            publish(&self.plane, "silent", 0..1);
            publish(&self.plane, "a", 1_000_000..1_000_001);
            assert!(read_until(&mut self.a, 1_000_000).await >= 1);
            expect(&mut self.silent, 0..1).await;
        });
    }
}

fn meanwhile<T>(what: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(what)
}

#[test]
fn a_purge_of_unread_messages_is_reported_to_all_subscriptions() {
    let server = NatsServer::started();
    let router = StoppedRouter::new(&server);
    meanwhile(async {
        let raw = Raw::connect(&server).await;
        // More messages than the router has requested.
        raw.publish("own", "a", 1..1000).await;
        raw.purge().await;
    });
    router.expect_loss();
}

#[test]
fn a_deleted_stream_is_created_again_and_reported_to_all_subscriptions() {
    let server = NatsServer::started();
    let router = StoppedRouter::new(&server);
    meanwhile(async { Raw::connect(&server).await.delete_stream().await });
    router.expect_loss();
}

#[test]
fn a_replaced_stream_is_reported_to_all_subscriptions() {
    let server = NatsServer::started();
    let router = StoppedRouter::new(&server);
    meanwhile(async {
        let raw = Raw::connect(&server).await;
        raw.delete_stream().await;
        plane(&server).await.ready().await;
        raw.publish("own", "a", 1..1000).await;
    });
    router.expect_loss();
}
