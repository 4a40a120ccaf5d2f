//! What all routers of a cluster agree on, wherever it is kept.
//!
//! A [`SharedStore`] holds *objects*, bytes named by their digest that never change, and *entries*, small texts under
//! keys that change one step at a time: whoever changes one says which revision it looked at, and of two that looked
//! at the same one only the first succeeds. [`NatsStore`] keeps them in JetStream for a cluster, [`DirectoryStore`]
//! in a folder for one router, [`MemoryStore`] in the process; one body of tests holds for all three.
//!
//! It knows nothing of what the bytes mean. Nothing on the path of a request waits for it.

use std::{fmt::Debug, path::PathBuf, pin::Pin};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Where an operation of a store ends.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Objects by digest and entries by key, the same for everybody who shares the store.
///
/// Every operation ends within seconds, with [`StoreError::Unavailable`] where the store is away. What is out of
/// bounds is [`StoreError::Refused`] before anything is sent.
pub trait SharedStore: Send + Sync + Debug + 'static {
    /// Stores bytes and answers with their SHA-256 in hexadecimal, under which they are found. Storing the same bytes
    /// again changes nothing.
    fn put_object(&self, bytes: Bytes) -> StoreFuture<'_, String>;

    /// The bytes with this digest, verified. [`StoreError::Missing`] where there are none.
    fn get_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, Bytes>;

    /// Forgets the bytes with this digest, if they are there.
    fn remove_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()>;

    /// The entry under a key.
    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<StoreEntry>>;

    /// Puts `value` under `key` if its revision is still `expected` ([`Revision::ABSENT`]: if nothing is there), and
    /// answers with the new one; otherwise [`StoreError::Conflict`]. After [`StoreError::Unavailable`] it is not known
    /// whether it took effect.
    fn set<'a>(&'a self, key: &'a str, value: Bytes, expected: Revision) -> StoreFuture<'a, Revision>;

    /// Removes the entry under `key` if its revision is still `expected`; otherwise [`StoreError::Conflict`].
    fn remove<'a>(&'a self, key: &'a str, expected: Revision) -> StoreFuture<'a, ()>;

    /// Follows all entries, from what is there now. Call it inside a tokio runtime.
    fn watch(&self) -> StoreWatch;
}

/// Which change an entry is: later ones of the same store have larger numbers, across all keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// That of a key nothing is under.
    pub const ABSENT: Self = Self(0);
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What is under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreEntry {
    /// UTF-8 text.
    pub value: Bytes,
    /// The change that put it there.
    pub revision: Revision,
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChange {
    /// This is under the key now.
    Set {
        /// The key.
        key: String,
        /// Its value and revision.
        entry: StoreEntry,
    },
    /// Nothing is under the key any more: it was removed, or the store lost its data.
    Removed {
        /// The key.
        key: String,
    },
    /// All that was there at first has been told. Comes once.
    Complete,
}

/// All entries and their changes, as told by [`SharedStore::watch`].
///
/// First comes every entry that is there, in the order of revisions, then [`StoreChange::Complete`], then what
/// changes. A key that changed several times since it was last told is told once, as it is now. What changed while the
/// store was away is told when it is back.
#[derive(Debug)]
pub struct StoreWatch {
    source: Box<dyn StoreWatchSource>,
}

/// Where a store's watches get their changes from.
pub trait StoreWatchSource: Send + Debug + 'static {
    /// Waits for the next change. Dropping the future loses nothing.
    fn next(&mut self) -> Pin<Box<dyn Future<Output = StoreChange> + Send + '_>>;
}

impl StoreWatch {
    /// A watch of a store of one's own.
    pub fn new(source: impl StoreWatchSource) -> Self {
        Self {
            source: Box::new(source),
        }
    }

    /// Waits for the next change. Loses nothing when cancelled, and never ends.
    pub async fn next(&mut self) -> StoreChange {
        self.source.next().await
    }
}

/// Why a store did not do as told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// It will never be accepted like that.
    #[error("the policy store does not take this: {0}")]
    Refused(String),
    /// The entry is another one than expected.
    #[error("{key:?} in the policy store was changed by somebody else")]
    Conflict {
        /// The key.
        key: String,
    },
    /// No such object.
    #[error("the policy store has no object {digest}")]
    Missing {
        /// What was asked for.
        digest: String,
    },
    /// The bytes of an object are not those that were stored.
    #[error("the object {digest} in the policy store is damaged: {reason}; upload it again")]
    Damaged {
        /// What was asked for.
        digest: String,
        /// How that was noticed.
        reason: String,
    },
    /// It cannot be reached or does not answer.
    #[error("the policy store is not available: {0}")]
    Unavailable(String),
    /// The folder of a [`DirectoryStore`] cannot be used.
    #[error("{} cannot be used for policies: {reason}", path.display())]
    Folder {
        /// The file or folder at fault.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
}
