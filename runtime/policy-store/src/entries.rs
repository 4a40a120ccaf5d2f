//! Entries that this process holds in memory, and the watches on them: for the memory and the directory store.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::Pin,
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    bounds::{MAX_ENTRIES_BYTES, check_key, check_value},
    store::{Revision, StoreChange, StoreEntry, StoreError, StoreWatch, StoreWatchSource},
};

/// Entries by key. Changes are made one after the other.
#[derive(Debug)]
pub(crate) struct Entries {
    /// Held during a whole change, writing to the disk included. `table` is locked for moments only.
    changing: Mutex<()>,
    table: Mutex<Table>,
    changed: watch::Sender<()>,
}

/// All entries at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    /// The number of the last change, which may have been a removal.
    pub(crate) revision: Revision,
    pub(crate) entries: BTreeMap<String, StoreEntry>,
}

impl Entries {
    pub(crate) fn new(table: Table) -> Arc<Self> {
        Arc::new(Self {
            changing: Mutex::default(),
            table: Mutex::new(table),
            changed: watch::Sender::new(()),
        })
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<StoreEntry>, StoreError> {
        check_key(key)?;
        Ok(self.table.lock().entries.get(key).cloned())
    }

    /// Sets an entry. `keep` writes the new table to durable storage; readers see the change only after that.
    pub(crate) fn set(
        &self,
        key: &str,
        value: Bytes,
        expected: Revision,
        keep: impl FnOnce(&Table) -> Result<(), StoreError>,
    ) -> Result<Revision, StoreError> {
        check_key(key)?;
        check_value(&value)?;
        self.change(key, expected, keep, |table| {
            table.revision.0 += 1;
            let revision = table.revision;
            table
                .entries
                .insert(key.to_owned(), StoreEntry { value, revision });
            let bytes: usize = table
                .entries
                .iter()
                .map(|(key, entry)| key.len() + entry.value.len())
                .sum();
            if bytes > MAX_ENTRIES_BYTES {
                return Err(StoreError::Full(format!(
                    "all entries together would have {bytes} bytes; {MAX_ENTRIES_BYTES} is the most"
                )));
            }
            Ok(revision)
        })
    }

    pub(crate) fn remove(
        &self,
        key: &str,
        expected: Revision,
        keep: impl FnOnce(&Table) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        check_key(key)?;
        self.change(key, expected, keep, |table| {
            table.revision.0 += 1;
            table.entries.remove(key);
            Ok(())
        })
    }

    fn change<R>(
        &self,
        key: &str,
        expected: Revision,
        keep: impl FnOnce(&Table) -> Result<(), StoreError>,
        change: impl FnOnce(&mut Table) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let _one_at_a_time = self.changing.lock();
        let mut next = self.table.lock().clone();
        let present = next
            .entries
            .get(key)
            .map_or(Revision::ABSENT, |entry| entry.revision);
        if present != expected {
            return Err(StoreError::Conflict { key: key.to_owned() });
        }
        let done = change(&mut next)?;
        keep(&next)?;
        *self.table.lock() = next;
        self.changed.send_replace(());
        Ok(done)
    }

    pub(crate) fn watch(self: &Arc<Self>) -> StoreWatch {
        let mut changed = self.changed.subscribe();
        changed.mark_changed();
        StoreWatch::new(EntriesWatch {
            entries: Arc::clone(self),
            changed,
            delivered: BTreeSet::new(),
            read_up_to: Revision::ABSENT,
            is_complete: false,
            queue: VecDeque::new(),
        })
    }
}

/// A watch on the entries.
#[derive(Debug)]
struct EntriesWatch {
    entries: Arc<Entries>,
    changed: watch::Receiver<()>,
    /// The keys whose entries were queued, unless their removal was queued too.
    delivered: BTreeSet<String>,
    /// The last change whose effects were queued.
    read_up_to: Revision,
    is_complete: bool,
    /// Changes to deliver.
    queue: VecDeque<StoreChange>,
}

impl StoreWatchSource for EntriesWatch {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = StoreChange> + Send + '_>> {
        Box::pin(async {
            loop {
                if let Some(change) = self.queue.pop_front() {
                    return change;
                }
                // An error would mean that the entries are gone, but this watch keeps them.
                _ = self.changed.changed().await;
                self.queue_changes();
            }
        })
    }
}

impl EntriesWatch {
    /// Queues what has changed since the last call.
    fn queue_changes(&mut self) {
        let table = self.entries.table.lock();
        self.delivered.retain(|key| {
            let is_present = table.entries.contains_key(key);
            if !is_present {
                self.queue.push_back(StoreChange::Removed { key: key.clone() });
            }
            is_present
        });
        let mut newer: Vec<_> = table
            .entries
            .iter()
            .filter(|(_, entry)| entry.revision > self.read_up_to)
            .collect();
        newer.sort_by_key(|(_, entry)| entry.revision);
        for (key, entry) in newer {
            self.delivered.insert(key.clone());
            let (key, entry) = (key.clone(), entry.clone());
            self.queue.push_back(StoreChange::Set { key, entry });
        }
        self.read_up_to = table.revision;
        if !self.is_complete {
            self.is_complete = true;
            self.queue.push_back(StoreChange::Complete);
        }
    }
}
