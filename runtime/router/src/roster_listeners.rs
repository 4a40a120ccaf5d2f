//! Who learns that the roster's view changed.

use std::sync::Arc;

use actix::{WeakRecipient, prelude::*};
use parking_lot::Mutex;

/// The view changed. Only a hint: every decision reads the view itself.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct RosterChanged;

/// The actors that receive [`RosterChanged`]. They are kept apart from the roster's actor, and so outlast its failure.
/// A listener may hold these listeners itself, so they do not keep it running. Clone = handle.
#[derive(Debug, Clone, Default)]
pub(crate) struct RosterListeners(Arc<Mutex<Vec<WeakRecipient<RosterChanged>>>>);

impl RosterListeners {
    /// From now on `listener` receives a [`RosterChanged`] after each change. Read the view after this call.
    pub(crate) fn register(&self, listener: Recipient<RosterChanged>) {
        self.0.lock().push(listener.downgrade());
    }

    pub(crate) fn notify(&self) {
        let mut listeners = self.0.lock();
        listeners.retain(|listener| {
            // A closed mailbox belongs to an actor that ended; a full one needs no second hint.
            let listener = listener.upgrade().filter(Recipient::connected);
            listener.is_some_and(|listener| {
                let _ = listener.try_send(RosterChanged);
                true
            })
        });
    }
}
