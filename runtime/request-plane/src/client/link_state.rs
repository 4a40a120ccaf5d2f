//! The states of a link, as its owner sees them.

use std::{cell::Cell, rc::Rc};

/// The state of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkState {
    /// The link dials, or waits for the worker's hello. Calls are queued.
    Connecting,
    /// The link is connected. Calls are sent.
    Up,
    /// The worker takes no new calls. Open streams go on.
    Draining,
    /// The last connection or dial failed, and the link waits until the next dial. Calls fail at once.
    Backoff,
    /// The owner has closed the link.
    Closed,
}

/// Counts the changes of state of several links of one thread, so that the owner of a thousand links reads their states
/// again only after a change. Clone = handle.
#[derive(Debug, Clone, Default)]
pub struct StateChanges(Rc<Cell<u64>>);

impl StateChanges {
    /// Number of changes so far.
    pub fn count(&self) -> u64 {
        self.0.get()
    }

    /// Counts one more change.
    pub(super) fn increment(&self) {
        self.0.set(self.0.get() + 1);
    }
}
