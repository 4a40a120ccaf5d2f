//! The store, or a part of it, is away; and the actor fails.

use std::{
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use bytes::Bytes;
use signalbox_policy_store::{StoreEntry, StoreFuture, StoreWatch, StoreWatchSource};

use super::*;

#[actix_rt::test]
async fn without_the_store_policies_keep_deciding_and_changes_are_refused() {
    let mut server = NatsServer::started();
    let (a, b) = (
        Router::start(connect(&server).await),
        Router::start(connect(&server).await),
    );
    a.upload("mine", component(1)).await.unwrap();
    let change = a.activate("mine").await.unwrap();
    b.reaches("mine@1.0.0", change.revision).await;
    server.kill();
    for outcome in [
        a.activate("kv-aware").await.map(drop),
        a.replicator.rollback(MODEL).await.map(drop),
        a.upload("mine", component(2)).await.map(drop),
    ] {
        let refused = matches!(outcome, Err(PolicyChangeError::Store(StoreError::Unavailable(_))));
        assert!(refused, "{outcome:?}");
    }
    assert_eq!(a.decides(), "mine@1.0.0");
    assert_eq!(
        (b.decides(), b.revision().await),
        ("mine@1.0.0".into(), change.revision)
    );
    let late = Router::start(connect(&server).await);
    server.start();
    late.reaches("mine@1.0.0", change.revision).await;
    // The upload that failed is known to this router only, until it succeeds.
    let second = format!("mine@1.0.0+{}", &a.registry().find("mine").unwrap().digest[..8]);
    assert!(conflict(a.activate("mine").await).contains("upload it again"));
    let uploaded = a
        .replicator
        .upload("mine".into(), component(2).into(), String::new())
        .await;
    assert!(!uploaded.unwrap().1, "this router had it already");
    let change = a.activate("mine").await.unwrap();
    for router in [&b, &late] {
        router.reaches(&second, change.revision).await;
    }
}

#[actix_rt::test]
async fn active_policies_outlast_a_loss_of_the_stores_data() {
    let mut server = NatsServer::started();
    let (a, b) = (
        Router::start(connect(&server).await),
        Router::start(connect(&server).await),
    );
    a.upload("mine", component(1)).await.unwrap();
    let change = a.activate("mine").await.unwrap();
    b.reaches("mine@1.0.0", change.revision).await;
    server.wipe();
    server.start();
    for router in [&a, &b] {
        eventually(0, async || router.revision().await).await;
        assert_eq!(router.decides(), "mine@1.0.0");
    }
    assert!(conflict(a.activate("mine").await).contains("upload it again"));
    let change = a.activate("kv-aware").await.unwrap();
    b.reaches("kv-aware@1.0.0", change.revision).await;
    a.upload("mine", component(1)).await.unwrap();
    let change = b.replicator.rollback(MODEL).await;
    let change = match change {
        Ok(change) => change,
        // The upload has not reached b yet.
        Err(_) => a.replicator.rollback(MODEL).await.unwrap(),
    };
    for router in [&a, &b] {
        router.reaches("mine@1.0.0", change.revision).await;
    }
}

/// A store with faults that a test switches on and off.
#[derive(Debug)]
struct FaultyStore {
    store: Arc<MemoryStore>,
    /// As on a slow replica, which receives entries before objects.
    objects_are_missing: AtomicBool,
    next_watch_panics: AtomicBool,
}

impl FaultyStore {
    fn new(store: Arc<MemoryStore>) -> Arc<Self> {
        Arc::new(Self {
            store,
            objects_are_missing: AtomicBool::new(false),
            next_watch_panics: AtomicBool::new(false),
        })
    }
}

/// A watch that panics instead of the first change.
#[derive(Debug)]
struct PanickingWatch;

impl StoreWatchSource for PanickingWatch {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = StoreChange> + Send + '_>> {
        panic!("the watch fails, as this test demands")
    }
}

impl SharedStore for FaultyStore {
    fn put_object(&self, bytes: Bytes) -> StoreFuture<'_, String> {
        self.store.put_object(bytes)
    }
    fn get_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, Bytes> {
        if !self.objects_are_missing.load(Relaxed) {
            return self.store.get_object(digest);
        }
        let digest = digest.to_owned();
        Box::pin(async { Err(StoreError::Missing { digest }) })
    }
    fn remove_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()> {
        self.store.remove_object(digest)
    }
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<StoreEntry>> {
        self.store.get(key)
    }
    fn set<'a>(&'a self, key: &'a str, value: Bytes, expected: Revision) -> StoreFuture<'a, Revision> {
        self.store.set(key, value, expected)
    }
    fn remove<'a>(&'a self, key: &'a str, expected: Revision) -> StoreFuture<'a, ()> {
        self.store.remove(key, expected)
    }
    fn watch(&self) -> StoreWatch {
        if self.next_watch_panics.swap(false, Relaxed) {
            return StoreWatch::new(PanickingWatch);
        }
        self.store.watch()
    }
}

#[actix_rt::test]
async fn an_entry_whose_object_is_missing_is_tried_again_and_holds_up_no_other() {
    let store = MemoryStore::new();
    let a = Router::start(store.clone());
    a.upload("mine", component(1)).await.unwrap();
    let mine = a.activate("mine").await.unwrap();
    let other = a
        .replicator
        .activate("other", "kv-aware", None, None)
        .await
        .unwrap();
    let faulty = FaultyStore::new(store);
    faulty.objects_are_missing.store(true, Relaxed);
    let b = Router::start(faulty.clone());
    let there = ("kv-aware@1.0.0".to_owned(), other.revision);
    let read = async || {
        let decides = b.registry().deciding("other").label.to_string();
        (decides, b.replicator.revision("other").await.unwrap())
    };
    eventually(there, read).await;
    assert_eq!(b.decides(), "round-robin@1.0.0");
    faulty.objects_are_missing.store(false, Relaxed);
    b.reaches("mine@1.0.0", mine.revision).await;
}

#[actix_rt::test]
async fn after_a_panic_the_actor_is_started_again_and_follows_the_store() {
    let store = MemoryStore::new();
    let a = Router::start(store.clone());
    let change = a.activate("kv-aware").await.unwrap();
    let faulty = FaultyStore::new(store);
    faulty.next_watch_panics.store(true, Relaxed);
    let b = Router::start(faulty);
    let following = async || b.replicator.revision(MODEL).await.ok();
    eventually(Some(change.revision), following).await;
    b.reaches("kv-aware@1.0.0", change.revision).await;
    let change = b.activate("round-robin").await.unwrap();
    a.reaches("round-robin@1.0.0", change.revision).await;
}

#[actix_rt::test]
async fn a_router_takes_no_traffic_before_it_has_the_stored_choice() {
    let mut server = NatsServer::started();
    let a = Router::start(connect(&server).await);
    a.upload("mine", component(1)).await.unwrap();
    a.activate("mine").await.unwrap();
    server.kill();
    let late = Router::start_with_patience(connect(&server).await, 2 * PATIENCE);
    assert!(!late.replicator.has_read_store());
    server.start();
    eventually(true, async || late.replicator.has_read_store()).await;
    assert_eq!(late.decides(), "mine@1.0.0");
}

#[actix_rt::test]
async fn a_store_that_stays_away_keeps_a_router_from_traffic_for_a_bounded_time() {
    let server = NatsServer::prepare();
    let router = Router::start_with_patience(connect(&server).await, Duration::from_secs(1));
    assert!(!router.replicator.has_read_store());
    eventually(true, async || router.replicator.has_read_store()).await;
}
