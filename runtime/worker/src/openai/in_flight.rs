//! Counts the requests that the adapter has open at its engine, and the pieces of answers that the engine has sent.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use tokio::sync::Notify;

/// The number of open requests. Clone = handle.
#[derive(Debug, Clone, Default)]
pub(crate) struct InFlight(Arc<Count>);

#[derive(Debug, Default)]
struct Count {
    open: AtomicU32,
    pieces: AtomicU64,
    changed: Notify,
}

/// One open request. It counts until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlightGuard(InFlight);

impl InFlight {
    /// Counts a request.
    pub(crate) fn enter(&self) -> InFlightGuard {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        self.0.changed.notify_one();
        InFlightGuard(self.clone())
    }

    /// The number of open requests.
    pub(crate) fn count(&self) -> u32 {
        self.0.open.load(Ordering::Relaxed)
    }

    /// The engine has sent a piece of an answer.
    pub(crate) fn received(&self) {
        self.0.pieces.fetch_add(1, Ordering::Relaxed);
    }

    /// How many pieces the engine has sent.
    pub(crate) fn pieces(&self) -> u64 {
        self.0.pieces.load(Ordering::Relaxed)
    }

    /// Returns when the number of open requests may have changed since the last call. One task at a time waits here.
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let count = &self.0.0;
        count.open.fetch_sub(1, Ordering::Relaxed);
        count.changed.notify_one();
    }
}
