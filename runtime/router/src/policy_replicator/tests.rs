//! Routers that share a store, each with a registry and a replicator of its own.

mod away;

use std::{
    fs,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde_json::json;
use signalbox_nats::{NatsConfig, NatsConnection, Replicas};
use signalbox_policy_host::{
    Decision, PolicyEngine, PolicyLimits, PolicyRegistry, RegistryError, builtin_policies, trial_requests,
};
use signalbox_policy_store::{DirectoryStore, MemoryStore, NatsStore, SharedStore, StoreError};
use signalbox_test_servers::NatsServer;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::{entries::UploadEntry, *};

const MODEL: &str = "org/model v1:8b";
/// Fails a test that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The policies of a router, on an arbiter of their own. It stops when dropped, as a process does.
struct Router {
    replicator: PolicyReplicatorHandle,
    audit: AuditLog,
    arbiter: Arbiter,
}

impl Router {
    fn start(store: Arc<dyn SharedStore>) -> Self {
        Self::start_with_patience(store, PATIENCE)
    }

    /// Takes traffic without the store after `patience`.
    fn start_with_patience(store: Arc<dyn SharedStore>, patience: Duration) -> Self {
        let (arbiter, audit) = (Arbiter::new(), AuditLog::of_router("r".into()));
        let replicator = PolicyReplicatorHandle::start_with_patience(
            registry(),
            store,
            audit.clone(),
            &arbiter.handle(),
            patience,
        );
        Self {
            replicator,
            audit,
            arbiter,
        }
    }

    fn registry(&self) -> &PolicyRegistry {
        self.replicator.registry()
    }

    fn decides(&self) -> String {
        self.registry().deciding(MODEL).label.to_string()
    }

    async fn upload(&self, name: &str, wasm: Vec<u8>) -> Result<PolicyRecord, PolicyChangeError> {
        let upload = self
            .replicator
            .upload(name.into(), wasm.into(), String::new(), "alice".into());
        upload.await.map(|(record, _)| record)
    }

    async fn activate(&self, policy: &str) -> Result<PolicyChange, PolicyChangeError> {
        self.replicator.activate(of(MODEL, None), policy, None).await
    }

    /// Activates a policy, provided that the present choice has this revision.
    async fn replace(&self, policy: &str, present: u64) -> Result<PolicyChange, PolicyChangeError> {
        self.replicator
            .activate(of(MODEL, Some(present)), policy, None)
            .await
    }

    /// Returns to the policy before the present one.
    async fn back(&self) -> Result<PolicyChange, PolicyChangeError> {
        self.replicator.rollback(of(MODEL, None), None).await
    }

    async fn revision(&self) -> u64 {
        self.replicator.revision(MODEL).await.unwrap()
    }

    /// Waits until a choice of this revision decides here.
    async fn reaches(&self, label: &str, revision: u64) {
        let wanted = (label.to_owned(), revision);
        eventually(wanted, async || (self.decides(), self.revision().await)).await;
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.arbiter.stop();
    }
}

/// Alice's request to change the policy of a model, if it has this revision.
fn of(model: &str, expected: Option<u64>) -> ChangeRequest {
    ChangeRequest {
        model: model.into(),
        expected,
        by: "alice".into(),
    }
}

/// Waits until `read` returns `wanted`. It polls, because the registry announces no changes.
async fn eventually<T: PartialEq + std::fmt::Debug>(wanted: T, read: impl AsyncFn() -> T) {
    let wait = async {
        while read().await != wanted {
            sleep(Duration::from_millis(1)).await;
        }
    };
    if timeout(PATIENCE, wait).await.is_err() {
        panic!("{:?} instead of {wanted:?}", read().await);
    }
}

/// A registry on the process's one engine.
fn registry() -> PolicyRegistry {
    static ENGINE: OnceLock<PolicyEngine> = OnceLock::new();
    let engine = ENGINE.get_or_init(|| PolicyEngine::new(PolicyLimits::default()).unwrap());
    PolicyRegistry::new(engine.clone(), "round-robin").unwrap()
}

/// The bytes of `kv-aware` with a custom section, which changes its digest and not its decisions.
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
            error @ (PolicyChangeError::Conflict(_)
            | PolicyChangeError::Changed(_)
            | PolicyChangeError::Registry(RegistryError::Conflict(_))),
        ) => error.to_string(),
        other => panic!("{other:?} instead of a conflict"),
    }
}

/// What holds for routers that share a store of any kind. `store` opens the same store for each router.
async fn routers_agree(store: impl AsyncFn() -> Arc<dyn SharedStore>) {
    let (a, b) = (Router::start(store().await), Router::start(store().await));
    what_is_activated_at_one_decides_at_the_other(&a, &b).await;
    an_activation_that_expects_another_revision_is_refused(&a, &b).await;
    a_rollback_goes_back_everywhere(&a, &b).await;
    of_two_racing_activations_one_wins_everywhere(&a, &b).await;
    of_two_racing_activations_at_one_router_one_wins(&a).await;
    a_router_that_starts_late_catches_up(&a, &Router::start(store().await)).await;
    drop(b);
    let change = a.activate("mine").await.unwrap();
    let again = Router::start(store().await);
    again.reaches(&change.active.label, change.revision).await;
}

async fn what_is_activated_at_one_decides_at_the_other(a: &Router, b: &Router) {
    assert_eq!(
        (a.decides().as_str(), a.revision().await),
        ("round-robin@1.0.0", 0)
    );
    let record = a.upload("mine", component(1)).await.unwrap();
    assert_eq!(record.version, "1.0.0");
    let settings = json!({"pressure_ms": 2});
    let change = a
        .replicator
        .activate(of(MODEL, None), "mine", settings.as_object().cloned())
        .await
        .unwrap();
    assert_eq!(&*change.before.label, "round-robin@1.0.0");
    assert_eq!(&*change.active.label, "mine@1.0.0");
    assert_eq!(
        (a.decides(), a.revision().await),
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

async fn an_activation_that_expects_another_revision_is_refused(a: &Router, b: &Router) {
    let outdated = b.revision().await;
    let began = Instant::now();
    let change = a.activate("kv-aware").await.unwrap();
    b.reaches("kv-aware@1.0.0", change.revision).await;
    println!(
        "the activation of a built-in policy took {:?}, there and to the other router",
        began.elapsed()
    );
    let stale = b
        .replicator
        .activate(of(MODEL, Some(outdated)), "mine", None)
        .await;
    let message = conflict(stale);
    let revision = change.revision.to_string();
    assert!(
        message.contains("kv-aware@1.0.0") && message.contains(&revision),
        "{message}"
    );
    assert!(conflict(b.replicator.activate(of(MODEL, Some(0)), "mine", None).await).contains(&revision));
    let other = b.replicator.activate(of("other", Some(7)), "mine", None).await;
    assert!(conflict(other).contains("revision 0"));
    assert_eq!(b.decides(), "kv-aware@1.0.0");
    let change = b
        .replicator
        .activate(of(MODEL, Some(change.revision)), "mine", None)
        .await
        .unwrap();
    a.reaches("mine@1.0.0", change.revision).await;
}

async fn a_rollback_goes_back_everywhere(a: &Router, b: &Router) {
    let back = b.back().await.unwrap();
    assert_eq!(&*back.active.label, "kv-aware@1.0.0");
    a.reaches("kv-aware@1.0.0", back.revision).await;
    let back = a.back().await.unwrap();
    assert_eq!(&*back.active.label, "mine@1.0.0");
    assert_eq!(back.active.component.settings_json(), json!({"pressure_ms": 2}));
    b.reaches("mine@1.0.0", back.revision).await;
    let back = b.back().await.unwrap();
    a.reaches("round-robin@1.0.0", back.revision).await;
    assert!(conflict(a.back().await).contains(MODEL));
    assert!(conflict(a.replicator.rollback(of("never chosen", None), None).await).contains("never chosen"));
}

async fn of_two_racing_activations_one_wins_everywhere(a: &Router, b: &Router) {
    for _ in 0..10 {
        let present = a.revision().await;
        let (by_a, by_b) = tokio::join!(
            a.replace("replica-synced", present),
            b.replace("kv-aware", present)
        );
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

async fn of_two_racing_activations_at_one_router_one_wins(a: &Router) {
    for _ in 0..3 {
        let present = a.revision().await;
        let outcomes = tokio::join!(
            a.replace("replica-synced", present),
            a.replace("kv-aware", present)
        );
        let change = match outcomes {
            (Ok(change), lost) | (lost, Ok(change)) => {
                conflict(lost);
                change
            }
            neither => panic!("{neither:?}"),
        };
        a.reaches(&change.active.label, change.revision).await;
    }
}

async fn a_router_that_starts_late_catches_up(a: &Router, late: &Router) {
    let second = a.upload("mine", component(2)).await.unwrap();
    assert_eq!(second.version, format!("1.0.0+{}", &second.digest[..8]));
    let change = a.activate("mine").await.unwrap();
    late.reaches(&format!("mine@{}", second.version), change.revision)
        .await;
    let labels = |router: &Router| -> Vec<_> {
        let records = router.registry().list();
        records
            .into_iter()
            .map(|record| (record.name, record.version, record.digest))
            .collect()
    };
    assert_eq!(labels(late), labels(a));
    let change = a.activate("mine@1.0.0").await.unwrap();
    late.reaches("mine@1.0.0", change.revision).await;
}

#[actix_rt::test]
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
    NatsStore::start(connection, "test", Replicas::default())
}

#[actix_rt::test]
async fn routers_agree_over_nats() {
    let server = NatsServer::started();
    routers_agree(async || connect(&server).await).await;
}

#[actix_rt::test]
async fn a_folder_keeps_what_was_chosen_over_a_restart() {
    let folder = TempDir::new().unwrap();
    let open = || DirectoryStore::open(folder.path()).unwrap();
    let router = Router::start(open());
    router.upload("mine", component(1)).await.unwrap();
    let change = router.activate("mine").await.unwrap();
    drop(router);
    // The folder is free once the router's arbiter has stopped.
    let is_free = async || DirectoryStore::open(folder.path()).is_ok();
    eventually(true, is_free).await;
    let router = Router::start(open());
    router.reaches("mine@1.0.0", change.revision).await;
    let back = router.back().await.unwrap();
    assert_eq!(&*back.active.label, "round-robin@1.0.0");
}

#[actix_rt::test]
async fn unreadable_and_unknown_entries_change_nothing() {
    let store = MemoryStore::new();
    let a = Router::start(store.clone());
    let key = Subject::Active { model: MODEL.into() }.key();
    let first = store.set(&key, "no JSON".into(), Revision::ABSENT).await.unwrap();
    store
        .set("shadow/m", "{}".into(), Revision::ABSENT)
        .await
        .unwrap();
    eventually(first.0, async || a.revision().await).await;
    assert_eq!(a.decides(), "round-robin@1.0.0");
    assert!(
        conflict(a.replicator.activate(of(MODEL, Some(0)), "kv-aware", None).await).contains("unreadable")
    );
    // A built-in policy of another release: its digest counts, not its name.
    let digest = "0".repeat(64);
    let foreign = json!({"policy": "kv-aware", "version": "9.0.0", "digest": digest, "settings": {}});
    let second = store.set(&key, foreign.to_string().into(), first).await.unwrap();
    eventually(second.0, async || a.revision().await).await;
    // An activation replaces it.
    let change = a.activate("kv-aware").await.unwrap();
    assert_eq!(
        (&*change.before.label, &*change.active.label),
        ("round-robin@1.0.0", "kv-aware@1.0.0")
    );
}

#[actix_rt::test]
async fn a_quarantine_is_local_and_a_rollback_skips_the_quarantined_policy() {
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
        (b.decides(), b.revision().await),
        ("trap@1.0.0".into(), trap.revision)
    );
    assert!(conflict(a.activate("trap").await).contains("quarantine"));
    let change = a.activate("round-robin").await.unwrap();
    b.reaches("round-robin@1.0.0", change.revision).await;
    let back = a.back().await.unwrap();
    assert_eq!(&*back.active.label, "kv-aware@1.0.0");
    b.reaches("kv-aware@1.0.0", back.revision).await;
}

#[actix_rt::test]
async fn a_quarantine_is_an_event_that_every_router_shows() {
    let store = MemoryStore::new();
    let (a, b) = (Router::start(store.clone()), Router::start(store));
    let trap = a.upload("trap", guest("trap")).await.unwrap();
    let change = a.activate("trap").await.unwrap();
    b.reaches("trap@1.0.0", change.revision).await;
    let mut runner = a.registry().runner(MODEL);
    for (mut request, candidates) in trial_requests(&[8], 3) {
        request.decision_number = 0;
        runner.decide(&request, |_| &candidates, &mut Decision::default());
    }
    for router in [&a, &b] {
        let event = async || router.replicator.last_quarantine(&trap).await.unwrap().is_some();
        eventually(true, event).await;
        let event = router.replicator.last_quarantine(&trap).await.unwrap().unwrap();
        assert_eq!(
            (event.router.as_str(), event.models.as_slice()),
            ("r", &[MODEL.to_owned()][..])
        );
        assert!(event.reason.contains("trapped"), "{event:?}");
    }
    let actions: Vec<_> = a.audit.latest().into_iter().map(|record| record.action).collect();
    assert_eq!(actions, ["quarantine", "activate", "upload"]);
}

#[actix_rt::test]
async fn a_rollback_returns_to_any_revision_and_the_history_says_who_did_what() {
    let store = MemoryStore::new();
    let (a, b) = (Router::start(store.clone()), Router::start(store));
    let first = a.activate("kv-aware").await.unwrap().revision;
    let second = a.activate("replica-synced").await.unwrap().revision;
    let third = a.activate("kv-linear").await.unwrap().revision;
    b.reaches("kv-linear@1.0.0", third).await;
    let missing = b.replicator.rollback(of(MODEL, None), Some(third + 7)).await;
    assert!(conflict(missing).contains(&format!("known: {second}, {first}, 0")));
    let stale = b.replicator.rollback(of(MODEL, Some(first)), Some(second)).await;
    assert!(conflict(stale).contains(&third.to_string()));
    let back = b
        .replicator
        .rollback(of(MODEL, Some(third)), Some(first))
        .await
        .unwrap();
    assert_eq!(&*back.active.label, "kv-aware@1.0.0");
    a.reaches("kv-aware@1.0.0", back.revision).await;
    for router in [&a, &b] {
        let history = router.replicator.history(MODEL).await.unwrap();
        let shown: Vec<_> = history
            .iter()
            .map(|item| {
                (
                    item.revision,
                    item.note.action,
                    item.note.by.as_str(),
                    item.policy.as_str(),
                )
            })
            .collect();
        use ChangeAction::{Activate, Default, Rollback};
        let expected = [
            (back.revision, Rollback, "alice", "kv-aware@1.0.0"),
            (third, Activate, "alice", "kv-linear@1.0.0"),
            (second, Activate, "alice", "replica-synced@1.0.0"),
            (first, Activate, "alice", "kv-aware@1.0.0"),
            (0, Default, "", "round-robin@1.0.0"),
        ];
        assert_eq!(shown, expected);
        assert!(history[0].note.at_unix_ms > 0);
    }
    // What decided before that revision is what the next rollback returns to.
    let default = a.replicator.rollback(of(MODEL, None), None).await.unwrap();
    assert_eq!(&*default.active.label, "round-robin@1.0.0");
    let again = a
        .replicator
        .rollback(of(MODEL, None), Some(second))
        .await
        .unwrap();
    assert_eq!(&*again.active.label, "replica-synced@1.0.0");
    b.reaches("replica-synced@1.0.0", again.revision).await;
}

#[actix_rt::test]
async fn an_upload_that_nobody_uses_is_deleted_at_every_router() {
    let store = MemoryStore::new();
    let (a, b) = (Router::start(store.clone()), Router::start(store.clone()));
    let mine = a.upload("mine", component(1)).await.unwrap();
    let other = a.upload("other", component(1)).await.unwrap();
    let change = a.activate("mine").await.unwrap();
    b.reaches("mine@1.0.0", change.revision).await;
    assert_eq!(&b.replicator.component(&mine).await.unwrap()[..], component(1));
    let delete = async |router: &Router, policy: &str| router.replicator.delete(policy, "bob".into()).await;
    for (policy, reason) in [("kv-aware", "part of this program"), ("mine", MODEL)] {
        let refused = conflict(delete(&b, policy).await);
        assert!(refused.contains(reason), "{refused}");
    }
    let unknown = delete(&a, "mine@sha256:00000000").await;
    assert!(matches!(
        unknown,
        Err(PolicyChangeError::Registry(RegistryError::Unknown { .. }))
    ));
    a.activate("kv-aware").await.unwrap();
    let at_b = async || b.decides();
    eventually("kv-aware@1.0.0".to_owned(), at_b).await;
    let by_digest = format!("mine@sha256:{}", &mine.digest[..12]);
    assert_eq!(delete(&b, &by_digest).await.unwrap().digest, mine.digest);
    for router in [&a, &b] {
        eventually(true, async || router.registry().look_up("mine").is_err()).await;
        assert_eq!(
            router.registry().find("other").unwrap(),
            other,
            "the same bytes under another name"
        );
    }
    assert!(
        store.get_object(&mine.digest).await.is_ok(),
        "the other upload has them too"
    );
    delete(&a, "other@1").await.unwrap();
    assert!(store.get_object(&mine.digest).await.is_err());
    // A rollback skips what was deleted.
    let back = a.back().await.unwrap();
    assert_eq!(&*back.active.label, "round-robin@1.0.0");
    eventually("rollback".to_owned(), async || b.audit.latest()[0].action.clone()).await;
}

#[actix_rt::test]
async fn a_refused_change_does_not_reach_the_store() {
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
        .activate(of(MODEL, None), "kv-aware", settings.as_object().cloned())
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

#[actix_rt::test]
async fn old_unused_uploads_make_room_for_new_ones() {
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
            by: String::new(),
        };
        let key = entry.subject().key();
        store.set(&key, entry.to_value(), Revision::ABSENT).await.unwrap();
        old.push((key, digest));
    }
    let last = Subject::active(MODEL).key();
    let last = store.set(&last, "{}".into(), Revision::ABSENT).await.unwrap();
    let a = Router::start(store.clone());
    eventually(last.0, async || a.revision().await).await;
    a.upload("mine", component(1)).await.unwrap();
    for (number, (key, digest)) in old.iter().enumerate() {
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
