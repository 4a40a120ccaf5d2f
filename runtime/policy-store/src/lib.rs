//! What all routers of a cluster agree on: the uploaded policies, and which of them decides for which model.
//!
//! A [`SharedStore`] holds *objects* and *entries*. An object is a sequence of bytes that is named by its digest and
//! never changes. An entry is a small text under a key. A writer changes an entry from the revision it has read; when
//! two writers have read the same revision, only the first change succeeds.
//!
//! | store | where the data is | for |
//! |---|---|---|
//! | [`NatsStore`] | JetStream buckets | a cluster |
//! | [`DirectoryStore`] | a folder | one router |
//! | [`MemoryStore`] | the process | one router, until it exits |
//!
//! One set of conformance tests runs against all three. This crate does not interpret the bytes it stores. No request
//! waits for a store. `README.md` beside this crate's manifest describes keys, values and bounds.

mod bounds;
#[cfg(test)]
mod conformance;
mod directory;
mod entries;
mod memory;
mod nats;
mod store;

pub use bounds::{MAX_KEY_BYTES, MAX_OBJECT_BYTES, MAX_VALUE_BYTES};
pub use directory::DirectoryStore;
pub use memory::MemoryStore;
pub use nats::NatsStore;
pub use store::{
    Revision, SharedStore, StoreChange, StoreEntry, StoreError, StoreFuture, StoreWatch, StoreWatchSource,
};
