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

/// The names of the files in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_full_disk_is_an_error_of_its_own_and_leaves_no_torn_file() {
    let folder = folder();
    let path = folder.path().join("entries.json");
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
        let refusal = replace_by(&path, |file| {
            file.write_all(b"half of ")?;
            Err(kind.into())
        })
        .unwrap_err();
        assert!(matches!(refusal, StoreError::Full(_)), "{refusal}");
        assert!(refusal.to_string().contains("entries.json"), "{refusal}");
        assert_eq!(names(folder.path()), [""; 0]);
    }
    let refusal = replace_by(&path, |_| Err(io::ErrorKind::PermissionDenied.into())).unwrap_err();
    assert!(matches!(refusal, StoreError::Folder { .. }), "{refusal}");
    replace(&path, b"whole").unwrap();
    assert_eq!(names(folder.path()), ["entries.json"]);
}

#[tokio::test]
async fn torn_files_of_an_earlier_process_are_removed() {
    let folder = folder();
    let objects = folder.path().join(OBJECTS);
    fs::create_dir(&objects).unwrap();
    let torn = [
        folder.path().join("entries.new"),
        objects.join(format!("{}.new", "0".repeat(64))),
    ];
    for torn in &torn {
        fs::write(torn, "half").unwrap();
    }
    let store = DirectoryStore::open(folder.path()).unwrap();
    let digest = store.put_object("policy".into()).await.unwrap();
    assert_eq!(names(folder.path()), [LOCK, OBJECTS]);
    assert_eq!(names(&objects), [digest]);
}

/// Makes a named pipe, which a reader or a writer waits at for the other.
fn make_pipe(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
}

#[tokio::test]
async fn links_and_pipes_are_refused_and_named() {
    let elsewhere = folder();
    fs::write(elsewhere.path().join("file"), "{}").unwrap();
    let link = |path: &Path| std::os::unix::fs::symlink(elsewhere.path().join("file"), path).unwrap();
    for name in [ENTRIES, LOCK] {
        for make in [&link as &dyn Fn(&Path), &make_pipe] {
            let folder = folder();
            make(&folder.path().join(name));
            let refusal = refusal(&folder);
            assert!(
                refusal.contains(name) && refusal.contains("not a regular file"),
                "{refusal}"
            );
        }
    }
    let linked = folder();
    std::os::unix::fs::symlink(elsewhere.path(), linked.path().join(OBJECTS)).unwrap();
    assert!(refusal(&linked).contains("a link, not a folder"));

    for make in [&link as &dyn Fn(&Path), &make_pipe] {
        let folder = folder();
        let store = DirectoryStore::open(folder.path()).unwrap();
        let digest = store.put_object("policy".into()).await.unwrap();
        let path = folder.path().join(OBJECTS).join(&digest);
        fs::remove_file(&path).unwrap();
        make(&path);
        let refusal = store.get_object(&digest).await.unwrap_err().to_string();
        assert!(refusal.contains("not a regular file"), "{refusal}");
        // Storing it again puts a file in its place, and writes nothing elsewhere.
        store.put_object("policy".into()).await.unwrap();
        assert_eq!(store.get_object(&digest).await.unwrap(), "policy");
    }
    assert_eq!(fs::read_to_string(elsewhere.path().join("file")).unwrap(), "{}");
}

#[tokio::test]
async fn settings_of_the_largest_size_fit() {
    let folder = folder();
    let store = DirectoryStore::open(folder.path()).unwrap();
    let settings = "x".repeat(64 << 10);
    let value = format!(
        r#"{{"policy":"mine","version":"1.0.0","digest":"{}","settings":{{"t":"{settings}"}}}}"#,
        "0".repeat(64)
    );
    set(&*store, "active/model", &value, Revision::ABSENT).await;
}
