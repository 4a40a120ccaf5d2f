//! Where a reader is in the stream, and whether the stream still has what comes next. Pure.
//!
//! JetStream does not say: a consumer that asks for a message which is gone gets the next one there is.

use std::time::Duration;

use signalbox_nats::async_nats::{datetime::DateTime, jetstream::stream::Info};

/// What is read before a reader's beginning: a subscriber's snapshot may be this much older than its subscription,
/// and the clocks of router and server may differ by as much.
const LOOK_BACK: Duration = Duration::from_secs(30);

/// The stream as it is, of all that the server tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extent {
    /// When it was created: tells it from another one of the same name.
    pub(super) created: DateTime,
    /// The first sequence there is, or that comes next.
    pub(super) first: u64,
    /// The sequence that comes next.
    pub(super) next: u64,
    /// Everything from then on is still there, as far as this can be known.
    pub(super) complete_since: DateTime,
}

/// What a reader has received: everything of `stream` before `next`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) stream: DateTime,
    pub(super) next: u64,
}

/// Whether a reader can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Continuity {
    /// Nothing is missing.
    Whole,
    /// What was before `next` is gone, and the reader had not seen all of it.
    FrontLost { next: u64 },
    /// The sequences mean something else now: another stream, or one that lost its end.
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

    /// Whether a reader that begins at `began` finds everything that its subscribers' snapshots may lack.
    pub(super) fn reaches_back(&self, began: DateTime) -> bool {
        if self.complete_since == self.created {
            // A stream made before there were subscribers lost nothing they need.
            self.created <= began
        } else {
            self.complete_since <= beginning(began)
        }
    }
}

/// From when on a reader that begins at `began` reads.
pub(super) fn beginning(began: DateTime) -> DateTime {
    began - LOOK_BACK
}

impl Position {
    /// Compares with the stream as it is.
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
    fn what_the_reader_lacks_is_gone_or_not() {
        let position = Position {
            stream: at(0),
            next: 5,
        };
        assert_eq!(position.check(&extent(1, 9)), Continuity::Whole);
        assert_eq!(
            position.check(&extent(5, 5)),
            Continuity::Whole,
            "all was read, none is left"
        );
        assert_eq!(position.check(&extent(5, 9)), Continuity::Whole);
        assert_eq!(position.check(&extent(6, 9)), Continuity::FrontLost { next: 6 });
        assert_eq!(position.check(&extent(9, 9)), Continuity::FrontLost { next: 9 });
        assert_eq!(
            position.check(&extent(1, 4)),
            Continuity::Renumbered,
            "the end is lost"
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
            "the stream began before there were snapshots"
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
