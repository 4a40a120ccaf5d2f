//! Which worker holds which KV blocks: the index a router asks before every decision.
//!
//! Workers tell what their KV caches store and evict ([`KvEvent`](signalbox_protocol::KvEvent)); the index answers,
//! for the block hashes of a prompt, how many *leading* blocks each worker holds ([`KvIndex::overlaps`]). One
//! structure serves all models, since the hashes are salted by model.
//!
//! What it promises:
//! - A credit is exact: the blocks counted for a worker are those it was said to hold, from the first block of the
//!   prompt on, with no hole. Events may store and remove blocks in any order.
//! - Repeated stores and removals of unknown blocks change nothing.
//! - After [`KvIndex::remove_worker`] nothing of that worker is left.
//! - Memory stays under the bound given to [`KvIndex::new`]; stores past it are refused and counted, and what is
//!   refused is not credited.
//!
//! It knows no clock, no I/O and no order of events: whoever applies events keeps each worker's stream in order.
//!
//! # Layout
//!
//! A block's hash names its whole prefix, so the set of hashes a worker holds says everything; parents only tell
//! where a block is best kept. Blocks that follow one another lie side by side in a *strand*, and a strand is cut
//! into *segments* of neighbouring blocks with equal holders, as bit sets of [`WorkerSlot`]s for each tier. One
//! hash table leads from a hash to its place in a strand. A lookup asks that table once a strand, compares the rest
//! of the strand with the prompt side by side, and narrows the set of workers still in the running once a segment.
//!
//! A store costs one visit to the table for each block that is new, and that is nearly all it costs: a table of
//! millions of blocks is in no near cache. So its slots are eight bytes and visited many at a time; a worker's
//! next event mostly continues what it stored last, which is found without the table, and so is a block that
//! follows its parent in a strand. Blocks that go together go with their strand, without a visit each: the table leads
//! nowhere for them until it is swept.
//!
//! ```text
//! places:  hash ─▶ (strand, offset)
//! strand:  [h0 h1 h2 h3 h4 h5 h6]            blocks side by side
//!          |── a b c ──|─ a c ─|a|           segments: who holds them
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

/// A worker's dense place in the index, the load table and every column. Given by the roster, reused after removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerSlot(pub u32);

/// Slots at and past this are refused: columns and bit sets are as long as the greatest slot, so that one absurd
/// number would cost gigabytes. Sixteen times the workers of the largest deployments planned for.
pub const MAX_WORKER_SLOTS: u32 = 65_536;

/// What the allocator keeps beside each heap allocation, in bytes, as counted in [`IndexStats::bytes`]: a header
/// and rounding, about this much with glibc and jemalloc.
const ALLOCATION_OVERHEAD: usize = 16;
