//! Shared by the tests of the plane over NATS.

use std::{ops::Range, sync::Arc, time::Duration};

use signalbox_nats::{
    NatsConfig, NatsConnection,
    async_nats::jetstream::{self, Context},
};
use signalbox_protocol::{KvEvent, KvEventBatch, PlaneState, SequenceHash, WorkerEpoch, WorkerId};
use signalbox_test_servers::NatsServer;

use crate::{
    Delivery, EventPlane, NatsPlane, NatsPlaneConfig, Subscription, encode_batch, nats::stream::STREAM,
};

/// Fails a test that hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const EPOCH: WorkerEpoch = WorkerEpoch(1000);

pub(crate) fn worker(name: &str) -> WorkerId {
    name.parse().unwrap()
}

/// A batch whose content names its sequence.
pub(crate) fn batch(sequence: u64) -> Arc<KvEventBatch> {
    let stored = KvEvent::Stored {
        tier: signalbox_protocol::CacheTier::Device,
        parent: None,
        blocks: vec![SequenceHash(sequence)],
    };
    Arc::new(KvEventBatch {
        epoch: EPOCH,
        sequence,
        events: vec![stored],
    })
}

pub(crate) async fn connect(server: &NatsServer) -> NatsConnection {
    let config = NatsConfig {
        url: server.url(),
        ..NatsConfig::default()
    };
    NatsConnection::start(&config, "test").await.unwrap()
}

/// A plane of the namespace `own` with its own connection, as in a separate process.
pub(crate) async fn plane(server: &NatsServer) -> Arc<NatsPlane> {
    let config = NatsPlaneConfig {
        namespace: "own".into(),
        ..NatsPlaneConfig::default()
    };
    NatsPlane::start(connect(server).await, config)
}

/// Waits until a plane has a wanted status, and returns its detail.
pub(crate) async fn becomes(plane: &NatsPlane, wanted: impl FnMut(&PlaneState, &str) -> bool) -> String {
    let (mut status, mut wanted) = (plane.status(), wanted);
    let found = status.wait_for(|status| wanted(&status.state, &status.detail));
    tokio::time::timeout(PATIENCE, found)
        .await
        .unwrap()
        .unwrap()
        .detail
        .clone()
}

pub(crate) fn publish(plane: &NatsPlane, name: &str, sequences: Range<u64>) {
    sequences.for_each(|sequence| plane.publish(&worker(name), batch(sequence)));
}

pub(crate) async fn next(subscription: &mut Subscription) -> Delivery {
    tokio::time::timeout(PATIENCE, subscription.next())
        .await
        .expect("a delivery")
}

pub(crate) async fn expect(subscription: &mut Subscription, sequences: Range<u64>) {
    for sequence in sequences {
        assert_eq!(next(subscription).await, Delivery::Batch(batch(sequence)));
    }
}

/// Another client of the server.
pub(crate) struct Raw {
    pub(crate) jetstream: Context,
}

impl Raw {
    pub(crate) async fn connect(server: &NatsServer) -> Self {
        let connection = connect(server).await;
        Self {
            jetstream: jetstream::new(connection.client().clone()),
        }
    }

    /// Publishes each batch as one message.
    pub(crate) async fn publish(&self, namespace: &str, name: &str, sequences: Range<u64>) {
        for sequence in sequences {
            let payload = encode_batch(&batch(sequence));
            self.send(&format!("signalbox.{namespace}.kv_events.{name}"), payload)
                .await;
        }
    }

    pub(crate) async fn send(&self, subject: &str, payload: bytes::Bytes) {
        let taken = self.jetstream.publish(subject.to_owned(), payload).await.unwrap();
        taken.await.unwrap();
    }

    pub(crate) async fn purge(&self) {
        self.jetstream
            .get_stream(STREAM)
            .await
            .unwrap()
            .purge()
            .await
            .unwrap();
    }

    pub(crate) async fn delete_stream(&self) {
        self.jetstream.delete_stream(STREAM).await.unwrap();
    }
}
