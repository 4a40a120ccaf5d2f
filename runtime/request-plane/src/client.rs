//! The router's side: links to workers, each bound to one actix arbiter.
//!
//! A link is an actor (`link`), which dials, reconnects and closes, around state that the handle and the streams share on
//! the same thread (`state`, with `mux` for the streams). To open a call and to read a token they access that state
//! directly, without a mailbox in between. While the link is connected, one task (`pump`) moves bytes between the state
//! and the socket.

mod backoff;
#[cfg(feature = "bench-support")]
pub mod bench_support;
mod config;
mod dial;
mod error;
mod handle;
mod link;
mod link_events;
mod link_log;
mod link_state;
mod liveness;
mod mux;
mod pump;
mod response;
mod response_event;
mod state;

pub use config::LinkConfig;
pub use error::LinkError;
pub use handle::LinkHandle;
pub use link_events::LinkEvent;
pub use link_log::LinkLosses;
pub use link_state::{LinkState, StateChanges};
pub use response::ResponseStream;
pub use response_event::ResponseEvent;
