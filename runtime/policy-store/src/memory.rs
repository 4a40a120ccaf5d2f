//! The store in the memory of one process, with the semantics of the one in JetStream.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    bounds::{MAX_OBJECTS_BYTES, check_digest, check_object, digest_of},
    entries::{Entries, Table},
    store::{Revision, SharedStore, StoreEntry, StoreError, StoreFuture, StoreWatch},
};

/// Objects and entries in memory, until the process exits.
#[derive(Debug)]
pub struct MemoryStore {
    entries: Arc<Entries>,
    objects: Mutex<HashMap<String, Bytes>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            entries: Entries::new(Table::default()),
            objects: Mutex::default(),
        })
    }

    fn put(&self, bytes: Bytes) -> Result<String, StoreError> {
        check_object(&bytes)?;
        let digest = digest_of(&bytes);
        let mut objects = self.objects.lock();
        let stored: usize = objects.values().map(Bytes::len).sum();
        if !objects.contains_key(&digest) && stored + bytes.len() > MAX_OBJECTS_BYTES {
            return Err(StoreError::Full(format!(
                "all objects together have {stored} bytes; {MAX_OBJECTS_BYTES} is the most"
            )));
        }
        objects.insert(digest.clone(), bytes);
        Ok(digest)
    }

    fn object(&self, digest: &str) -> Result<Bytes, StoreError> {
        check_digest(digest)?;
        let missing = || StoreError::Missing {
            digest: digest.to_owned(),
        };
        self.objects.lock().get(digest).cloned().ok_or_else(missing)
    }
}

impl SharedStore for MemoryStore {
    fn put_object(&self, bytes: Bytes) -> StoreFuture<'_, String> {
        Box::pin(async move { self.put(bytes) })
    }

    fn get_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, Bytes> {
        Box::pin(async move { self.object(digest) })
    }

    fn remove_object<'a>(&'a self, digest: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            check_digest(digest)?;
            self.objects.lock().remove(digest);
            Ok(())
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<StoreEntry>> {
        Box::pin(async move { self.entries.get(key) })
    }

    fn set<'a>(&'a self, key: &'a str, value: Bytes, expected: Revision) -> StoreFuture<'a, Revision> {
        Box::pin(async move { self.entries.set(key, value, expected, |_| Ok(())) })
    }

    fn remove<'a>(&'a self, key: &'a str, expected: Revision) -> StoreFuture<'a, ()> {
        Box::pin(async move { self.entries.remove(key, expected, |_| Ok(())) })
    }

    fn watch(&self) -> StoreWatch {
        self.entries.watch()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test]
    async fn it_conforms_to_the_store() {
        conformance::of(|| MemoryStore::new()).await;
    }
}
