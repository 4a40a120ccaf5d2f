use tempfile::TempDir;

use super::*;
use crate::conformance::{self, entry, next, next_set, set};

fn folder() -> TempDir {
    TempDir::new().unwrap()
}

/// The error of opening a folder.
fn refusal(folder: &TempDir) -> String {
    DirectoryStore::open(folder.path()).unwrap_err().to_string()
}

#[tokio::test]
async fn it_conforms_to_the_store() {
    let mut folders = Vec::new();
    conformance::of(|| {
        folders.push(folder());
        DirectoryStore::open(folders.last().unwrap().path()).unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_reopened_folder_has_what_was_stored() {
    let folder = folder();
    let store = DirectoryStore::open(folder.path().join("made")).unwrap();
    let digest = store.put_object("policy".into()).await.unwrap();
    let a = set(&*store, "a", "{\"x\": \"ü\"}", Revision::ABSENT).await;
    let b = set(&*store, "b", "1", Revision::ABSENT).await;
    store.remove("b", b).await.unwrap();
    drop(store);
    let store = DirectoryStore::open(folder.path().join("made")).unwrap();
    assert_eq!(store.get_object(&digest).await.unwrap(), "policy");
    let mut watch = store.watch();
    assert_eq!(
        next_set(&mut watch).await,
        ("a".into(), entry("{\"x\": \"ü\"}", a))
    );
    assert_eq!(next(&mut watch).await, crate::StoreChange::Complete);
    assert!(
        set(&*store, "b", "2", Revision::ABSENT).await > b,
        "each revision is used once"
    );
}

#[tokio::test]
async fn a_folder_is_open_in_one_process_at_a_time() {
    let folder = folder();
    let first = DirectoryStore::open(folder.path()).unwrap();
    let refusal = refusal(&folder);
    assert!(
        refusal.contains(folder.path().to_str().unwrap()) && refusal.contains("another process"),
        "{refusal}"
    );
    // A watch alone does not lock the folder.
    let _watch = first.watch();
    drop(first);
    DirectoryStore::open(folder.path()).unwrap();
}

#[tokio::test]
async fn damaged_entries_are_refused_and_their_file_is_named() {
    let cases = [
        ("", "damaged"),
        ("{\"format\": 1", "damaged"),
        (r#"{"format": 2, "revision": 0, "entries": {}}"#, "format 2"),
        (
            r#"{"format": 1, "revision": 1, "entries": {"a": {"revision": 2, "value": ""}}}"#,
            "revision 2",
        ),
        (
            r#"{"format": 1, "revision": 1, "entries": {"": {"revision": 1, "value": ""}}}"#,
            "key",
        ),
    ];
    for (content, word) in cases {
        let folder = folder();
        fs::write(folder.path().join(ENTRIES), content).unwrap();
        let refusal = refusal(&folder);
        assert!(refusal.contains(ENTRIES) && refusal.contains(word), "{refusal}");
        assert_eq!(fs::read_to_string(folder.path().join(ENTRIES)).unwrap(), content);
    }
}

#[tokio::test]
async fn a_damaged_object_is_reported_and_repaired_by_storing_it_again() {
    let folder = folder();
    let store = DirectoryStore::open(folder.path()).unwrap();
    let digest = store.put_object("policy".into()).await.unwrap();
    let path = folder.path().join(OBJECTS).join(&digest);
    for damage in [b"police".to_vec(), vec![0; MAX_OBJECT_BYTES + 1], vec![]] {
        fs::write(&path, damage).unwrap();
        let refusal = store.get_object(&digest).await.unwrap_err();
        assert!(matches!(refusal, StoreError::Damaged { .. }), "{refusal}");
        store.put_object("policy".into()).await.unwrap();
        assert_eq!(store.get_object(&digest).await.unwrap(), "policy");
    }
}

#[tokio::test]
async fn a_change_that_cannot_be_written_to_the_disk_is_not_made() {
    let folder = folder();
    let store = DirectoryStore::open(folder.path()).unwrap();
    let first = set(&*store, "a", "1", Revision::ABSENT).await;
    // A folder has the name of the new file: writing that file fails even for root.
    fs::create_dir(folder.path().join("entries.new")).unwrap();
    let refusal = store.set("a", "2".into(), first).await.unwrap_err().to_string();
    assert!(refusal.contains(ENTRIES), "{refusal}");
    assert_eq!(store.get("a").await.unwrap(), Some(entry("1", first)));
    fs::remove_dir(folder.path().join("entries.new")).unwrap();
    set(&*store, "a", "2", first).await;
}
