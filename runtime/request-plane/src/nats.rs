//! A byte stream over core NATS, for workers that routers cannot dial.
//!
//! The protocol of links and servers runs over it unchanged, so all their promises hold here too. This module only carries
//! bytes: in order, or not at all. Core NATS delivers a message at most once and does not report a loss. So messages are
//! numbered, and a missing number ends the connection; the link above dials again, as it does over TCP. A window bounds
//! the bytes in flight. `README.md` beside this crate documents the messages.

mod connection;
mod flow;
mod listener;
mod message;
mod outage;
mod stream;
mod transport;

pub(crate) use listener::NatsListener;
pub(crate) use stream::{NatsReadHalf, NatsStream, NatsWriteHalf};
pub(crate) use transport::ConnectError;
pub use transport::{InvalidNamespace, NatsTransport};

/// Prefix of the address of a worker that is reached over NATS. The worker's name follows.
pub(crate) const ADDRESS_PREFIX: &str = "nats:";
