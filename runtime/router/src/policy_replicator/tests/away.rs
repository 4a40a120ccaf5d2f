//! The store, or a part of it, is away; and the actor fails.

use std::{
    pin::Pin,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
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
        a.back().await.map(drop),
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
    // The upload that failed is not known to this router either, until it succeeds.
    assert_eq!(a.registry().find("mine").unwrap().version, "1.0.0");
    let uploaded = a
        .replicator
        .upload("mine".into(), component(2).into(), String::new(), String::new())
        .await;
    let (record, is_new) = uploaded.unwrap();
    assert!(is_new);
    let second = format!("mine@1.0.0+{}", &record.digest[..8]);
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
    let change = b.back().await;
    let change = match change {
        Ok(change) => change,
        // The upload has not reached b yet.
        Err(_) => a.back().await.unwrap(),
    };
    for router in [&a, &b] {
        router.reaches("mine@1.0.0", change.revision).await;
    }
}

/// A store with faults that a test switches on and off.
struct FaultyStore {
    store: Arc<MemoryStore>,
    /// As on a slow replica, which receives entries before objects.
    objects_are_missing: AtomicBool,
    next_watch_panics: AtomicBool,
    /// No object and no entry fits.
    is_full: AtomicBool,
    /// What another router does right before an entry is set, and right before an object is removed.
    before_set: Mutex<Option<StoreFuture<'static, ()>>>,
    before_removal: Mutex<Option<StoreFuture<'static, ()>>>,
}

impl std::fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FaultyStore")
    }
}

impl FaultyStore {
    fn new(store: Arc<MemoryStore>) -> Arc<Self> {
        Arc::new(Self {
            store,
            objects_are_missing: AtomicBool::new(false),
            next_watch_panics: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            before_set: Mutex::default(),
            before_removal: Mutex::default(),
        })
    }

    fn check_room(&self) -> Result<(), StoreError> {
        match self.is_full.load(Relaxed) {
            true => Err(StoreError::Full("as this test demands".into())),
            false => Ok(()),
        }
    }
}

fn taken(future: &Mutex<Option<StoreFuture<'static, ()>>>) -> Option<StoreFuture<'static, ()>> {
    future.lock().unwrap().take()
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
        Box::pin(async {
            self.check_room()?;
            self.store.put_object(bytes).await
        })
    }
    fn get_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, Bytes> {
        if !self.objects_are_missing.load(Relaxed) {
            return self.store.get_object(digest);
        }
        let digest = digest.to_owned();
        Box::pin(async { Err(StoreError::Missing { digest }) })
    }
    fn remove_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            if let Some(other) = taken(&self.before_removal) {
                other.await?;
            }
            self.store.remove_object(digest).await
        })
    }
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<StoreEntry>> {
        self.store.get(key)
    }
    fn set<'a>(&'a self, key: &'a str, value: Bytes, expected: Revision) -> StoreFuture<'a, Revision> {
        Box::pin(async move {
            self.check_room()?;
            if let Some(other) = taken(&self.before_set) {
                other.await?;
            }
            self.store.set(key, value, expected).await
        })
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
        .activate(of("other", None), "kv-aware", None)
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

#[actix_rt::test]
async fn an_upload_that_does_not_fit_is_not_kept() {
    let store = FaultyStore::new(MemoryStore::new());
    let a = Router::start(store.clone());
    let before = a.registry().list();
    store.is_full.store(true, Relaxed);
    let refused = a.upload("mine", component(1)).await;
    assert!(
        matches!(refused, Err(PolicyChangeError::Store(StoreError::Full(_)))),
        "{refused:?}"
    );
    assert_eq!(a.registry().list(), before);
    store.is_full.store(false, Relaxed);
    a.upload("mine", component(1)).await.unwrap();
    // The entry alone does not fit.
    let full = store.clone();
    *store.before_set.lock().unwrap() = Some(Box::pin(async move {
        full.is_full.store(true, Relaxed);
        full.check_room()
    }));
    let before = a.registry().list();
    assert!(a.upload("yours", component(2)).await.is_err());
    assert_eq!(a.registry().list(), before);
}

#[actix_rt::test]
async fn an_object_that_another_router_removes_meanwhile_is_stored_again() {
    let store = FaultyStore::new(MemoryStore::new());
    let a = Router::start(store.clone());
    let digest = a.upload("mine", component(1)).await.unwrap().digest;
    let (other, removed) = (store.store.clone(), digest.clone());
    *store.before_set.lock().unwrap() = Some(Box::pin(async move { other.remove_object(&removed).await }));
    a.upload("mine", component(1)).await.unwrap();
    assert!(taken(&store.before_set).is_none(), "the other router did it");
    store.get_object(&digest).await.unwrap();
}

#[actix_rt::test]
async fn an_object_that_is_uploaded_again_during_its_removal_stays() {
    let store = FaultyStore::new(MemoryStore::new());
    let mut oldest = None;
    for number in 0..48 {
        let object = format!("component {number}").into();
        let digest = store.put_object(object).await.unwrap();
        let entry = UploadEntry {
            name: "old".into(),
            version: number.to_string(),
            digest,
            settings: Default::default(),
            uploaded_unix_ms: number,
            by: String::new(),
        };
        let key = entry.subject().key();
        store.set(&key, entry.to_value(), Revision::ABSENT).await.unwrap();
        oldest.get_or_insert(entry);
    }
    let oldest = oldest.unwrap();
    let last = Subject::active(MODEL).key();
    let last = store.set(&last, "{}".into(), Revision::ABSENT).await.unwrap();
    let a = Router::start(store.clone());
    eventually(last.0, async || a.revision().await).await;
    let (other, again) = (store.store.clone(), oldest.clone());
    *store.before_removal.lock().unwrap() = Some(Box::pin(async move {
        let key = again.subject().key();
        let set = other.set(&key, again.to_value(), Revision::ABSENT).await;
        set.map(drop)
    }));
    a.upload("mine", component(1)).await.unwrap();
    assert!(taken(&store.before_removal).is_none(), "the other router did it");
    store.get_object(&oldest.digest).await.unwrap();
}
