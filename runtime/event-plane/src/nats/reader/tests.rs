//! What the checks of a reader find, step by step.

use std::time::Duration;

use super::*;
use crate::{
    Delivery,
    nats::tests::support::{self, batch, next, worker},
};

/// A reader with a consumer. Only the task that keeps the stream runs by itself.
struct Fixture {
    raw: support::Raw,
    reader: Reader,
    session: ConsumerSession,
    silent: crate::Subscription,
    _keeper: tokio_util::task::AbortOnDropHandle<()>,
    _server: signalbox_test_servers::NatsServer,
}

async fn fixture() -> Fixture {
    let server = signalbox_test_servers::NatsServer::started();
    let (stream, keeper) = StreamHandle::start(
        support::connect(&server).await,
        signalbox_nats::Replicas::default(),
    );
    stream.usable().await;
    let received = MemoryPlane::clone(&MemoryPlane::new());
    let filter = "signalbox.own.kv_events.*".into();
    let mut reader = Reader::new(stream, filter, received.clone(), watch::Sender::new(false));
    let session = reader.start(datetime::now()).await.unwrap();
    let silent = received.subscribe(&worker("silent"), Some((support::EPOCH, 0)));
    Fixture {
        raw: support::Raw::connect(&server).await,
        reader,
        session,
        silent,
        _keeper: keeper,
        _server: server,
    }
}

impl Fixture {
    /// Whether a check of the stream reports a loss.
    async fn check_reports_loss(&mut self) -> bool {
        self.reader.check(&mut self.session).await.unwrap();
        let delivery = tokio::time::timeout(Duration::ZERO, self.silent.next()).await;
        assert!(matches!(delivery, Err(_) | Ok(Delivery::Skipped)));
        delivery.is_ok()
    }

    async fn receive(&mut self, count: usize) {
        let mut messages = self
            .session
            .consumer
            .fetch()
            .max_messages(count)
            .messages()
            .await
            .unwrap();
        while let Some(message) = messages.next().await {
            self.reader.receive(&mut self.session, &message.unwrap()).unwrap();
        }
    }
}

#[tokio::test]
async fn removing_read_messages_is_no_loss() {
    let mut at = fixture().await;
    at.raw.publish("own", "a", 0..3).await;
    at.receive(3).await;
    assert!(!at.check_reports_loss().await);
    at.raw.purge().await;
    assert!(!at.check_reports_loss().await);
}

#[tokio::test]
async fn removing_unread_messages_is_a_loss_even_without_later_events() {
    let mut at = fixture().await;
    at.raw.publish("own", "a", 0..3).await;
    at.receive(2).await;
    assert!(!at.check_reports_loss().await);
    at.raw.purge().await;
    assert!(at.check_reports_loss().await);
    assert!(!at.check_reports_loss().await, "a loss is reported once");
}

#[tokio::test]
async fn removing_messages_of_other_namespaces_is_no_loss() {
    let mut at = fixture().await;
    at.raw.publish("own", "a", 0..1).await;
    at.raw.publish("other", "a", 0..5).await;
    at.receive(1).await;
    assert!(!at.check_reports_loss().await);
    at.raw.purge().await;
    assert!(!at.check_reports_loss().await);
    // The reader continues after them.
    at.raw.publish("other", "a", 5..6).await;
    at.raw.publish("own", "a", 1..2).await;
    at.receive(1).await;
    assert!(!at.check_reports_loss().await);
    let mut late = at
        .reader
        .received
        .subscribe(&worker("a"), Some((support::EPOCH, 0)));
    for sequence in 0..2 {
        assert_eq!(next(&mut late).await, Delivery::Batch(batch(sequence)));
    }
}

#[tokio::test]
async fn a_gap_in_the_deliveries_ends_the_consumer() {
    let mut at = fixture().await;
    at.raw.publish("own", "a", 0..3).await;
    let mut messages = at
        .session
        .consumer
        .fetch()
        .max_messages(2)
        .messages()
        .await
        .unwrap();
    let (_lost, second) = (messages.next().await.unwrap(), messages.next().await.unwrap());
    at.reader.receive(&mut at.session, &second.unwrap()).unwrap_err();
    // The next consumer delivers everything again.
    at.session = at.reader.start(datetime::now()).await.unwrap();
    at.receive(3).await;
    assert!(!at.check_reports_loss().await);
}

#[tokio::test]
async fn a_recreated_stream_ends_the_consumer_and_the_next_one_reports_the_loss() {
    let mut at = fixture().await;
    at.raw.publish("own", "a", 0..3).await;
    at.receive(3).await;
    at.raw.delete_stream().await;
    at.reader.check(&mut at.session).await.unwrap_err();
    at.reader.stream.doubt();
    let session = async {
        loop {
            // The task that keeps the stream may not have created it yet.
            match at.reader.start(datetime::now()).await {
                Ok(session) => return session,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    at.session = tokio::time::timeout(support::PATIENCE, session).await.unwrap();
    assert_eq!(next(&mut at.silent).await, Delivery::Skipped);
    at.raw.publish("own", "a", 3..4).await;
    at.receive(1).await;
    assert!(!at.check_reports_loss().await);
}
