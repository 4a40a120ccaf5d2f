use std::{net::SocketAddr, time::Instant};

use futures_util::FutureExt;
use signalbox_nats::NatsConfig;
use signalbox_test_servers::NatsServer;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::*;
use crate::{
    StoreChange,
    conformance::{self, conflict, entry, next, next_set, set},
};

async fn connect(server: &NatsServer) -> NatsConnection {
    let config = NatsConfig {
        url: server.url(),
        ..NatsConfig::default()
    };
    NatsConnection::start(&config, "test").await.unwrap()
}

async fn store(server: &NatsServer) -> Arc<NatsStore> {
    NatsStore::start(connect(server).await, "test", Replicas::default())
}

/// Sets an entry as soon as the store answers again.
async fn set_when_back(store: &NatsStore, key: &str, value: &str, expected: Revision) -> Revision {
    loop {
        match store.set(key, value.to_owned().into(), expected).await {
            Err(StoreError::Unavailable(_)) => {}
            outcome => return outcome.unwrap(),
        }
    }
}

#[tokio::test]
async fn it_conforms_to_the_store() {
    let server = NatsServer::started();
    let connection = connect(&server).await;
    let mut namespaces = 0;
    conformance::of(|| {
        namespaces += 1;
        NatsStore::start(
            connection.clone(),
            &format!("namespace {namespaces}"),
            Replicas::default(),
        )
    })
    .await;
}

#[tokio::test]
async fn of_two_racing_clients_one_changes_an_entry_and_both_receive_it() {
    let server = NatsServer::started();
    let (a, b) = (store(&server).await, store(&server).await);
    let (mut at_a, mut at_b) = (a.watch(), b.watch());
    let mut expected = Revision::ABSENT;
    for watch in [&mut at_a, &mut at_b] {
        assert_eq!(next(watch).await, StoreChange::Complete);
    }
    for round in 0..20 {
        let (by_a, by_b) = (format!("a{round}"), format!("b{round}"));
        let (first, second) = tokio::join!(
            a.set("k", by_a.clone().into(), expected),
            b.set("k", by_b.clone().into(), expected)
        );
        let (revision, value) = match (first, second) {
            (Ok(revision), lost) => {
                conflict(lost);
                (revision, by_a)
            }
            (lost, Ok(revision)) => {
                conflict(lost);
                (revision, by_b)
            }
            neither => panic!("{neither:?}"),
        };
        for watch in [&mut at_a, &mut at_b] {
            assert_eq!(next_set(watch).await, ("k".into(), entry(&value, revision)));
        }
        expected = revision;
    }
}

#[tokio::test]
async fn a_watch_continues_after_an_outage_of_the_server() {
    let mut server = NatsServer::started();
    let (a, b) = (store(&server).await, store(&server).await);
    let kept = set(&*a, "kept", "1", Revision::ABSENT).await;
    let removed = set(&*a, "removed", "1", Revision::ABSENT).await;
    let changed = set(&*a, "changed", "1", Revision::ABSENT).await;
    let mut watch = b.watch();
    for _ in 0..3 {
        next_set(&mut watch).await;
    }
    assert_eq!(next(&mut watch).await, StoreChange::Complete);
    server.kill();
    server.start();
    let changed = set_when_back(&a, "changed", "2", changed).await;
    assert_eq!(
        next_set(&mut watch).await,
        ("changed".into(), entry("2", changed))
    );
    a.remove("removed", removed).await.unwrap();
    assert_eq!(
        next(&mut watch).await,
        StoreChange::Removed {
            key: "removed".into()
        }
    );
    let kept = set(&*a, "kept", "2", kept).await;
    assert_eq!(next_set(&mut watch).await, ("kept".into(), entry("2", kept)));
}

/// Forwards the connections of one client to the server, and can be cut.
struct TcpForwarder {
    address: SocketAddr,
    server: String,
    tasks: JoinSet<()>,
}

impl TcpForwarder {
    async fn to(server: &NatsServer) -> Self {
        let mut forwarder = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            server: server.url().replace("nats://", ""),
            tasks: JoinSet::new(),
        };
        forwarder.join().await;
        forwarder
    }

    async fn join(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let server = self.server.clone();
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let mut server = TcpStream::connect(&server).await.unwrap();
                connections.spawn(async move { copy_bidirectional(&mut client, &mut server).await });
            }
        });
    }

    async fn cut(&mut self) {
        self.tasks.shutdown().await;
    }
}

#[tokio::test]
async fn a_reconnected_watch_delivers_the_changes_it_missed_and_nothing_else() {
    let server = NatsServer::started();
    let a = store(&server).await;
    set(&*a, "kept", "1", Revision::ABSENT).await;
    let removed = set(&*a, "removed", "1", Revision::ABSENT).await;
    let changed = set(&*a, "changed", "1", Revision::ABSENT).await;
    let mut forwarder = TcpForwarder::to(&server).await;
    let config = NatsConfig {
        url: format!("nats://{}", forwarder.address),
        ..NatsConfig::default()
    };
    let connection = NatsConnection::start(&config, "test").await.unwrap();
    let mut status = connection.status();
    let mut watch = NatsStore::start(connection, "test", Replicas::default()).watch();
    while next(&mut watch).await != StoreChange::Complete {}
    forwarder.cut().await;
    status
        .wait_for(|status| status.state == PlaneState::Down)
        .await
        .unwrap();
    a.remove("removed", removed).await.unwrap();
    let changed = set(&*a, "changed", "2", changed).await;
    let changed = set(&*a, "changed", "3", changed).await;
    let new = set(&*a, "new", "1", Revision::ABSENT).await;
    assert_eq!(watch.next().now_or_never(), None);
    forwarder.join().await;
    let removed = StoreChange::Removed {
        key: "removed".into(),
    };
    assert_eq!(next(&mut watch).await, removed);
    assert_eq!(
        next_set(&mut watch).await,
        ("changed".into(), entry("3", changed))
    );
    assert_eq!(next_set(&mut watch).await, ("new".into(), entry("1", new)));
    let last = set(&*a, "last", "1", Revision::ABSENT).await;
    assert_eq!(next_set(&mut watch).await, ("last".into(), entry("1", last)));
}

#[tokio::test]
async fn a_server_may_start_late() {
    let mut server = NatsServer::prepare();
    let store = store(&server).await;
    let mut watch = store.watch();
    let began = Instant::now();
    let refusal = store.set("a", "1".into(), Revision::ABSENT).await.unwrap_err();
    assert!(matches!(refusal, StoreError::Unavailable(_)), "{refusal}");
    println!(
        "without a server, an answer after {:?}: {refusal}",
        began.elapsed()
    );
    assert!(matches!(
        store.put_object("policy".into()).await,
        Err(StoreError::Unavailable(_))
    ));
    server.start();
    assert_eq!(next(&mut watch).await, StoreChange::Complete);
    let digest = store.put_object("policy".into()).await.unwrap();
    assert_eq!(store.get_object(&digest).await.unwrap(), "policy");
    let revision = set(&*store, "a", "1", Revision::ABSENT).await;
    assert_eq!(next_set(&mut watch).await, ("a".into(), entry("1", revision)));
}

#[tokio::test]
async fn after_the_server_lost_its_data_the_store_starts_empty() {
    let mut server = NatsServer::started();
    let store = store(&server).await;
    let digest = store.put_object("policy".into()).await.unwrap();
    set(&*store, "a", "old", Revision::ABSENT).await;
    let mut watch = store.watch();
    next_set(&mut watch).await;
    assert_eq!(next(&mut watch).await, StoreChange::Complete);
    server.wipe();
    server.start();
    // The new entry has the same revision as the one that was lost.
    let revision = set_when_back(&store, "a", "new", Revision::ABSENT).await;
    assert_eq!(next(&mut watch).await, StoreChange::Removed { key: "a".into() });
    assert_eq!(next_set(&mut watch).await, ("a".into(), entry("new", revision)));
    let missing = store.get_object(&digest).await.unwrap_err();
    assert!(matches!(missing, StoreError::Missing { .. }), "{missing}");
    assert_eq!(store.put_object("policy".into()).await.unwrap(), digest);
    assert_eq!(store.get_object(&digest).await.unwrap(), "policy");
}

#[tokio::test]
async fn operations_end_while_the_server_hangs() {
    let server = NatsServer::started();
    let store = store(&server).await;
    let first = set(&*store, "a", "1", Revision::ABSENT).await;
    let mut watch = store.watch();
    next_set(&mut watch).await;
    server.suspend();
    let refusal = store.get("a").await.unwrap_err();
    assert!(matches!(refusal, StoreError::Unavailable(_)), "{refusal}");
    server.resume();
    let second = set_when_back(&store, "a", "2", first).await;
    while next(&mut watch).await
        != (StoreChange::Set {
            key: "a".into(),
            entry: entry("2", second),
        })
    {}
}

#[tokio::test]
async fn namespaces_are_separate() {
    let server = NatsServer::started();
    let connection = connect(&server).await;
    let (a, b) = (
        NatsStore::start(connection.clone(), "a", Replicas::default()),
        NatsStore::start(connection, "a.b", Replicas::default()),
    );
    let digest = a.put_object("policy".into()).await.unwrap();
    set(&*a, "k", "of a", Revision::ABSENT).await;
    assert_eq!(b.get("k").await.unwrap(), None);
    assert!(matches!(
        b.get_object(&digest).await,
        Err(StoreError::Missing { .. })
    ));
    assert_eq!(next(&mut b.watch()).await, StoreChange::Complete);
    b.put_object("policy".into()).await.unwrap();
    b.remove_object(&digest).await.unwrap();
    assert_eq!(a.get_object(&digest).await.unwrap(), "policy");
}
