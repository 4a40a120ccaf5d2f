//! How KV cache events get from workers to routers, and how nobody is misled when some get lost.
//!
//! ```text
//! worker   engine ─▶ EventLog: numbers, keeps the newest, mirrors the cache ─▶ EventPlane::publish
//!                        │ snapshot                                                │
//! router                 └──────────── request plane ──────────▶ StreamCursor ◀── Subscription
//!                                                                 apply, ignore, or resync
//! ```
//!
//! - [`encode_batch`], [`decode_batches`]: the bytes, the same on every transport; `README.md` beside this crate's
//!   manifest describes them.
//! - [`EventLog`]: the worker side. Batches of one worker life are numbered from 0 without holes.
//! - [`EventPlane`]: delivers at least once and in order, and says [`Delivery::Skipped`] rather than hide a hole.
//!   [`MemoryPlane`] does so within a process, [`NatsPlane`] over NATS JetStream.
//! - [`StreamCursor`]: the router side. Judges each batch, so that a worker's changes apply in order, once, or not
//!   at all.
//! - [`Broadcast`]: short messages among routers, which may be lost: [`MemoryBroadcast`], [`NatsBroadcast`].
//!
//! It knows neither the index nor the engines, and decides nothing about routing.

mod broadcast;
mod codec;
mod cursor;
mod log;
mod memory;
mod nats;
mod plane;
mod retained;
mod subject;

pub use broadcast::{Broadcast, Listener, MemoryBroadcast, NatsBroadcast};
pub use codec::{CodecError, decode_batch, decode_batches, decode_snapshot, encode_batch, encode_snapshot};
pub use cursor::{BatchCheck, StreamCursor};
pub use log::{EventLog, LogReader, NotRetained};
pub use memory::MemoryPlane;
pub use nats::{NatsPlane, NatsPlaneConfig};
pub use plane::{Delivery, DeliverySource, EventPlane, Subscription};
pub use retained::Retention;
