//! A request while it is under way.

use std::time::Duration;

use signalbox_router::OfflinePlacement;

/// What is known of a request between its arrival and its end.
#[derive(Debug, Default)]
pub(super) struct RequestState {
    /// Its worker, and the load reserved there. Dropped when the request ends or its worker fails.
    pub(super) placement: Option<OfflinePlacement>,
    /// The tokens that the client has.
    pub(super) answer: Vec<u32>,
    /// When the client received the latest of them.
    pub(super) latest_token: Option<Duration>,
    /// How often it was placed.
    pub(super) attempts: u32,
    /// When it was placed last.
    pub(super) placed_at: Duration,
    /// When the first token since then came, and the tokens that were generated up to it.
    pub(super) first_token_at: Option<(Duration, u32)>,
}
