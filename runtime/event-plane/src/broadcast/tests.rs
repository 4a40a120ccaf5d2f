//! What every broadcast does, and what an outage does to the one over NATS.

use std::time::Duration;

use signalbox_nats::{NatsConfig, NatsConnection};
use signalbox_protocol::PlaneState;
use signalbox_test_servers::NatsServer;

use super::*;

/// Fails a test that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn within_a_process() {
    let broadcast = MemoryBroadcast::new();
    behaves(&*broadcast, &broadcast.as_ref().clone()).await;
    drop(broadcast.listen("one more"));
    assert_eq!(broadcast.topics(), 1, "topics without listeners are dropped");
}

#[tokio::test]
async fn over_nats() {
    let server = NatsServer::started();
    let (one, other) = (start(&server, "same").await, start(&server, "same").await);
    becomes(&one, PlaneState::Up).await;
    becomes(&other, PlaneState::Up).await;
    behaves(&*one, &*other).await;
    let other_namespace = start(&server, "other").await;
    let mut elsewhere = other_namespace.listen("topic");
    begin(&*other_namespace, "topic", &mut elsewhere).await;
    let mut here = other.listen("topic");
    begin(&*other, "topic", &mut here).await;
    other.send("topic", text("for here"));
    while received(&mut here).await != text("for here") {}
    other_namespace.send("topic", text("for elsewhere"));
    let mut last = text("");
    while last != text("for elsewhere") {
        last = received(&mut elsewhere).await;
        assert_ne!(last, text("for here"), "a message of another namespace");
    }
}

/// Checks a broadcast through two handles, as if they were two processes.
async fn behaves(one: &impl Broadcast, other: &impl Broadcast) {
    // Any text is a topic. No topic is a wildcard.
    let topics = [
        "llama",
        "meta/Llama 3.1",
        "meta/Llama 3",
        "*",
        ">",
        "a.b",
        "ü",
        "",
    ];
    let mut listeners: Vec<Listener> = topics.iter().map(|topic| one.listen(topic)).collect();
    for (topic, listener) in topics.iter().zip(&mut listeners) {
        one.send(topic, text(topic));
        assert_eq!(
            received(listener).await,
            text(topic),
            "its own messages arrive too"
        );
    }
    let mut others = other.listen("llama");
    begin(other, "llama", &mut others).await;
    for (topic, listener) in topics.iter().zip(&mut listeners) {
        other.send(topic, text("from the other"));
        while received(listener).await != text("from the other") {}
    }
    while received(&mut others).await != text("from the other") {}
    for listener in &mut listeners {
        assert!(listener.messages.try_recv().is_err(), "no message arrives twice");
    }

    // The listener that reads at once receives the messages that the slow one loses.
    let (mut slow, mut witness) = (one.listen("slow"), one.listen("slow"));
    let count = 2 * LISTENER_CAPACITY;
    for half in 0..2 {
        let range = half * LISTENER_CAPACITY..(half + 1) * LISTENER_CAPACITY;
        range
            .clone()
            .for_each(|number| one.send("slow", text(&number.to_string())));
        for number in range {
            assert_eq!(received(&mut witness).await, text(&number.to_string()));
        }
    }
    let first: usize = std::str::from_utf8(&received(&mut slow).await)
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(first, count - LISTENER_CAPACITY, "the oldest are lost");
    for number in first + 1..count {
        assert_eq!(received(&mut slow).await, text(&number.to_string()));
    }

    // Messages out of bounds are dropped and do no harm.
    let long = "x".repeat(MAX_TOPIC_LEN + 1);
    let mut never = one.listen(&long);
    one.send(&long, text("too long"));
    one.send("slow", Bytes::from(vec![0; MAX_MESSAGE_LEN + 1]));
    one.send("slow", text("last"));
    assert_eq!(received(&mut slow).await, text("last"));
    assert!(never.messages.try_recv().is_err());
}

#[tokio::test]
async fn listeners_outlast_an_outage_of_the_server() {
    let mut server = NatsServer::prepare();
    let (one, other) = (start(&server, "ns").await, start(&server, "ns").await);
    let (mut ones, mut others) = (one.listen("topic"), other.listen("topic"));
    for _ in 0..2 {
        one.send("topic", text("to nobody"));
        server.start();
        becomes(&one, PlaneState::Up).await;
        becomes(&other, PlaneState::Up).await;
        begin(&*other, "topic", &mut others).await;
        one.send("topic", text("back"));
        while received(&mut others).await != text("back") {}
        while received(&mut ones).await != text("back") {}
        server.kill();
        becomes(&one, PlaneState::Down).await;
        becomes(&other, PlaneState::Down).await;
    }
    assert!(
        others.messages.try_recv().is_err(),
        "messages sent during the outage are lost"
    );
}

#[tokio::test]
async fn a_topic_without_listeners_is_dropped_and_may_return() {
    let server = NatsServer::started();
    let broadcast = start(&server, "ns").await;
    for _ in 0..3 {
        let mut listener = broadcast.listen("topic");
        begin(&*broadcast, "topic", &mut listener).await;
        drop(listener);
        let gone = async {
            while broadcast.topics() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, gone)
            .await
            .expect("the topic is dropped");
    }
}

async fn start(server: &NatsServer, namespace: &str) -> std::sync::Arc<NatsBroadcast> {
    let config = NatsConfig {
        url: server.url(),
        ..NatsConfig::default()
    };
    let connection = NatsConnection::start(&config, "test").await.unwrap();
    NatsBroadcast::start(connection, namespace)
}

async fn becomes(broadcast: &NatsBroadcast, state: PlaneState) {
    let mut status = broadcast.connection.status();
    let found = status.wait_for(|status| status.state == state);
    tokio::time::timeout(PATIENCE, found).await.unwrap().unwrap();
}

/// Returns when messages of other handles arrive. Messages of this handle then arrive too.
async fn begin(broadcast: &impl Broadcast, topic: &str, listener: &mut Listener) {
    let hello = text("hello");
    let repeat = async {
        loop {
            broadcast.send(topic, hello.clone());
            // While the connection is being made, messages are dropped.
            if let Ok(message) = tokio::time::timeout(Duration::from_millis(100), listener.next()).await {
                assert_eq!(message, hello);
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, repeat)
        .await
        .expect("a message in time");
}

async fn received(listener: &mut Listener) -> Bytes {
    tokio::time::timeout(PATIENCE, listener.next())
        .await
        .expect("a message")
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}
