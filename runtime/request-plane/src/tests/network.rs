//! The network of a test: TCP on loopback, or a NATS server.

use std::sync::{
    Weak,
    atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;
use signalbox_nats::{NatsConfig, NatsConnection};
use signalbox_protocol::PlaneState;
use signalbox_test_servers::NatsServer;

use super::*;

/// The transport of a test.
#[derive(Debug, Clone, Copy)]
pub(super) enum Over {
    Tcp,
    Nats,
}

/// Makes two tests of each of these functions, which take an [`Over`]: one over TCP and one over NATS.
macro_rules! over_tcp_and_nats {
    ($($test:ident),+ $(,)?) => {
        mod tcp {
            $(#[actix_rt::test]
            async fn $test() {
                super::$test(crate::tests::Over::Tcp).await;
            })+
        }
        mod nats {
            $(#[actix_rt::test]
            async fn $test() {
                super::$test(crate::tests::Over::Nats).await;
            })+
        }
    };
}
pub(super) use over_tcp_and_nats;

/// A network with one worker and any number of routers.
pub(super) enum Network {
    Tcp,
    Nats(Box<NatsNetwork>),
}

/// A namespace of the shared server.
pub(super) struct NatsNetwork {
    /// Worker and router have separate connections, as separate processes have.
    pub(super) worker: NatsTransport,
    pub(super) router: NatsTransport,
    pub(super) server: Arc<NatsServer>,
}

impl Network {
    pub(super) async fn of(over: Over) -> Self {
        match over {
            Over::Tcp => Self::Tcp,
            Over::Nats => {
                let server = shared_server();
                let namespace = fresh_namespace();
                Self::Nats(Box::new(NatsNetwork {
                    worker: transport(&server, &namespace).await,
                    router: transport(&server, &namespace).await,
                    server,
                }))
            }
        }
    }

    pub(super) fn nats(&self) -> &NatsNetwork {
        match self {
            Self::Nats(nats) => nats,
            Self::Tcp => panic!("this is a network without NATS"),
        }
    }

    /// A server of `worker-0`, which can be dialled from now on.
    pub(super) async fn listen(&self, config: ServerConfig) -> Server {
        match self {
            Self::Tcp => Server::bind("127.0.0.1:0".parse().unwrap(), config)
                .await
                .unwrap(),
            Self::Nats(nats) => listen_on_nats(&nats.worker, config).await,
        }
    }

    /// The same again, after the one before has left.
    pub(super) async fn listen_again(&self, address: &str) -> Server {
        let config = ServerConfig::default();
        match self {
            Self::Tcp => Server::bind(address.parse().unwrap(), config).await.unwrap(),
            Self::Nats(nats) => listen_on_nats(&nats.worker, config).await,
        }
    }

    pub(super) fn link(&self, address: &str, mut config: LinkConfig) -> Link {
        if let Self::Nats(nats) = self {
            config.nats = Some(nats.router.clone());
        }
        Link::to(address, config)
    }
}

/// One server for all tests that run at the same time. It stops with the last of them.
pub(super) fn shared_server() -> Arc<NatsServer> {
    static SHARED: Mutex<Weak<NatsServer>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock();
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(NatsServer::started());
        *shared = Arc::downgrade(&server);
        server
    })
}

/// A namespace of its own for each test, so that tests that share a server do not affect each other.
pub(super) fn fresh_namespace() -> String {
    static LAST: AtomicU64 = AtomicU64::new(0);
    format!("test-{}", LAST.fetch_add(1, Ordering::Relaxed))
}

pub(super) async fn transport(server: &NatsServer, namespace: &str) -> NatsTransport {
    NatsTransport::new(connection(server).await, namespace).unwrap()
}

/// A connection that is up.
pub(super) async fn connection(server: &NatsServer) -> NatsConnection {
    let connection = connecting(server).await;
    let mut status = connection.status();
    let up = status.wait_for(|status| status.state == PlaneState::Up);
    soon(up).await.unwrap();
    connection
}

/// A connection to a server that need not run yet.
pub(super) async fn connecting(server: &NatsServer) -> NatsConnection {
    let config = NatsConfig {
        url: server.url(),
        ..NatsConfig::default()
    };
    NatsConnection::start(&config, "test").await.unwrap()
}

pub(super) async fn listen_on_nats(transport: &NatsTransport, config: ServerConfig) -> Server {
    let server = Server::on_nats(transport.clone(), "worker-0".parse().unwrap(), config)
        .await
        .unwrap();
    subscribed(transport.connection()).await;
    server
}

/// Returns once the server has registered all earlier subscriptions of this connection.
pub(super) async fn subscribed(connection: &NatsConnection) {
    let client = connection.client();
    let inbox = client.new_inbox();
    let mut echo = client.subscribe(inbox.clone()).await.unwrap();
    client.publish(inbox, Bytes::new()).await.unwrap();
    soon(echo.next()).await.unwrap();
}
