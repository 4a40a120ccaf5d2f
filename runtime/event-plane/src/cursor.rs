//! The router side: keeps one worker's stream in order.

use signalbox_protocol::WorkerEpoch;

/// Where a router is in one worker's stream. Pure: it judges, the caller acts.
///
/// A transport may repeat batches and lose them; what the cursor lets through is each batch once and in order, so
/// that an index fed by it is exact.
#[derive(Debug, Default, Clone)]
pub struct StreamCursor {
    /// The next batch wanted.
    position: Option<(WorkerEpoch, u64)>,
}

/// What to do with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchCheck {
    /// Apply it: it is the next one, and the cursor has moved past it.
    Apply,
    /// Ignore it: it was applied before, or is contained in the snapshot.
    Duplicate,
    /// Batches from `expected` on are missing: replay from there, or take a snapshot and
    /// [`resume`](StreamCursor::resume). The cursor has not moved.
    Gap {
        /// The batch that should have come.
        expected: u64,
    },
    /// Ignore it: a former life of the worker said it.
    OldEpoch,
    /// The worker began a new life. Whoever follows it forgets all that the old one held, calls
    /// [`resume`](StreamCursor::resume) at batch 0 of the new epoch and judges the batch again: then it is the first
    /// ([`Apply`](Self::Apply)) or tells a [`Gap`](Self::Gap) from 0. The cursor has not moved.
    NewEpoch,
}

impl StreamCursor {
    /// Judges a batch and, for [`BatchCheck::Apply`], moves past it.
    ///
    /// A cursor that has seen nothing yet takes batch 0 of any epoch, and finds a gap from 0 before any other.
    pub fn check(&mut self, epoch: WorkerEpoch, sequence: u64) -> BatchCheck {
        let expected = match self.position {
            Some((current, _)) if epoch < current => return BatchCheck::OldEpoch,
            Some((current, _)) if epoch > current => return BatchCheck::NewEpoch,
            Some((_, expected)) => expected,
            None => 0,
        };
        if sequence > expected {
            return BatchCheck::Gap { expected };
        }
        if sequence < expected {
            return BatchCheck::Duplicate;
        }
        self.position = Some((epoch, expected + 1));
        BatchCheck::Apply
    }

    /// Goes on from a snapshot: `next_sequence` is the first batch it does not contain.
    pub fn resume(&mut self, epoch: WorkerEpoch, next_sequence: u64) {
        self.position = Some((epoch, next_sequence));
    }

    /// The next batch wanted; `None` before anything was applied or resumed.
    pub fn position(&self) -> Option<(WorkerEpoch, u64)> {
        self.position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: WorkerEpoch = WorkerEpoch(1000);
    const SECOND: WorkerEpoch = WorkerEpoch(2000);

    #[test]
    fn batches_apply_once_and_in_order() {
        let mut cursor = StreamCursor::default();
        assert_eq!(cursor.check(FIRST, 0), BatchCheck::Apply);
        assert_eq!(cursor.check(FIRST, 1), BatchCheck::Apply);
        assert_eq!(cursor.check(FIRST, 0), BatchCheck::Duplicate);
        assert_eq!(cursor.check(FIRST, 1), BatchCheck::Duplicate);
        assert_eq!(cursor.check(FIRST, 3), BatchCheck::Gap { expected: 2 });
        assert_eq!(cursor.check(FIRST, 2), BatchCheck::Apply);
        assert_eq!(cursor.position(), Some((FIRST, 3)));
    }

    #[test]
    fn a_stream_met_in_the_middle_is_a_gap_from_its_beginning() {
        let mut cursor = StreamCursor::default();
        assert_eq!(cursor.check(FIRST, 7), BatchCheck::Gap { expected: 0 });
        assert_eq!(cursor.position(), None);
        cursor.resume(FIRST, 8);
        assert_eq!(cursor.check(FIRST, 7), BatchCheck::Duplicate);
        assert_eq!(cursor.check(FIRST, 8), BatchCheck::Apply);
    }

    #[test]
    fn a_new_life_starts_over_and_the_old_one_is_silenced() {
        let mut cursor = StreamCursor::default();
        cursor.resume(FIRST, 40);
        assert_eq!(cursor.check(SECOND, 0), BatchCheck::NewEpoch);
        assert_eq!(cursor.position(), Some((FIRST, 40)));
        cursor.resume(SECOND, 0);
        assert_eq!(cursor.check(SECOND, 0), BatchCheck::Apply);
        assert_eq!(cursor.check(FIRST, 40), BatchCheck::OldEpoch);
        assert_eq!(cursor.check(SECOND, 1), BatchCheck::Apply);
    }

    #[test]
    fn a_new_life_met_in_the_middle_is_a_gap_from_its_beginning() {
        let mut cursor = StreamCursor::default();
        cursor.resume(FIRST, 40);
        assert_eq!(cursor.check(SECOND, 5), BatchCheck::NewEpoch);
        cursor.resume(SECOND, 0);
        assert_eq!(cursor.check(SECOND, 5), BatchCheck::Gap { expected: 0 });
        assert_eq!(cursor.check(FIRST, 40), BatchCheck::OldEpoch);
    }
}
