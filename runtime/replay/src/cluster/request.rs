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
}
