//! The request plane: requests and token streams between routers and workers, over TCP, or over NATS where routers
//! cannot dial workers.
//!
//! Every token of every answer crosses this crate. So one connection carries all streams between a router thread and a
//! worker, and frames that are ready together travel together: the tokens of one engine step leave the worker in one
//! write, and one read at the router wakes every stream they belong to. `README.md` beside this crate documents each
//! byte on the wire, so that other programs can implement the protocol.
//!
//! - Router side, bound to one actix arbiter: [`LinkHandle`] opens [`ResponseStream`]s over a link that dials, pings,
//!   reconnects and drains by itself. Tokens do not cross threads.
//! - Worker side, on any tokio runtime: [`Server`] passes each call to a [`CallHandler`], which answers through a
//!   [`Responder`] from any thread.
//! - With a [`NatsTransport`] on both sides the same protocol runs over NATS messages. That costs more per token, and the
//!   worker needs no port.
//!
//! The crate promises:
//! - The events of a stream arrive in order, and the last one is exactly one `End` or error.
//! - A dropped stream is cancelled at the worker at once.
//! - A reader that stops reading costs a bounded amount of memory and does not delay other streams.
//! - An error shows whether a call may have reached the worker ([`LinkError::Lost`]) or never left the router
//!   ([`LinkError::Unreachable`]).
//!
//! The crate does not interpret the bytes it carries, and it never retries a call.

mod call_parts;
mod client;
mod frame;
mod hello;
mod nats;
mod read_buffer;
mod server;
mod stream;
#[cfg(test)]
mod tests;

pub use call_parts::CallParts;
#[cfg(feature = "bench-support")]
pub use client::bench_support;
pub use client::{
    LinkConfig, LinkError, LinkEvent, LinkHandle, LinkLosses, LinkState, ResponseEvent, ResponseStream,
    StateChanges,
};
pub use frame::{MAX_PIECE_BYTES, PieceTokens, TokenIds};
pub use nats::{InvalidNamespace, NatsTransport};
pub use server::{CallHandler, CallerGone, Responder, Server, ServerConfig, ServerHandle};
