//! The KV index: which worker holds which KV blocks. A router looks up each prompt in it before it decides.
//!
//! Workers report the KV blocks they store and evict ([`KvEvent`](signalbox_protocol::KvEvent)). For the block hashes
//! of a prompt, the index returns how many *leading* blocks each worker holds ([`KvIndex::overlaps`]). One index serves
//! all models, because the hashes are salted by model.
//!
//! The index promises:
//! - Overlaps are exact: a worker is credited with the blocks that events stored for it, from the first block of the
//!   prompt on, without a hole. Events may store and remove blocks in any order.
//! - Repeated stores, and removals of unknown blocks, change nothing.
//! - After [`KvIndex::remove_worker`] the index holds no block of that worker.
//! - Memory stays under the bound given to [`KvIndex::new`]. Near the bound, new blocks displace those that no lookup and no
//!   store has used for longest, which are counted and no longer credited. `index/eviction.rs` says which.
//!
//! The index has no clock and does no I/O. The caller applies the events of each worker in order.
//!
//! # Layout
//!
//! A block's hash names its whole prefix, so the set of hashes a worker holds is all that a lookup needs. A parent only
//! shows where to place a block. Blocks that follow each other lie side by side in a *strand*. A strand is cut into
//! *segments* of neighbouring blocks with the same holders, which are bit sets of [`WorkerSlot`]s for each tier. A hash
//! table, the place map, leads from a hash to its place in a strand. A lookup visits the place map once per strand,
//! compares the rest of the strand with the prompt side by side, and narrows the set of matching workers once per
//! segment.
//!
//! A store visits the place map once for each new block, and that is nearly all it costs: a table of millions of blocks
//! does not fit the processor's near caches. So the table's slots are eight bytes, and a store visits many of them at a
//! time. Two kinds of blocks are found without the table: the parent of a worker's next event, which mostly is the block
//! that the worker stored last, and a block that follows its parent in a strand. When all blocks of a strand are
//! removed, the strand is retired without a visit to the table for each block. Until a sweep clears the blocks' slots,
//! these lead to a retired strand, which a search recognises.
//!
//! ```text
//! places:  hash ─▶ (strand, offset)
//! strand:  [h0 h1 h2 h3 h4 h5 h6]            blocks side by side
//!          |── a b c ──|─ a c ─|a|           segments: the workers that hold the blocks
//! worker:  {strands it holds blocks of}      so that it is removed without a search
//! ```

mod index;
mod lookup;
mod place_map;
mod scores;
mod shared;
mod slot_set;
mod strand;
mod strands;

pub use index::{IndexStats, KvIndex};
pub use scores::OverlapScores;
pub use shared::SharedKvIndex;

/// A worker's index in the KV index and the load table. A candidate's row is another number. The roster assigns slots
/// from 0 on, and reuses the slot of a removed worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerSlot(pub u32);

/// Number of slots. The index refuses stores for this slot and greater ones, because columns and bit sets are as long as
/// the greatest slot, so one absurd slot would cost gigabytes. Sixteen times the workers of the largest deployments
/// planned for.
pub const MAX_WORKER_SLOTS: u32 = 65_536;

/// The allocator's overhead for each heap allocation, in bytes, as counted in [`IndexStats::bytes`]: a header and
/// rounding, about this much with glibc and jemalloc.
const ALLOCATION_OVERHEAD: usize = 16;
