//! The store, or a part of it, is away.

use bytes::Bytes;
use signalbox_policy_store::{StoreEntry, StoreFuture, StoreWatch};

use super::*;

#[tokio::test]
async fn without_the_store_policies_decide_as_they_are_and_nothing_changes() {
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
        (b.decides(), b.replicator.revision(MODEL)),
        ("mine@1.0.0".into(), change.revision)
    );
    let late = Router::start(connect(&server).await);
    server.start();
    late.reaches("mine@1.0.0", change.revision).await;
    // What was uploaded meanwhile is here alone, until it is uploaded again.
    let second = format!("mine@1.0.0+{}", &a.registry().find("mine").unwrap().digest[..8]);
    assert!(conflict(a.activate("mine").await).contains("upload it again"));
    let uploaded = a
        .replicator
        .upload("mine".into(), component(2).into(), String::new())
        .await;
    assert!(!uploaded.unwrap().1, "it was known here");
    let change = a.activate("mine").await.unwrap();
    for router in [&b, &late] {
        router.reaches(&second, change.revision).await;
    }
}

#[tokio::test]
async fn after_the_store_lost_its_data_what_decides_goes_on() {
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
        let lost = || router.replicator.revision(MODEL) == 0;
        eventually(lost, || router.replicator.revision(MODEL).to_string()).await;
        assert_eq!(router.decides(), "mine@1.0.0");
    }
    assert!(conflict(a.activate("mine").await).contains("upload it again"));
    let change = a.activate("kv-aware").await.unwrap();
    b.reaches("kv-aware@1.0.0", change.revision).await;
    a.upload("mine", component(1)).await.unwrap();
    let change = b.replicator.rollback(MODEL).await;
    let change = match change {
        Ok(change) => change,
        // The upload has not reached it yet.
        Err(_) => a.replicator.rollback(MODEL).await.unwrap(),
    };
    for router in [&a, &b] {
        router.reaches("mine@1.0.0", change.revision).await;
    }
}

/// One store of which objects can be taken away, as a slow replica would have them later than entries.
#[derive(Debug)]
struct WithoutObjects(Arc<MemoryStore>, Mutex<bool>);

impl SharedStore for WithoutObjects {
    fn put_object(&self, bytes: Bytes) -> StoreFuture<'_, String> {
        self.0.put_object(bytes)
    }
    fn get_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, Bytes> {
        if *self.1.lock() {
            return self.0.get_object(digest);
        }
        let digest = digest.to_owned();
        Box::pin(async { Err(StoreError::Missing { digest }) })
    }
    fn remove_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()> {
        self.0.remove_object(digest)
    }
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<StoreEntry>> {
        self.0.get(key)
    }
    fn set<'a>(&'a self, key: &'a str, value: Bytes, expected: Revision) -> StoreFuture<'a, Revision> {
        self.0.set(key, value, expected)
    }
    fn remove<'a>(&'a self, key: &'a str, expected: Revision) -> StoreFuture<'a, ()> {
        self.0.remove(key, expected)
    }
    fn watch(&self) -> StoreWatch {
        self.0.watch()
    }
}

#[tokio::test]
async fn what_cannot_be_had_yet_is_tried_again_and_holds_nothing_up() {
    let store = MemoryStore::new();
    let a = Router::start(store.clone());
    a.upload("mine", component(1)).await.unwrap();
    let mine = a.activate("mine").await.unwrap();
    let other = a
        .replicator
        .activate("other", "kv-aware", None, None)
        .await
        .unwrap();
    let lacking = Arc::new(WithoutObjects(store, Mutex::new(false)));
    let b = Router::start(lacking.clone());
    eventually(
        || b.replicator.revision("other") == other.revision,
        || "nothing".into(),
    )
    .await;
    eventually(
        || &*b.registry().deciding("other").label == "kv-aware@1.0.0",
        || b.registry().deciding("other").label.to_string(),
    )
    .await;
    assert_eq!(b.decides(), "round-robin@1.0.0");
    *lacking.1.lock() = true;
    b.reaches("mine@1.0.0", mine.revision).await;
}
