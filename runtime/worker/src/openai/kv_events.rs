//! The KV events of an engine next door: read over ZeroMQ, translated to hashes of our own, published.
//!
//! vLLM and SGLang publish what their KV cache stores and evicts, under hashes of their own. A [`KvEventSource`] reads
//! one such stream, which is that of one data-parallel rank. It replaces the engine's hashes by ours, which routers
//! compute from the tokens of a prompt, and publishes the result in the worker's
//! [`EventLog`](signalbox_event_plane::EventLog). The engine's hashes go no further.
//!
//! ```text
//! engine PUB ──live──▶ frames ─▶ order: number, gap, restart ─▶ payload: bytes to events ─▶ normalise: our hashes ─▶ EventLog
//! engine ROUTER ◀─────▶ replay ──▲                                                            └▶ facts, has_appeared
//! ```
//!
//! It promises:
//! - A block is credited only if the engine holds it, as far as its events say. Where events are lost for good, all
//!   blocks are forgotten, and credited again when later events prove them.
//! - No payload stops the source or makes it use memory without bound. What cannot be used is counted by its cause
//!   ([`DropCause`]).
//! - The source connects again for as long as it exists, and stops when it is dropped.
//!
//! One thing is not bounded here: the ZeroMQ library reserves memory for a frame of the length that the peer
//! announces. So the addresses must be those of an engine that the operator trusts.

mod config;
#[cfg(test)]
mod corpus;
mod facts;
mod frames;
#[cfg(test)]
mod fuzz;
mod normalise;
mod order;
mod payload;
mod replay;
mod source;

pub use config::{InvalidEndpoint, KvEventsConfig, resolve_endpoint};
pub use facts::{DropCause, Dropped, KvEventFacts, Replay};
pub use source::KvEventSource;
