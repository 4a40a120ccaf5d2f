//! The conformance tests, which every kind of store passes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};

use crate::{
    MAX_KEY_BYTES, MAX_OBJECT_BYTES, MAX_VALUE_BYTES, Revision, SharedStore, StoreChange, StoreEntry,
    StoreError, StoreWatch,
};

/// Fails a test that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// The digest of `policy`, from `sha256sum`.
const POLICY_DIGEST: &str = "823412d1eacb67956220e532959f0104603057c88704863ca38e7cd188fda812";

/// Checks the stores that `store` creates. Each is empty.
pub(crate) async fn of(mut store: impl FnMut() -> Arc<dyn SharedStore>) {
    objects_are_found_by_their_digest(&*store()).await;
    objects_out_of_bounds_are_refused(&*store()).await;
    an_entry_changes_only_from_its_present_revision(&*store()).await;
    a_removed_entry_can_be_set_again(&*store()).await;
    entries_out_of_bounds_are_refused(&*store()).await;
    any_text_is_a_key(&*store()).await;
    of_many_changes_from_one_revision_one_succeeds(&*store()).await;
    a_watch_delivers_the_present_entries_and_then_their_changes(&*store()).await;
    a_watch_of_an_empty_store_is_complete_at_once(&*store()).await;
    a_slow_watch_delivers_the_newest_revision(&*store()).await;
}

async fn objects_are_found_by_their_digest(store: &dyn SharedStore) {
    let digest = store.put_object("policy".into()).await.unwrap();
    assert_eq!(digest, POLICY_DIGEST);
    assert_eq!(store.get_object(&digest).await.unwrap(), "policy");
    assert_eq!(store.put_object("policy".into()).await.unwrap(), digest);
    let large = Bytes::from(vec![7; MAX_OBJECT_BYTES]);
    let other = store.put_object(large.clone()).await.unwrap();
    assert_eq!(store.get_object(&other).await.unwrap(), large);
    store.remove_object(&digest).await.unwrap();
    store.remove_object(&digest).await.unwrap();
    let missing = store.get_object(&digest).await.unwrap_err();
    assert!(matches!(missing, StoreError::Missing { .. }), "{missing}");
    assert_eq!(store.put_object("policy".into()).await.unwrap(), digest);
    assert_eq!(store.get_object(&digest).await.unwrap(), "policy");
}

async fn objects_out_of_bounds_are_refused(store: &dyn SharedStore) {
    refused(
        store.put_object(Bytes::from(vec![0; MAX_OBJECT_BYTES + 1])).await,
        "1048576",
    );
    for digest in [
        "",
        "../entries.json",
        &POLICY_DIGEST[1..],
        &POLICY_DIGEST.to_uppercase(),
    ] {
        refused(store.get_object(digest).await, "64 hexadecimal digits");
        refused(store.remove_object(digest).await, "64 hexadecimal digits");
    }
}

async fn an_entry_changes_only_from_its_present_revision(store: &dyn SharedStore) {
    assert_eq!(store.get("a").await.unwrap(), None);
    let first = set(store, "a", "1", Revision::ABSENT).await;
    assert!(first > Revision::ABSENT);
    conflict(store.set("a", "x".into(), Revision::ABSENT).await);
    let second = set(store, "a", "2", first).await;
    assert!(second > first);
    conflict(store.set("a", "x".into(), first).await);
    conflict(store.set("a", "x".into(), Revision(second.0 + 1)).await);
    conflict(store.set("never there", "x".into(), second).await);
    assert_eq!(store.get("a").await.unwrap(), Some(entry("2", second)));
    assert_eq!(store.get("never there").await.unwrap(), None);
    let other = set(store, "b", "3", Revision::ABSENT).await;
    assert!(other > second, "revisions count across keys");
}

async fn a_removed_entry_can_be_set_again(store: &dyn SharedStore) {
    let first = set(store, "a", "1", Revision::ABSENT).await;
    conflict(store.remove("a", Revision(first.0 + 1)).await);
    conflict(store.remove("a", Revision::ABSENT).await);
    store.remove("a", first).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), None);
    conflict(store.remove("a", first).await);
    conflict(store.set("a", "2".into(), first).await);
    assert!(set(store, "a", "2", Revision::ABSENT).await > first);
}

async fn entries_out_of_bounds_are_refused(store: &dyn SharedStore) {
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    for key in ["", &long] {
        refused(store.set(key, "1".into(), Revision::ABSENT).await, "512");
        refused(store.get(key).await, "512");
        refused(store.remove(key, Revision(1)).await, "512");
    }
    let large = Bytes::from(vec![b'v'; MAX_VALUE_BYTES + 1]);
    refused(store.set("a", large.clone(), Revision::ABSENT).await, "73728");
    let binary = Bytes::from_static(&[0xff]);
    refused(store.set("a", binary, Revision::ABSENT).await, "UTF-8");
    // The longest key and value are accepted, although the encoding makes the key longer.
    let longest = "ü".repeat(MAX_KEY_BYTES / 2);
    let value = large.slice(1..);
    let revision = store
        .set(&longest, value.clone(), Revision::ABSENT)
        .await
        .unwrap();
    assert_eq!(
        store.get(&longest).await.unwrap(),
        Some(StoreEntry { value, revision })
    );
}

async fn any_text_is_a_key(store: &dyn SharedStore) {
    let keys = [
        "active/llama3:8b",
        "active/org/model v1.5",
        ".",
        "a..b.",
        "*",
        ">",
        "=2E",
        "größe\n",
        "A",
        "a",
    ];
    for key in keys {
        set(store, key, key, Revision::ABSENT).await;
    }
    let mut watch = store.watch();
    for key in keys {
        let (delivered, entry) = next_set(&mut watch).await;
        assert_eq!((delivered.as_str(), &entry.value[..]), (key, key.as_bytes()));
        assert_eq!(store.get(key).await.unwrap(), Some(entry));
    }
    assert_eq!(next(&mut watch).await, StoreChange::Complete);
}

async fn of_many_changes_from_one_revision_one_succeeds(store: &dyn SharedStore) {
    for expected in [Revision::ABSENT, Revision(0)] {
        let expected = store
            .get("a")
            .await
            .unwrap()
            .map_or(expected, |entry| entry.revision);
        let values: Vec<String> = (0..8).map(|number| format!("{expected} {number}")).collect();
        let changes = values
            .iter()
            .map(|value| store.set("a", value.clone().into(), expected));
        let mut winners = Vec::new();
        for (value, outcome) in values.iter().zip(join_all(changes).await) {
            match outcome {
                Ok(revision) => winners.push(entry(value, revision)),
                other => conflict(other),
            }
        }
        assert_eq!(winners.len(), 1);
        assert_eq!(store.get("a").await.unwrap().as_ref(), winners.first());
    }
}

async fn a_watch_delivers_the_present_entries_and_then_their_changes(store: &dyn SharedStore) {
    let b = set(store, "b", "1", Revision::ABSENT).await;
    let gone = set(store, "gone", "1", Revision::ABSENT).await;
    let a = set(store, "a", "1", Revision::ABSENT).await;
    let b = set(store, "b", "2", b).await;
    store.remove("gone", gone).await.unwrap();
    let mut watch = store.watch();
    assert_eq!(next_set(&mut watch).await, ("a".into(), entry("1", a)));
    assert_eq!(next_set(&mut watch).await, ("b".into(), entry("2", b)));
    assert_eq!(next(&mut watch).await, StoreChange::Complete);
    // A reader that stops waiting misses nothing.
    assert_eq!(watch.next().now_or_never(), None);
    let a = set(store, "a", "2", a).await;
    assert_eq!(next_set(&mut watch).await, ("a".into(), entry("2", a)));
    let c = set(store, "c", "1", Revision::ABSENT).await;
    assert_eq!(next_set(&mut watch).await, ("c".into(), entry("1", c)));
    store.remove("b", b).await.unwrap();
    assert_eq!(next(&mut watch).await, StoreChange::Removed { key: "b".into() });
    let b = set(store, "b", "3", Revision::ABSENT).await;
    assert_eq!(next_set(&mut watch).await, ("b".into(), entry("3", b)));
}

async fn a_watch_of_an_empty_store_is_complete_at_once(store: &dyn SharedStore) {
    let mut watch = store.watch();
    assert_eq!(next(&mut watch).await, StoreChange::Complete);
    let a = set(store, "a", "1", Revision::ABSENT).await;
    assert_eq!(next_set(&mut watch).await, ("a".into(), entry("1", a)));
}

async fn a_slow_watch_delivers_the_newest_revision(store: &dyn SharedStore) {
    let mut watch = store.watch();
    let mut last = Revision::ABSENT;
    for number in 0..200 {
        last = set(store, "a", &number.to_string(), last).await;
    }
    let mut delivered = Revision::ABSENT;
    while delivered < last {
        if let StoreChange::Set { entry, .. } = next(&mut watch).await {
            assert!(entry.revision > delivered, "{} after {delivered}", entry.revision);
            delivered = entry.revision;
        }
    }
    assert_eq!(delivered, last);
}

pub(crate) async fn set(store: &dyn SharedStore, key: &str, value: &str, expected: Revision) -> Revision {
    store.set(key, value.to_owned().into(), expected).await.unwrap()
}

pub(crate) fn entry(value: &str, revision: Revision) -> StoreEntry {
    StoreEntry {
        value: value.to_owned().into(),
        revision,
    }
}

pub(crate) async fn next(watch: &mut StoreWatch) -> StoreChange {
    tokio::time::timeout(PATIENCE, watch.next())
        .await
        .expect("a change")
}

pub(crate) async fn next_set(watch: &mut StoreWatch) -> (String, StoreEntry) {
    match next(watch).await {
        StoreChange::Set { key, entry } => (key, entry),
        other => panic!("{other:?} instead of an entry"),
    }
}

#[track_caller]
pub(crate) fn conflict<T: std::fmt::Debug>(outcome: Result<T, StoreError>) {
    assert!(matches!(outcome, Err(StoreError::Conflict { .. })), "{outcome:?}");
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, StoreError>, word: &str) {
    match outcome {
        Err(StoreError::Refused(reason)) => assert!(reason.contains(word), "{reason}"),
        other => panic!("{other:?} instead of a refusal"),
    }
}
