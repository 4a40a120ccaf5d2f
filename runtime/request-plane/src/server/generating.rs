//! The number of open Generate streams of a server, for which a drain waits.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// Counts the open Generate streams.
#[derive(Debug, Default)]
pub(super) struct Generating {
    count: AtomicUsize,
    /// Notified when the count reaches 0.
    idle: Notify,
}

impl Generating {
    /// Counts a stream until the guard is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> GeneratingGuard {
        // SeqCst, as the flag `draining` of the server: a drain either refuses the stream or waits for it.
        self.count.fetch_add(1, Ordering::SeqCst);
        GeneratingGuard(self.clone())
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Returns once no Generate stream is open.
    pub(super) async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            if self.count() == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// One open Generate stream.
#[derive(Debug)]
pub(super) struct GeneratingGuard(Arc<Generating>);

impl Drop for GeneratingGuard {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
