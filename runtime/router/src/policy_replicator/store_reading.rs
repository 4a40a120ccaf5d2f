//! Whether this router has what the policy store holds, so that it can take traffic.
//!
//! A router that takes traffic earlier decides with the default policy what another policy should decide. One whose store
//! stays away must not wait for ever: policies are worth less than answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How long a router without its store takes no traffic. NATS is back within seconds after a restart or a change of its
/// leaders.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The state of the first reading. It outlasts the actor. Clone = handle.
#[derive(Debug, Clone)]
pub(super) struct StoreReading(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    patience: Duration,
    is_received: AtomicBool,
    is_over: AtomicBool,
}

impl StoreReading {
    pub(super) fn new(patience: Duration) -> Self {
        Self(Arc::new(Shared {
            patience,
            is_received: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        }))
    }

    pub(super) fn patience(&self) -> Duration {
        self.0.patience
    }

    /// All entries of the store have arrived.
    pub(super) fn all_received(&self) {
        self.0.is_received.store(true, Ordering::Release);
    }

    /// Every entry that has arrived is followed, or has failed once.
    pub(super) fn nothing_new_waits(&self) {
        if self.0.is_received.load(Ordering::Acquire) {
            self.0.is_over.store(true, Ordering::Release);
        }
    }

    /// The patience is over.
    pub(super) fn give_up(&self) {
        if !self.0.is_over.swap(true, Ordering::AcqRel) {
            tracing::warn!(
                waited = ?self.0.patience,
                "the policy store was not read; the router takes traffic, and the default policy decides until it was"
            );
        }
    }

    /// Whether this router can take traffic: the store was read once, or the patience is over.
    pub(super) fn is_over(&self) -> bool {
        self.0.is_over.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_ends_when_everything_received_is_followed_or_the_patience_is_over() {
        let reading = StoreReading::new(PATIENCE);
        reading.nothing_new_waits();
        assert!(!reading.is_over(), "more may come");
        reading.all_received();
        assert!(!reading.is_over(), "nothing is followed yet");
        reading.nothing_new_waits();
        assert!(reading.is_over());
        let away = StoreReading::new(PATIENCE);
        away.give_up();
        assert!(away.is_over());
    }
}
