//! What every store offers: objects by digest, entries by key, and a watch on the entries.

use std::{fmt::Debug, path::PathBuf, pin::Pin};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The answer of a store to one operation.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Objects by digest and entries by key, the same for every router that shares the store.
///
/// Every operation ends within seconds; while the store is away, with [`StoreError::Unavailable`]. An argument out of
/// bounds is [`StoreError::Refused`] before anything is sent.
pub trait SharedStore: Send + Sync + Debug + 'static {
    /// Stores bytes and returns their digest: SHA-256 in lower-case hexadecimal. Storing the same bytes again changes
    /// nothing.
    fn put_object(&self, bytes: Bytes) -> StoreFuture<'_, String>;

    /// The bytes with this digest, verified; [`StoreError::Missing`] if the store does not have them.
    fn get_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, Bytes>;

    /// Removes the bytes with this digest, if the store has them.
    fn remove_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()>;

    /// The entry under a key, if there is one.
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<StoreEntry>>;

    /// Puts `value` under `key` and returns its revision, provided that the present revision is `expected`
    /// ([`Revision::ABSENT`]: provided that the key has no entry); otherwise [`StoreError::Conflict`]. After
    /// [`StoreError::Unavailable`] the caller cannot know whether the change was made.
    fn set<'a>(&'a self, key: &'a str, value: Bytes, expected: Revision) -> StoreFuture<'a, Revision>;

    /// Removes the entry under `key`, provided that its revision is `expected`; otherwise [`StoreError::Conflict`].
    fn remove<'a>(&'a self, key: &'a str, expected: Revision) -> StoreFuture<'a, ()>;

    /// Follows all entries, beginning with the present ones. Call it inside a tokio runtime.
    fn watch(&self) -> StoreWatch;
}

/// The number of a change. Numbers grow with every change of a store, across all its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision of a key without an entry.
    pub const ABSENT: Self = Self(0);
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The value under a key, and its revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreEntry {
    /// UTF-8 text.
    pub value: Bytes,
    /// The change that stored the value.
    pub revision: Revision,
}

/// What a watch delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChange {
    /// The key has this entry now.
    Set {
        /// The key.
        key: String,
        /// The entry.
        entry: StoreEntry,
    },
    /// The key has no entry any more: it was removed, or the store lost its data.
    Removed {
        /// The key.
        key: String,
    },
    /// All entries that were present at the start have been delivered. Comes once.
    Complete,
}

/// All entries and their changes; from [`SharedStore::watch`].
///
/// It delivers every present entry in the order of revisions, then [`StoreChange::Complete`], then the changes. When a
/// key changes several times between two deliveries, the watch delivers its newest state only. Changes made while the
/// store was away are delivered when it is back.
#[derive(Debug)]
pub struct StoreWatch {
    source: Box<dyn StoreWatchSource>,
}

/// The source of a watch's changes: one for each kind of store.
pub trait StoreWatchSource: Send + Debug + 'static {
    /// Waits for the next change. Dropping the future loses nothing.
    fn next(&mut self) -> Pin<Box<dyn Future<Output = StoreChange> + Send + '_>>;
}

impl StoreWatch {
    /// A watch that reads from `source`.
    pub fn new(source: impl StoreWatchSource) -> Self {
        Self {
            source: Box::new(source),
        }
    }

    /// Waits for the next change. Dropping the future loses nothing. A watch never ends.
    pub async fn next(&mut self) -> StoreChange {
        self.source.next().await
    }
}

/// Why a store did not carry out an operation.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// An argument is out of bounds.
    #[error("the policy store refuses this: {0}")]
    Refused(String),
    /// The store has no room: its bound is reached, or the disk is full. Nothing was changed.
    #[error("the policy store is full: {0}")]
    Full(String),
    /// The entry does not have the expected revision.
    #[error("the entry {key:?} of the policy store has changed meanwhile")]
    Conflict {
        /// The key.
        key: String,
    },
    /// The store does not have the object.
    #[error("the policy store has no object {digest}")]
    Missing {
        /// The digest of the object.
        digest: String,
    },
    /// The bytes of an object do not have its digest.
    #[error("the object {digest} in the policy store is damaged: {reason}; upload it again")]
    Damaged {
        /// The digest of the object.
        digest: String,
        /// What is wrong with the bytes.
        reason: String,
    },
    /// The store cannot be reached or does not answer.
    #[error("the policy store is not available: {0}")]
    Unavailable(String),
    /// The folder of a [`DirectoryStore`](crate::DirectoryStore) cannot be used.
    #[error("{} cannot be used for policies: {reason}", path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what to do about it.
        reason: String,
    },
}
