//! The index, shared between threads.

use std::sync::Arc;

use parking_lot::RwLock;

use crate::KvIndex;

/// An index shared between threads: readers rarely wait, writers hold it for one batch at most. Cloning makes
/// another handle to the same index.
#[derive(Debug, Clone)]
pub struct SharedKvIndex {
    index: Arc<RwLock<KvIndex>>,
}

impl SharedKvIndex {
    /// See [`KvIndex::new`].
    pub fn new(max_bytes: usize) -> Self {
        Self {
            index: Arc::new(RwLock::new(KvIndex::new(max_bytes))),
        }
    }

    /// Looks at the index, beside other readers. `f` must not call back into this handle.
    pub fn read<R>(&self, f: impl FnOnce(&KvIndex) -> R) -> R {
        f(&self.index.read())
    }

    /// Changes the index, alone. Keep it to one batch of events, since every decision waits for it; `f` must not
    /// call back into this handle.
    pub fn write<R>(&self, f: impl FnOnce(&mut KvIndex) -> R) -> R {
        f(&mut self.index.write())
    }
}
