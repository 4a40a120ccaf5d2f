//! What a stream's responder learns from its connection: that the caller is gone, or that the stream has room again.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, futures::Notified};

/// The call needs no more work: the router cancelled the stream, the connection is lost, or the stream's backlog passed
/// its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the caller is gone")]
pub struct CallerGone;

/// Carries changes of a stream from the connection to the stream's responder.
#[derive(Debug, Default)]
pub(super) struct StreamSignal {
    cancelled: AtomicBool,
    /// Notified when the stream is cancelled or has room for another piece.
    changed: Notify,
}

impl StreamSignal {
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    pub(super) fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// Completes at the next [`wake`](Self::wake).
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}
