//! Whether events really travel: the state of the plane, from what its tasks see.
//!
//! A connection and a stream are not enough: the stream may have lost its quorum, and the server may not permit this
//! process to publish or to read. Each task reports the fault of its own part, and the plane works while no part has one.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use signalbox_protocol::PlaneStatus;
use tokio::sync::watch;

/// The state of all parts. Clone = handle.
#[derive(Debug, Clone)]
pub(super) struct Health(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    parts: Mutex<Parts>,
    status: watch::Sender<PlaneStatus>,
    usable: watch::Sender<bool>,
}

/// The fault of each part; a part without one works.
#[derive(Debug)]
struct Parts {
    stream: Fault,
    reading: Fault,
    publishing: BTreeMap<String, String>,
}

/// Whether a part has a fault.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Fault {
    #[default]
    None,
    /// The part has not worked so far, for no known reason.
    Untried,
    Because(String),
}

impl Health {
    pub(super) fn new() -> Self {
        Self(Arc::new(Shared {
            parts: Mutex::new(Parts {
                stream: Fault::Untried,
                reading: Fault::None,
                publishing: BTreeMap::new(),
            }),
            status: watch::Sender::new(PlaneStatus::connecting("nats")),
            usable: watch::Sender::new(false),
        }))
    }

    pub(super) fn status(&self) -> watch::Receiver<PlaneStatus> {
        self.0.status.subscribe()
    }

    /// Whether there is a connection, and a stream with a leader.
    pub(super) fn usable(&self) -> watch::Receiver<bool> {
        self.0.usable.subscribe()
    }

    pub(super) fn stream_works(&self) {
        self.change(|parts| parts.stream = Fault::None);
    }

    pub(super) fn stream_fails(&self, reason: String) {
        self.change(|parts| parts.stream = Fault::Because(reason));
    }

    /// This process reads from now on, and nothing has arrived yet.
    pub(super) fn reading_starts(&self) {
        self.change(|parts| parts.reading = Fault::Untried);
    }

    pub(super) fn reading_works(&self) {
        self.change(|parts| parts.reading = Fault::None);
    }

    pub(super) fn reading_fails(&self, reason: &str) {
        self.change(|parts| {
            parts.reading = Fault::Because(format!("KV events cannot be read: {reason}"));
        });
    }

    /// The stream has taken a message on `subject`, or the subject is not used any more.
    pub(super) fn publishing_works(&self, subject: &str) {
        // Called for each message, and mostly changes nothing.
        if self.0.parts.lock().publishing.contains_key(subject) {
            self.change(|parts| _ = parts.publishing.remove(subject));
        }
    }

    pub(super) fn publishing_fails(&self, subject: &str, reason: &str) {
        let reason = format!("KV events cannot be published: {reason}");
        self.change(|parts| _ = parts.publishing.insert(subject.to_owned(), reason));
    }

    fn change(&self, change: impl FnOnce(&mut Parts)) {
        let mut parts = self.0.parts.lock();
        change(&mut parts);
        // Within the lock, so that the last change is the last one shown.
        let is_usable = parts.stream == Fault::None;
        self.0
            .usable
            .send_if_modified(|usable| std::mem::replace(usable, is_usable) != is_usable);
        self.0.status.send_if_modified(|status| parts.show(status));
    }
}

impl Parts {
    /// Sets the status, and returns whether it changed.
    fn show(&self, status: &mut PlaneStatus) -> bool {
        let faults = [&self.stream, &self.reading];
        let reason = faults.iter().find_map(|fault| match fault {
            Fault::Because(reason) => Some(reason),
            Fault::None | Fault::Untried => None,
        });
        match reason.or_else(|| self.publishing.values().next()) {
            Some(reason) => status.down(reason),
            // What has not been tried neither works nor fails.
            None if faults.contains(&&Fault::Untried) => false,
            None => status.up(),
        }
    }
}

#[cfg(test)]
mod tests {
    use signalbox_protocol::PlaneState;

    use super::*;

    fn state(health: &Health) -> (PlaneState, String) {
        let status = health.status().borrow().clone();
        (status.state, status.detail)
    }

    #[test]
    fn the_plane_works_while_every_part_does() {
        let health = Health::new();
        health.reading_starts();
        health.stream_works();
        assert_eq!(state(&health).0, PlaneState::Connecting, "nothing was read yet");
        assert!(*health.usable().borrow(), "reading may begin");
        health.reading_works();
        assert_eq!(state(&health).0, PlaneState::Up);
        health.publishing_fails("a", "no answer");
        health.publishing_fails("b", "no answer");
        health.publishing_works("a");
        assert_eq!(
            state(&health),
            (
                PlaneState::Down,
                "KV events cannot be published: no answer".into()
            )
        );
        assert!(*health.usable().borrow(), "publishing may be tried again");
        health.stream_fails("gone".into());
        assert_eq!(state(&health), (PlaneState::Down, "gone".into()));
        health.stream_works();
        health.publishing_works("b");
        assert_eq!(state(&health).0, PlaneState::Up);
        health.reading_fails("denied");
        assert_eq!(state(&health).0, PlaneState::Down);
    }
}
