//! How KV cache events get from workers to routers, and how a router notices that events were lost.
//!
//! ```text
//! worker   engine ─▶ EventLog: numbers, retains the newest, mirrors the cache ─▶ EventPlane::publish
//!                        │ snapshot                                                  │
//! router                 └──────────── request plane ──────────▶ StreamCursor ◀──── Subscription
//!                                                                 apply, ignore, or resync
//! ```
//!
//! Without NATS the batches travel over the request plane too, and the router publishes them on its `MemoryPlane`.
//!
//! - [`encode_batch`], [`decode_batches`]: the bytes, the same on every transport. `README.md` beside this crate's
//!   manifest describes them.
//! - [`EventLog`]: the worker side. The batches of one incarnation of a worker are numbered from 0 without gaps.
//! - [`EventPlane`]: delivers batches at least once and in order, and reports a gap as [`Delivery::Skipped`].
//!   [`MemoryPlane`] works within a process, [`NatsPlane`] over NATS JetStream.
//! - [`StreamCursor`]: the router side. Checks each batch, so that a worker's batches apply in order and once.
//! - [`Broadcast`]: short messages among routers, which may be lost: [`MemoryBroadcast`], [`NatsBroadcast`].
//!
//! This crate knows neither the index nor the engines, and makes no routing decision.

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
pub use log::{EventLog, LogPosition, LogReader, NotRetained};
pub use memory::MemoryPlane;
pub use nats::{NatsPlane, NatsPlaneConfig};
pub use plane::{Delivery, DeliverySource, EventPlane, Subscription};
pub use retained::Retention;
