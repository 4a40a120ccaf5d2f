//! Requests and token streams between routers and workers, over TCP, or over NATS where workers cannot be dialled.
//!
//! This is the hot path: every token of every answer crosses it. So one connection carries all streams between a
//! router thread and a worker, and what is ready together travels together: the tokens of one engine step leave the
//! worker in one write, and one read at the router wakes every stream they belong to. `README.md` beside this crate
//! documents each byte on the wire, so that other programs can speak it.
//!
//! - Router side, bound to one actix arbiter: [`LinkHandle`] opens [`ResponseStream`]s over a link that dials,
//!   pings, reconnects and drains by itself. Nothing crosses threads per token.
//! - Worker side, on any tokio runtime: [`Server`] hands each call to a [`CallHandler`], which answers through a
//!   [`Responder`] from any thread.
//! - Both sides may be given a [`NatsTransport`]: then the same protocol runs over NATS messages. That costs more a
//!   token, and needs no port of the worker.
//!
//! It promises: events of a stream arrive in order and end with exactly one `End` or error; a dropped stream is
//! cancelled at the worker at once; a reader that stops reading costs a bounded amount of memory and delays nobody
//! else; a lost connection is told from a call that never left ([`LinkError::Lost`], [`LinkError::Unreachable`]).
//! It does not know what the bytes it carries mean, and never retries a call.

mod client;
mod frame;
mod hello;
mod nats;
mod read_buffer;
mod server;
mod stream;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use signalbox_protocol::Call;

#[cfg(feature = "bench-support")]
pub use client::bench_support;
pub use client::{
    LinkConfig, LinkError, LinkEvent, LinkHandle, LinkState, ResponseEvent, ResponseStream, StateChanges,
};
pub use frame::MAX_PIECE_BYTES;
pub use nats::{InvalidNamespace, NatsTransport};
pub use server::{CallHandler, CallerGone, Responder, Server, ServerConfig, ServerHandle};

/// A call with its bulk parts, which travel as bytes beside the call's JSON.
#[derive(Debug, Clone)]
pub struct CallParts {
    /// What is asked.
    pub call: Call,
    /// The prompt's token ids; empty for all but [`Call::Generate`].
    pub tokens: Vec<u32>,
    /// The client's own request body as it came; empty for all but [`Call::Generate`].
    pub body: Bytes,
}
