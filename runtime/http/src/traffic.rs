//! The number of requests under way, and whether new requests are accepted.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// Shared by all HTTP threads of a process.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    in_flight: AtomicUsize,
    draining: AtomicBool,
    ended: Notify,
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
