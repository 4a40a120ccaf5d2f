//! The store in a folder, for a router without NATS.
//!
//! ```text
//! entries.json      all entries with their revisions, replaced as a whole at every change
//! objects/<digest>  the objects
//! lock              locked by the process that uses the folder
//! ```
//!
//! A file is replaced only after its successor is synced to the disk, so that a crash leaves one or the other. A successor
//! that could not be written is removed, at once or when the folder is opened again: it would keep a full disk full.
//!
//! Each of these is a regular file. A link would make the router read or write a file elsewhere, and a pipe would make it
//! wait for ever.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    bounds::{
        MAX_ENTRIES_BYTES, MAX_OBJECT_BYTES, MAX_OBJECTS_BYTES, check_digest, check_key, check_object,
        check_value, digest_of, verified,
    },
    entries::{Entries, Table},
    store::{Revision, SharedStore, StoreEntry, StoreError, StoreFuture, StoreWatch},
};

const ENTRIES: &str = "entries.json";
const OBJECTS: &str = "objects";
const LOCK: &str = "lock";
/// The extension of a file that is being written.
const SUCCESSOR: &str = "new";
/// The version of `entries.json` that this release writes, and the only one that it reads.
const FORMAT: u32 = 1;
/// Most bytes of `entries.json`. Its values are JSON within JSON, which takes up to twice their bytes, and control characters
/// more.
const MAX_ENTRIES_FILE_BYTES: u64 = 4 * MAX_ENTRIES_BYTES as u64;

/// Objects and entries in a folder that no other process uses.
#[derive(Debug)]
pub struct DirectoryStore(Arc<Folder>);

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    entries: Arc<Entries>,
    /// Held while an object is written: two writers of the same bytes would write to the same file.
    writing: Mutex<()>,
    /// The operating system unlocks the file when it closes it, however the process ends.
    _lock: File,
}

/// `entries.json`.
#[derive(Serialize, Deserialize)]
struct EntriesFile {
    format: u32,
    revision: Revision,
    entries: BTreeMap<String, FileEntry>,
}

#[derive(Serialize, Deserialize)]
struct FileEntry {
    revision: Revision,
    value: String,
}

impl DirectoryStore {
    /// Opens a folder, and creates it if it is missing. Blocks while it reads the entries.
    ///
    /// # Errors
    /// [`StoreError::Folder`]: the folder cannot be created, read or written; another process uses it; or its entries
    /// are damaged. Nothing is changed then.
    pub fn open(path: impl Into<PathBuf>) -> Result<Arc<Self>, StoreError> {
        let path = path.into();
        let objects = path.join(OBJECTS);
        fs::create_dir_all(&objects).map_err(|error| unusable(&objects, &error))?;
        let of_objects = fs::symlink_metadata(&objects).map_err(|error| unusable(&objects, &error))?;
        if !of_objects.is_dir() {
            return Err(unusable(&objects, &"it is a link, not a folder"));
        }
        let lock = lock(&path.join(LOCK))?;
        for folder in [&path, &objects] {
            remove_successors(folder).map_err(|error| unusable(folder, &error))?;
        }
        let entries = Entries::new(read_entries(&path.join(ENTRIES))?);
        Ok(Arc::new(Self(Arc::new(Folder {
            path,
            entries,
            writing: Mutex::default(),
            _lock: lock,
        }))))
    }

    /// Runs `work`, which reads or writes files, on a thread that may block.
    fn blocking<'a, T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'a, T> {
        let folder = Arc::clone(&self.0);
        Box::pin(async move {
            tokio::task::spawn_blocking(move || work(&folder))
                .await
                .unwrap_or_else(|error| {
                    Err(StoreError::Unavailable(format!("the operation failed: {error}")))
                })
        })
    }
}

impl SharedStore for DirectoryStore {
    fn put_object(&self, bytes: Bytes) -> StoreFuture<'_, String> {
        self.blocking(move |folder| folder.put(&bytes))
    }

    fn get_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, Bytes> {
        let digest = digest.to_owned();
        self.blocking(move |folder| folder.object(&digest))
    }

    fn remove_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()> {
        let digest = digest.to_owned();
        self.blocking(move |folder| {
            check_digest(&digest)?;
            let path = folder.object_path(&digest);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unusable(&path, &error)),
                _ => Ok(()),
            }
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<StoreEntry>> {
        Box::pin(async move { self.0.entries.get(key) })
    }

    fn set<'a>(&'a self, key: &'a str, value: Bytes, expected: Revision) -> StoreFuture<'a, Revision> {
        let key = key.to_owned();
        self.blocking(move |folder| {
            folder
                .entries
                .set(&key, value, expected, |table| folder.keep(table))
        })
    }

    fn remove<'a>(&'a self, key: &'a str, expected: Revision) -> StoreFuture<'a, ()> {
        let key = key.to_owned();
        self.blocking(move |folder| folder.entries.remove(&key, expected, |table| folder.keep(table)))
    }

    fn watch(&self) -> StoreWatch {
        self.0.entries.watch()
    }
}

impl Folder {
    fn object_path(&self, digest: &str) -> PathBuf {
        self.path.join(OBJECTS).join(digest)
    }

    fn put(&self, bytes: &[u8]) -> Result<String, StoreError> {
        check_object(bytes)?;
        let digest = digest_of(bytes);
        let _one_at_a_time = self.writing.lock();
        // A damaged object is written again: an upload repairs it.
        if self.object(&digest).is_ok() {
            return Ok(digest);
        }
        let stored = self.stored_bytes()?;
        if stored + bytes.len() as u64 > MAX_OBJECTS_BYTES as u64 {
            return Err(StoreError::Full(format!(
                "all objects together have {stored} bytes; {MAX_OBJECTS_BYTES} is the most"
            )));
        }
        replace(&self.object_path(&digest), bytes)?;
        Ok(digest)
    }

    fn object(&self, digest: &str) -> Result<Bytes, StoreError> {
        check_digest(digest)?;
        let path = self.object_path(digest);
        let Some(length) = regular_file(&path)? else {
            return Err(StoreError::Missing {
                digest: digest.to_owned(),
            });
        };
        if length > MAX_OBJECT_BYTES as u64 {
            return Err(StoreError::Damaged {
                digest: digest.to_owned(),
                reason: format!(
                    "{} has {length} bytes; {MAX_OBJECT_BYTES} is the most",
                    path.display()
                ),
            });
        }
        match fs::read(&path) {
            Ok(bytes) => verified(digest, bytes.into()),
            Err(error) => Err(unusable(&path, &error)),
        }
    }

    fn stored_bytes(&self) -> Result<u64, StoreError> {
        let path = self.path.join(OBJECTS);
        let files = fs::read_dir(&path).map_err(|error| unusable(&path, &error))?;
        // A file that vanishes after it was listed counts as empty.
        let length = |file: io::Result<fs::DirEntry>| file.ok()?.metadata().ok().map(|file| file.len());
        Ok(files.filter_map(length).sum())
    }

    fn keep(&self, table: &Table) -> Result<(), StoreError> {
        let path = self.path.join(ENTRIES);
        let entries = table.entries.iter().map(|(key, entry)| {
            let value = String::from_utf8_lossy(&entry.value).into_owned();
            let revision = entry.revision;
            (key.clone(), FileEntry { revision, value })
        });
        let file = EntriesFile {
            format: FORMAT,
            revision: table.revision,
            entries: entries.collect(),
        };
        let json = serde_json::to_vec_pretty(&file).map_err(|error| unusable(&path, &error))?;
        replace(&path, &json)
    }
}

/// The length of a file; `None` if nothing has this name.
fn regular_file(path: &Path) -> Result<Option<u64>, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() => Ok(Some(found.len())),
        Ok(found) => {
            let kind = if found.is_symlink() {
                "a link"
            } else if found.is_dir() {
                "a folder"
            } else {
                "a pipe, a socket or a device"
            };
            Err(unusable(
                path,
                &format!("it is {kind}, not a regular file; remove it"),
            ))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(path, &error)),
    }
}

/// Removes what an earlier process could not write to its end.
fn remove_successors(folder: &Path) -> io::Result<()> {
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == SUCCESSOR) {
            tracing::info!(path = %path.display(), "a file that was not written to its end is removed");
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, StoreError> {
    regular_file(path)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|error| unusable(path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Folder {
            path: path.parent().unwrap_or(path).to_owned(),
            reason:
                "another process uses this folder; give each router its own folder, or let routers share policies \
                     over NATS"
                    .into(),
        }),
        Err(TryLockError::Error(error)) => Err(unusable(path, &error)),
    }
}

fn read_entries(path: &Path) -> Result<Table, StoreError> {
    let damaged = |reason: String| StoreError::Folder {
        path: path.to_owned(),
        reason: format!("{reason}; restore the file, or remove it to start without policies"),
    };
    let json = match regular_file(path)? {
        None => return Ok(Table::default()),
        Some(length) if length > MAX_ENTRIES_FILE_BYTES => {
            return Err(damaged(format!(
                "the file has {length} bytes; {MAX_ENTRIES_FILE_BYTES} is the most"
            )));
        }
        Some(_) => fs::read(path).map_err(|error| unusable(path, &error))?,
    };
    let file: EntriesFile =
        serde_json::from_slice(&json).map_err(|error| damaged(format!("the file is damaged: {error}")))?;
    if file.format != FORMAT {
        return Err(damaged(format!(
            "the file has format {}; this release reads format {FORMAT}",
            file.format
        )));
    }
    let mut table = Table {
        revision: file.revision,
        ..Table::default()
    };
    for (key, FileEntry { revision, value }) in file.entries {
        let value = Bytes::from(value);
        check_key(&key)
            .and_then(|()| check_value(&value))
            .map_err(|error| damaged(error.to_string()))?;
        if revision == Revision::ABSENT || revision > file.revision {
            return Err(damaged(format!(
                "{key:?} has revision {revision}, but the last revision is {}",
                file.revision
            )));
        }
        table.entries.insert(key, StoreEntry { value, revision });
    }
    Ok(table)
}

/// Replaces a file: writes its successor beside it, syncs that to the disk, and renames it.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    replace_by(path, |file| file.write_all(bytes))
}

fn replace_by(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), StoreError> {
    let new = path.with_extension(SUCCESSOR);
    let written = || {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Not written into whatever somebody else created meanwhile.
        let mut file = File::create_new(&new)?;
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        // The new name is durable only after the folder is synced too, which only Unix offers.
        #[cfg(unix)]
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok::<_, io::Error>(())
    };
    written().map_err(|error| {
        // What was written of the successor takes room that other files may need.
        if let Err(error) = fs::remove_file(&new)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %new.display(), %error, "a file that could not be written to its end stays");
        }
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                StoreError::Full(format!("{} cannot be written: {error}", path.display()))
            }
            _ => unusable(path, &error),
        }
    })
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Folder {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
