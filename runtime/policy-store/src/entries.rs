//! The entries of a store within this process, and the watches on them.

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

/// Entries by key, changed one step at a time.
#[derive(Debug)]
pub(crate) struct Entries {
    /// Held through a whole change, its way to the disk included; `table` is held for moments only.
    changing: Mutex<()>,
    table: Mutex<Table>,
    changed: watch::Sender<()>,
}

/// All entries at some moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    /// The last change, which may have been a removal.
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

    /// `keep` makes the change last; only then does anybody see it.
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
                return Err(StoreError::Refused(format!(
                    "its entries would have {bytes} bytes together; {MAX_ENTRIES_BYTES} is the most"
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
        StoreWatch::new(Follower {
            entries: Arc::clone(self),
            changed,
            told: BTreeSet::new(),
            upto: Revision::ABSENT,
            complete: false,
            queue: VecDeque::new(),
        })
    }
}

/// A watch: what it told so far.
#[derive(Debug)]
struct Follower {
    entries: Arc<Entries>,
    changed: watch::Receiver<()>,
    /// The keys told and not taken back.
    told: BTreeSet<String>,
    upto: Revision,
    complete: bool,
    queue: VecDeque<StoreChange>,
}

impl StoreWatchSource for Follower {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = StoreChange> + Send + '_>> {
        Box::pin(async {
            loop {
                if let Some(change) = self.queue.pop_front() {
                    return change;
                }
                // The sender lives as long as we hold the entries, so this only ever waits.
                _ = self.changed.changed().await;
                self.look();
            }
        })
    }
}

impl Follower {
    /// Queues what differs from what was told.
    fn look(&mut self) {
        let table = self.entries.table.lock();
        self.told.retain(|key| {
            let there = table.entries.contains_key(key);
            if !there {
                self.queue.push_back(StoreChange::Removed { key: key.clone() });
            }
            there
        });
        let mut newer: Vec<_> = table
            .entries
            .iter()
            .filter(|(_, entry)| entry.revision > self.upto)
            .collect();
        newer.sort_by_key(|(_, entry)| entry.revision);
        for (key, entry) in newer {
            self.told.insert(key.clone());
            let (key, entry) = (key.clone(), entry.clone());
            self.queue.push_back(StoreChange::Set { key, entry });
        }
        self.upto = table.revision;
        if !self.complete {
            self.complete = true;
            self.queue.push_back(StoreChange::Complete);
        }
    }
}
