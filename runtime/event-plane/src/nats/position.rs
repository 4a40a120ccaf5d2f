//! The position of a reader in the stream, and whether the stream still has the next message. Pure.
//!
//! JetStream does not report it: a consumer that starts at a removed message receives the next one that is left.

use std::time::Duration;

use signalbox_nats::async_nats::{datetime::DateTime, jetstream::stream::Info};

/// How far before its start a reader begins: a subscriber's snapshot may be this much older than its subscription, and
/// the clocks of router and server may differ by as much.
const LOOK_BACK: Duration = Duration::from_secs(30);

/// The state of the stream, as the server reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    /// When the stream was created, which identifies it among streams of the same name.
    pub(super) created: DateTime,
    /// The first sequence that the stream has; the next one if it is empty.
    pub(super) first: u64,
    /// The next sequence.
    pub(super) next: u64,
    /// Since when no message is known to be missing.
    pub(super) complete_since: DateTime,
}

/// A reader's position: it has received everything of `stream` before `next`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) stream: DateTime,
    pub(super) next: u64,
}

/// Whether a reader can continue at its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Continuity {
    /// No message is missing.
    Whole,
    /// Messages before `next` were removed that the reader had not received.
    FrontLost { next: u64 },
    /// The sequences have another meaning now: the stream is another one, or it lost its end.
    Renumbered,
}

impl Extent {
    pub(super) fn of(info: &Info) -> Self {
        let state = &info.state;
        let next = state.last_sequence + 1;
        let first = match state.messages {
            0 => next,
            _ => state.first_sequence,
        };
        let complete_since = match (first, state.messages) {
            (1, _) => info.created,
            (_, 0) => state.last_timestamp,
            _ => state.first_timestamp,
        };
        Self {
            created: info.created,
            first,
            next,
            complete_since,
        }
    }

    /// Whether the stream has everything that the snapshots of a reader started at `began` may lack.
    pub(super) fn reaches_back(&self, began: DateTime) -> bool {
        if self.complete_since == self.created {
            // A stream created before the first subscription has lost nothing that it needs.
            self.created <= began
        } else {
            self.complete_since <= beginning(began)
        }
    }
}

/// The time from which a reader started at `began` reads.
pub(super) fn beginning(began: DateTime) -> DateTime {
    began - LOOK_BACK
}

impl Position {
    /// Compares the position with the stream.
    pub(super) fn check(&self, extent: &Extent) -> Continuity {
        if extent.created != self.stream || extent.next < self.next {
            Continuity::Renumbered
        } else if extent.first > self.next {
            Continuity::FrontLost { next: extent.first }
        } else {
            Continuity::Whole
        }
    }
}

#[cfg(test)]
mod tests {
    use signalbox_nats::async_nats::datetime;

    use super::*;

    fn at(seconds: u64) -> DateTime {
        datetime::parse_rfc3339("2026-01-01T00:00:00Z").unwrap() + Duration::from_secs(seconds)
    }

    fn extent(first: u64, next: u64) -> Extent {
        Extent {
            created: at(0),
            first,
            next,
            complete_since: at(if first == 1 { 0 } else { 100 }),
        }
    }

    #[test]
    fn removed_unread_messages_and_new_streams_are_detected() {
        let position = Position {
            stream: at(0),
            next: 5,
        };
        assert_eq!(position.check(&extent(1, 9)), Continuity::Whole);
        assert_eq!(
            position.check(&extent(5, 5)),
            Continuity::Whole,
            "all messages were read, none is left"
        );
        assert_eq!(position.check(&extent(5, 9)), Continuity::Whole);
        assert_eq!(position.check(&extent(6, 9)), Continuity::FrontLost { next: 6 });
        assert_eq!(position.check(&extent(9, 9)), Continuity::FrontLost { next: 9 });
        assert_eq!(
            position.check(&extent(1, 4)),
            Continuity::Renumbered,
            "the stream lost its end"
        );
        let another = Extent {
            created: at(1),
            ..extent(1, 9)
        };
        assert_eq!(position.check(&another), Continuity::Renumbered);
    }

    #[test]
    fn a_new_reader_needs_the_last_half_minute() {
        assert!(extent(1, 1).reaches_back(at(0)));
        assert!(
            extent(1, 9).reaches_back(at(5)),
            "the stream is older than the snapshots"
        );
        let younger = Extent {
            created: at(6),
            complete_since: at(6),
            ..extent(1, 9)
        };
        assert!(!younger.reaches_back(at(5)));
        assert!(extent(7, 9).reaches_back(at(130)));
        assert!(!extent(7, 9).reaches_back(at(129)));
    }
}
