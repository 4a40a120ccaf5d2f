//! The plane against a real server.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use signalbox_nats::async_nats::jetstream::stream::{Config, StorageType};
use signalbox_protocol::{KvEvent, PlaneState, SequenceHash};
use signalbox_test_servers::NatsServer;

use super::{stream::STREAM, *};
use crate::plane::{Delivery, conformance};

mod outages;
mod permissions;
pub(super) mod support;
mod three_servers;
mod throughput;

use support::{EPOCH, Raw, batch, becomes, connect, expect, next, plane, publish, worker};

#[tokio::test]
async fn it_conforms_to_the_event_plane() {
    let server = NatsServer::started();
    // Creates the stream: with a stream younger than itself, a reader assumes a loss.
    plane(&server).await.ready().await;
    for max_batches_per_message in [1, 256] {
        let (retained, made) = (8, Cell::new(0));
        conformance::of(retained, async || {
            made.set(made.get() + 1);
            let config = NatsPlaneConfig {
                namespace: format!("case {}, by {max_batches_per_message}", made.get()),
                max_batches_per_message,
                retention: Retention {
                    batches: retained,
                    bytes: 1 << 20,
                },
                ..NatsPlaneConfig::default()
            };
            let plane = NatsPlane::start(connect(&server).await, config);
            plane.ready().await;
            plane
        })
        .await;
    }
}

#[tokio::test]
async fn events_cross_from_one_process_to_another() {
    let server = NatsServer::started();
    let (at_worker, at_router) = (plane(&server).await, plane(&server).await);
    at_router.ready().await;
    let mut subscription = at_router.subscribe(&worker("a"), None);
    publish(&at_worker, "a", 0..1000);
    expect(&mut subscription, 0..1000).await;
}

#[tokio::test]
async fn a_new_router_receives_the_events_since_its_first_snapshot() {
    let server = NatsServer::started();
    let at_worker = plane(&server).await;
    becomes(&at_worker, |state, _| *state == PlaneState::Up).await;
    publish(&at_worker, "a", 0..5);
    // The snapshot contains the first three batches. The subscription creates the consumer.
    let at_router = plane(&server).await;
    let mut subscription = at_router.subscribe(&worker("a"), Some((EPOCH, 3)));
    let mut wanted = 3;
    while wanted < 5 {
        match next(&mut subscription).await {
            Delivery::Batch(batch) if batch.sequence < wanted => {}
            other => {
                assert_eq!(other, Delivery::Batch(batch(wanted)));
                wanted += 1;
            }
        }
    }
}

#[tokio::test]
async fn an_existing_stream_gets_the_limits_and_keeps_its_other_settings() {
    let server = NatsServer::started();
    let raw = Raw::connect(&server).await;
    let existing = Config {
        name: STREAM.into(),
        description: Some("an operator's".into()),
        subjects: vec!["signalbox.>".into()],
        max_messages: 5,
        max_messages_per_subject: 1,
        storage: StorageType::File,
        ..Config::default()
    };
    raw.jetstream.create_stream(existing).await.unwrap();
    let plane = plane(&server).await;
    plane.ready().await;
    let found = raw
        .jetstream
        .get_stream(STREAM)
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    assert_eq!(found.description.as_deref(), Some("an operator's"));
    assert_eq!(found.subjects, ["signalbox.*.kv_events.*"]);
    assert_eq!(
        (found.max_messages, found.max_messages_per_subject),
        (1 << 20, -1)
    );
    assert_eq!(
        (found.max_bytes, found.max_age),
        (256 << 20, Duration::from_secs(600))
    );
    assert_eq!(found.max_message_size, 1 << 20);
}

#[tokio::test]
async fn a_stream_with_unchangeable_settings_is_reported() {
    let server = NatsServer::started();
    let config = NatsPlaneConfig {
        replicas: Replicas::raised_to(Some(3)),
        ..NatsPlaneConfig::default()
    };
    let plane = NatsPlane::start(connect(&server).await, config);
    let detail = becomes(&plane, |_, detail| detail.contains(STREAM)).await;
    assert!(detail.contains("replicas"), "{detail}");
    assert_eq!(plane.status().borrow().state, PlaneState::Connecting);
}

#[tokio::test]
async fn a_server_without_jetstream_is_reported() {
    let mut server = NatsServer::prepare().without_jetstream();
    server.start();
    let plane = plane(&server).await;
    publish(&plane, "a", 0..3);
    becomes(&plane, |state, detail| {
        *state == PlaneState::Connecting && detail.contains("start nats-server with --jetstream")
    })
    .await;
}

#[tokio::test]
async fn an_invalid_message_is_ignored_and_counts_as_a_loss_of_its_worker() {
    let server = NatsServer::started();
    let raw = Raw::connect(&server).await;
    plane(&server).await.ready().await;
    let plane = plane(&server).await;
    plane.ready().await;
    let mut a = plane.subscribe(&worker("a"), None);
    let mut b = plane.subscribe(&worker("b"), None);
    raw.send("signalbox.own.kv_events.a", bytes::Bytes::from_static(b"garbage"))
        .await;
    raw.send("signalbox.own.kv_events.no=worker", encode_batch(&batch(0)))
        .await;
    raw.send("signalbox.own.kv_events.b", bytes::Bytes::new()).await;
    raw.publish("own", "b", 7..8).await;
    assert_eq!(next(&mut b).await, Delivery::Skipped);
    expect(&mut b, 7..8).await;
    assert_eq!(next(&mut a).await, Delivery::Skipped);
}

#[tokio::test]
async fn a_batch_too_large_for_a_message_becomes_a_gap() {
    let server = NatsServer::started();
    plane(&server).await.ready().await;
    let plane = plane(&server).await;
    plane.ready().await;
    let mut subscription = plane.subscribe(&worker("a"), None);
    publish(&plane, "a", 0..1);
    let mut huge = batch(1);
    Arc::make_mut(&mut huge).events = vec![KvEvent::Removed {
        tier: signalbox_protocol::CacheTier::Device,
        blocks: vec![SequenceHash(0); 200_000],
    }];
    plane.publish(&worker("a"), huge);
    publish(&plane, "a", 2..3);
    expect(&mut subscription, 0..1).await;
    assert_eq!(next(&mut subscription).await, Delivery::Skipped);
    expect(&mut subscription, 2..3).await;
}
