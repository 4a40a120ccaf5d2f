//! The number of requests under way, and whether new requests are accepted.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Shared by all HTTP threads of a process.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    in_flight: AtomicUsize,
    draining: AtomicBool,
    ended: Notify,
    cut_off: CancellationToken,
}

/// One request under way. It is dropped with its answer's body.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Traffic>);

impl Traffic {
    /// Counts a request until the result is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        InFlight(Arc::clone(self))
    }

    /// Makes [`is_draining`](Self::is_draining) true: new requests are refused.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Ends all requests under way, because the grace is over. Clients get an error.
    pub(crate) fn cut_off(&self) {
        self.cut_off.cancel();
    }

    /// Cancelled by [`cut_off`](Self::cut_off). A child for each thread, because waiting for it takes a lock.
    pub(crate) fn cut_off_token(&self) -> CancellationToken {
        self.cut_off.child_token()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Waits until no request is under way.
    pub(crate) async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            if self.in_flight.load(Ordering::SeqCst) == 0 {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // Only a drain waits for this, so no wake-up is sent otherwise.
        if self.0.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 && self.0.is_draining() {
            self.0.ended.notify_waiters();
        }
    }
}
