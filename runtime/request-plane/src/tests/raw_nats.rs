//! One side of a connection over NATS, with messages written by hand.

use signalbox_nats::{NatsConnection, async_nats};
use signalbox_test_servers::NatsServer;

use super::{network::*, *};

pub(super) const CONNECT: u8 = 1;
pub(super) const ACCEPT: u8 = 2;
pub(super) const DATA: u8 = 3;
pub(super) const CLOSE: u8 = 5;
pub(super) const RESET: u8 = 6;

/// A window that the tests do not fill.
pub(super) const WINDOW: [u8; 4] = [0, 0, 16, 0];

/// One side of a connection over NATS, written byte by byte, as another program implements it from the README.
pub(super) struct RawNats {
    pub(super) connection: NatsConnection,
    pub(super) incoming: async_nats::Subscriber,
    /// The subject that the other side reads.
    peer: String,
    /// The subject that this side reads.
    own: String,
    /// The connection's number.
    pub(super) id: u64,
    _server: Arc<NatsServer>,
}

impl RawNats {
    /// A worker that listens and has no connection yet, with a link to it.
    pub(super) async fn worker(config: LinkConfig) -> (Self, Link) {
        let server = shared_server();
        let namespace = fresh_namespace();
        let connection = connection(&server).await;
        let subject = format!("signalbox.{namespace}.requests.worker-0");
        let incoming = connection.client().subscribe(subject).await.unwrap();
        subscribed(&connection).await;
        let config = LinkConfig {
            nats: Some(transport(&server, &namespace).await),
            ..config
        };
        let raw = Self {
            own: connection.client().new_inbox(),
            connection,
            incoming,
            peer: String::new(),
            id: 0x0102_0304_0506_0708,
            _server: server,
        };
        (raw, Link::to("nats:worker-0", config))
    }

    /// Receives the next router's Connect.
    pub(super) async fn connect(&mut self) {
        let (kind, id, number, payload) = self.receive().await;
        assert_eq!((kind, id, number, payload.len()), (CONNECT, 0, 0, 4));
    }

    /// Accepts the next router and exchanges hellos.
    pub(super) async fn accept(&mut self) {
        self.connect().await;
        let incoming = self.connection.client().subscribe(self.own.clone()).await;
        self.incoming = incoming.unwrap();
        self.send(ACCEPT, 0, &WINDOW).await;
        let (kind, id, number, payload) = self.receive().await;
        assert_eq!((kind, id, number), (DATA, self.id, 1));
        assert_eq!(payload[4], 1, "a hello");
        self.send(DATA, 1, &hello_ack(1, 1 << 20)).await;
    }

    /// A router that has sent nothing yet to the worker of this network.
    pub(super) async fn towards(network: &Network) -> Self {
        let NatsNetwork { router, server, .. } = network.nats();
        let connection = connection(server).await;
        let own = connection.client().new_inbox();
        Self {
            incoming: connection.client().subscribe(own.clone()).await.unwrap(),
            connection,
            peer: router.subject(&"worker-0".parse().unwrap()),
            own,
            id: 0,
            _server: server.clone(),
        }
    }

    /// A router that is connected to this worker and has exchanged hellos.
    pub(super) async fn router(worker: &Worker) -> Self {
        let mut raw = Self::towards(&worker.network).await;
        raw.send(CONNECT, 0, &WINDOW).await;
        let (kind, id, number, _) = raw.receive().await;
        assert_eq!((kind, number), (ACCEPT, 0));
        raw.id = id;
        raw.send(DATA, 1, &hello(1, 1)).await;
        let (kind, id, number, payload) = raw.receive().await;
        assert_eq!((kind, id, number), (DATA, raw.id, 1));
        assert_eq!(payload[4], 2, "an answer to the hello");
        raw
    }

    pub(super) async fn send(&self, kind: u8, number: u64, payload: &[u8]) {
        self.send_version(1, kind, number, payload).await;
    }

    pub(super) async fn send_version(&self, version: u8, kind: u8, number: u64, payload: &[u8]) {
        let mut message = vec![version, kind];
        message.extend(self.id.to_le_bytes());
        message.extend(number.to_le_bytes());
        message.extend(payload);
        let client = self.connection.client();
        client
            .publish_with_reply(self.peer.clone(), self.own.clone(), message.into())
            .await
            .unwrap();
    }

    /// Kind, connection, number and payload of the next message. Its reply subject becomes the peer.
    pub(super) async fn receive(&mut self) -> (u8, u64, u64, Bytes) {
        let message = soon(self.incoming.next()).await.unwrap();
        self.peer = message
            .reply
            .expect("every message has a reply subject")
            .to_string();
        let mut payload = message.payload;
        assert_eq!(payload.get_u8(), 1, "the version");
        (
            payload.get_u8(),
            payload.get_u64_le(),
            payload.get_u64_le(),
            payload,
        )
    }

    /// The reason of the next message, which is a reset.
    pub(super) async fn reset(&mut self) -> String {
        let (kind, .., payload) = self.receive().await;
        assert_eq!(kind, RESET);
        String::from_utf8(payload.to_vec()).unwrap()
    }
}
