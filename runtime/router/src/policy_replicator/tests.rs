//! Routers that share a store, each with a registry and a replicator of its own.

mod away;

use std::{fs, path::Path, sync::OnceLock, time::Duration};

use serde_json::json;
use signalbox_policy_store::{DirectoryStore, MemoryStore, NatsStore, StoreChange};
use signalbox_nats::{NatsConfig, NatsConnection};
use signalbox_policy_host::{
    Decision, PolicyEngine, PolicyLimits, PolicyRecord, builtin_policies, trial_requests,
};
use signalbox_test_servers::NatsServer;
use tempfile::TempDir;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{entries::UploadEntry, *};

const MODEL: &str = "org/model v1:8b";
/// Only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a router has of policies. Dropped, it stops, as a process does.
struct Router {
    replicator: PolicyReplicator,
    follower: JoinHandle<()>,
}

impl Router {
    fn start(store: Arc<dyn SharedStore>) -> Self {
        let replicator = PolicyReplicator::new(registry(), store);
        let follower = tokio::spawn(replicator.clone().follow());
        Self { replicator, follower }
    }

    fn registry(&self) -> &PolicyRegistry {
        self.replicator.registry()
    }

    fn decides(&self) -> String {
        self.registry().deciding(MODEL).label.to_string()
    }

    async fn upload(&self, name: &str, wasm: Vec<u8>) -> Result<PolicyRecord, PolicyChangeError> {
        let upload = self.replicator.upload(name.into(), wasm.into(), String::new());
        upload.await.map(|(record, _)| record)
    }

    async fn activate(&self, policy: &str) -> Result<PolicyChange, PolicyChangeError> {
        self.replicator.activate(MODEL, policy, None, None).await
    }

    /// Waits until a choice of this revision decides here.
    async fn reaches(&self, label: &str, revision: u64) {
        let there = || self.decides() == label && self.replicator.revision(MODEL) == revision;
        eventually(there, || {
            format!("{} at {}", self.decides(), self.replicator.revision(MODEL))
        })
        .await;
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// The registry tells nobody of a change: runners look at each decision.
async fn eventually(mut there: impl FnMut() -> bool, instead: impl Fn() -> String) {
    let wait = async {
        while !there() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(timeout(PATIENCE, wait).await.is_ok(), "still {}", instead());
}

/// Of the process's one engine.
fn registry() -> PolicyRegistry {
    static ENGINE: OnceLock<PolicyEngine> = OnceLock::new();
    let engine = ENGINE.get_or_init(|| PolicyEngine::new(PolicyLimits::default()).unwrap());
    PolicyRegistry::new(engine.clone(), "round-robin").unwrap()
}

/// The bytes of `kv-aware`, and as many others that decide the same as there are salts: a custom section has no
/// meaning.
fn component(salt: u8) -> Vec<u8> {
    let (_, wasm) = builtin_policies()[1];
    [wasm, &[0, 3, 1, b's', salt]].concat()
}

fn guest(name: &str) -> Vec<u8> {
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration-tests/guests");
    fs::read(guests.join(name).with_extension("wasm")).unwrap()
}

#[track_caller]
fn conflict<T: std::fmt::Debug>(outcome: Result<T, PolicyChangeError>) -> String {
    match outcome {
        Err(
            error
            @ (PolicyChangeError::Conflict(_) | PolicyChangeError::Registry(RegistryError::Conflict(_))),
        ) => error.to_string(),
        other => panic!("{other:?} instead of a conflict"),
    }
}

/// What holds for routers on any store; `store` gives each router its way to the same one.
async fn routers_agree(store: impl AsyncFn() -> Arc<dyn SharedStore>) {
    let (a, b) = (Router::start(store().await), Router::start(store().await));
    what_is_activated_at_one_decides_at_the_other(&a, &b).await;
    one_who_looked_at_something_else_is_told(&a, &b).await;
    a_rollback_goes_back_everywhere(&a, &b).await;
    of_two_who_race_one_wins_everywhere(&a, &b).await;
    one_who_comes_late_catches_up(&a, &Router::start(store().await)).await;
    drop(b);
    let change = a.activate("mine").await.unwrap();
    let again = Router::start(store().await);
    again.reaches(&change.active.label, change.revision).await;
}

async fn what_is_activated_at_one_decides_at_the_other(a: &Router, b: &Router) {
    assert_eq!(
        (a.decides().as_str(), a.replicator.revision(MODEL)),
        ("round-robin@1.0.0", 0)
    );
    let record = a.upload("mine", component(1)).await.unwrap();
    assert_eq!(record.version, "1.0.0");
    let settings = json!({"overlap_credit": 2});
    let change = a
        .replicator
        .activate(MODEL, "mine", settings.as_object().cloned(), None)
        .await
        .unwrap();
    assert_eq!(&*change.before.label, "round-robin@1.0.0");
    assert_eq!(&*change.active.label, "mine@1.0.0");
    assert_eq!(
        (a.decides(), a.replicator.revision(MODEL)),
        ("mine@1.0.0".into(), change.revision)
    );
    let began = Instant::now();
    b.reaches("mine@1.0.0", change.revision).await;
    println!(
        "the first activation of an upload took {:?} to the other router",
        began.elapsed()
    );
    let at_b = b.registry().deciding(MODEL);
    assert_eq!(at_b.component.digest(), record.digest);
    assert_eq!(at_b.component.settings_json(), settings);
    assert_eq!(
        b.registry().by_digest("mine", &record.digest).unwrap().settings,
        json!({})
    );
}

async fn one_who_looked_at_something_else_is_told(a: &Router, b: &Router) {
    let looked_at = b.replicator.revision(MODEL);
    let began = Instant::now();
    let change = a.activate("kv-aware").await.unwrap();
    b.reaches("kv-aware@1.0.0", change.revision).await;
    println!(
        "the activation of a built-in policy took {:?}, there and to the other router",
        began.elapsed()
    );
    let stale = b.replicator.activate(MODEL, "mine", None, Some(looked_at)).await;
    let message = conflict(stale);
    let revision = change.revision.to_string();
    assert!(
        message.contains("kv-aware@1.0.0") && message.contains(&revision),
        "{message}"
    );
    assert!(conflict(b.replicator.activate(MODEL, "mine", None, Some(0)).await).contains(&revision));
    let other = b.replicator.activate("other", "mine", None, Some(7)).await;
    assert!(conflict(other).contains("revision 0"));
    assert_eq!(b.decides(), "kv-aware@1.0.0");
    let change = b
        .replicator
        .activate(MODEL, "mine", None, Some(change.revision))
        .await
        .unwrap();
    a.reaches("mine@1.0.0", change.revision).await;
}

async fn a_rollback_goes_back_everywhere(a: &Router, b: &Router) {
    let back = b.replicator.rollback(MODEL).await.unwrap();
    assert_eq!(&*back.active.label, "kv-aware@1.0.0");
    a.reaches("kv-aware@1.0.0", back.revision).await;
    let back = a.replicator.rollback(MODEL).await.unwrap();
    assert_eq!(&*back.active.label, "mine@1.0.0");
    assert_eq!(
        back.active.component.settings_json(),
        json!({"overlap_credit": 2})
    );
    b.reaches("mine@1.0.0", back.revision).await;
    let back = b.replicator.rollback(MODEL).await.unwrap();
    a.reaches("round-robin@1.0.0", back.revision).await;
    assert!(conflict(a.replicator.rollback(MODEL).await).contains(MODEL));
    assert!(conflict(a.replicator.rollback("never chosen").await).contains("never chosen"));
}

async fn of_two_who_race_one_wins_everywhere(a: &Router, b: &Router) {
    for _ in 0..10 {
        let (by_a, by_b) = tokio::join!(a.activate("replica-synced"), b.activate("kv-aware"));
        let change = match (by_a, by_b) {
            (Ok(change), lost) | (lost, Ok(change)) => {
                conflict(lost);
                change
            }
            neither => panic!("{neither:?}"),
        };
        a.reaches(&change.active.label, change.revision).await;
        b.reaches(&change.active.label, change.revision).await;
    }
}

async fn one_who_comes_late_catches_up(a: &Router, late: &Router) {
    let second = a.upload("mine", component(2)).await.unwrap();
    assert_eq!(second.version, format!("1.0.0+{}", &second.digest[..8]));
    let change = a.activate("mine").await.unwrap();
    late.reaches(&format!("mine@{}", second.version), change.revision)
        .await;
    let labels = |router: &Router| -> Vec<_> {
        let records = router.registry().list();
        records
            .into_iter()
            .map(|it| (it.name, it.version, it.digest))
            .collect()
    };
    assert_eq!(labels(late), labels(a));
    let change = a.activate("mine@1.0.0").await.unwrap();
    late.reaches("mine@1.0.0", change.revision).await;
}

#[tokio::test]
async fn routers_agree_in_one_process() {
    let store = MemoryStore::new();
    routers_agree(async || store.clone() as Arc<dyn SharedStore>).await;
}

async fn connect(server: &NatsServer) -> Arc<dyn SharedStore> {
    let config = NatsConfig {
        url: server.url(),
        ..NatsConfig::default()
    };
    let connection = NatsConnection::start(&config, "test").await.unwrap();
    NatsStore::start(connection, "test")
}

#[tokio::test]
async fn routers_agree_over_nats() {
    let server = NatsServer::started();
    routers_agree(async || connect(&server).await).await;
}

#[tokio::test]
async fn a_folder_keeps_what_was_chosen_over_a_restart() {
    let folder = TempDir::new().unwrap();
    let open = || DirectoryStore::open(folder.path()).unwrap();
    let router = Router::start(open());
    router.upload("mine", component(1)).await.unwrap();
    let change = router.activate("mine").await.unwrap();
    let replicator = Arc::downgrade(&router.replicator.0);
    drop(router);
    // The folder is free once nothing of the router is left.
    eventually(|| replicator.strong_count() == 0, || "running".into()).await;
    let router = Router::start(open());
    router.reaches("mine@1.0.0", change.revision).await;
    let back = router.replicator.rollback(MODEL).await.unwrap();
    assert_eq!(&*back.active.label, "round-robin@1.0.0");
}

#[tokio::test]
async fn entries_of_others_that_mean_nothing_here_change_nothing() {
    let store = MemoryStore::new();
    let a = Router::start(store.clone());
    let key = Subject::Active { model: MODEL.into() }.key();
    let first = store.set(&key, "no JSON".into(), Revision::ABSENT).await.unwrap();
    store
        .set("shadow/m", "{}".into(), Revision::ABSENT)
        .await
        .unwrap();
    eventually(|| a.replicator.revision(MODEL) == first.0, || a.decides()).await;
    assert_eq!(a.decides(), "round-robin@1.0.0");
    assert!(conflict(a.replicator.activate(MODEL, "kv-aware", None, Some(0)).await).contains("unreadable"));
    // A built-in policy of another release: it is named by its digest, not by its name.
    let digest = "0".repeat(64);
    let foreign = json!({"policy": "kv-aware", "version": "9.0.0", "digest": digest, "settings": {}});
    let second = store.set(&key, foreign.to_string().into(), first).await.unwrap();
    eventually(|| a.replicator.revision(MODEL) == second.0, || a.decides()).await;
    // It can be replaced by one that is understood.
    let change = a.activate("kv-aware").await.unwrap();
    assert_eq!(
        (&*change.before.label, &*change.active.label),
        ("round-robin@1.0.0", "kv-aware@1.0.0")
    );
}

#[tokio::test]
async fn a_quarantine_is_each_routers_own_and_a_rollback_passes_it_by() {
    let store = MemoryStore::new();
    let (a, b) = (Router::start(store.clone()), Router::start(store));
    a.activate("kv-aware").await.unwrap();
    a.upload("trap", guest("trap")).await.unwrap();
    let trap = a.activate("trap").await.unwrap();
    b.reaches("trap@1.0.0", trap.revision).await;
    let mut runner = a.registry().runner(MODEL);
    for (mut request, candidates) in trial_requests(&[8], 3) {
        // No trial any more.
        request.decision_number = 0;
        runner.decide(&request, |_| &candidates, &mut Decision::default());
    }
    assert_eq!(a.decides(), "kv-aware@1.0.0");
    assert_eq!(
        (b.decides(), b.replicator.revision(MODEL)),
        ("trap@1.0.0".into(), trap.revision)
    );
    assert!(conflict(a.activate("trap").await).contains("quarantine"));
    let change = a.activate("round-robin").await.unwrap();
    b.reaches("round-robin@1.0.0", change.revision).await;
    let back = a.replicator.rollback(MODEL).await.unwrap();
    assert_eq!(&*back.active.label, "kv-aware@1.0.0");
    b.reaches("kv-aware@1.0.0", back.revision).await;
}

#[tokio::test]
async fn what_is_refused_reaches_no_other_router() {
    let store = MemoryStore::new();
    let a = Router::start(store.clone());
    let broken = a.upload("mine", b"no component".to_vec()).await;
    assert!(
        matches!(
            broken,
            Err(PolicyChangeError::Registry(RegistryError::Admission(_)))
        ),
        "{broken:?}"
    );
    let settings = json!({"nonsense": 1});
    let refused = a
        .replicator
        .activate(MODEL, "kv-aware", settings.as_object().cloned(), None)
        .await;
    assert!(
        matches!(
            refused,
            Err(PolicyChangeError::Registry(RegistryError::Admission(_)))
        ),
        "{refused:?}"
    );
    let unknown = a.activate("nobody").await;
    assert!(
        matches!(
            unknown,
            Err(PolicyChangeError::Registry(RegistryError::Unknown { .. }))
        ),
        "{unknown:?}"
    );
    let mut watch = store.watch();
    assert_eq!(watch.next().await, StoreChange::Complete);
}

#[tokio::test]
async fn old_uploads_nobody_needs_make_room_for_new_ones() {
    let store = MemoryStore::new();
    let mut old = Vec::new();
    for number in 0..50 {
        let digest = store
            .put_object(format!("component {number}").into())
            .await
            .unwrap();
        let entry = UploadEntry {
            name: "old".into(),
            version: number.to_string(),
            digest: digest.clone(),
            settings: Default::default(),
            uploaded_unix_ms: number,
        };
        let subject = Subject::Upload {
            name: "old".into(),
            digest: digest.clone(),
        };
        let revision = store
            .set(&subject.key(), entry.to_value(), Revision::ABSENT)
            .await
            .unwrap();
        old.push((subject.key(), digest, revision));
    }
    let a = Router::start(store.clone());
    let (last, _, revision) = &old[49];
    let seen = || a.replicator.0.store_view.lock().uploads.revision(last) == *revision;
    eventually(seen, || "unseen".into()).await;
    a.upload("mine", component(1)).await.unwrap();
    for (number, (key, digest, _)) in old.iter().enumerate() {
        let kept = (
            store.get(key).await.unwrap().is_some(),
            store.get_object(digest).await.is_ok(),
        );
        assert_eq!(
            kept,
            (number >= 3, number >= 3),
            "upload {number} of 51 with room for 48"
        );
    }
}
