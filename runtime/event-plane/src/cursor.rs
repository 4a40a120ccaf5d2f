//! The router side: the order of one worker's batches.

use signalbox_protocol::WorkerEpoch;

/// A router's position in one worker's stream. Pure: it checks batches, and the caller acts on the result.
///
/// A transport may repeat or lose batches. The cursor accepts each batch once and in order, so that the index is exact.
#[derive(Debug, Default, Clone)]
pub struct StreamCursor {
    /// The next batch to apply.
    position: Option<(WorkerEpoch, u64)>,
}

/// What the caller does with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchCheck {
    /// Apply the batch: it is the next one. The cursor has moved past it.
    Apply,
    /// Ignore the batch: it was applied before, or the snapshot contains it.
    Duplicate,
    /// The batches from `expected` on are missing: take a snapshot and [`resume`](StreamCursor::resume) after it. The
    /// cursor has not moved.
    Gap {
        /// The next batch to apply.
        expected: u64,
    },
    /// Ignore the batch: it is from an earlier incarnation of the worker.
    OldEpoch,
    /// The batch is from a later incarnation of the worker. The cursor has not moved, and returns this until
    /// [`resume`](StreamCursor::resume) sets the new epoch. A router ignores the batch: the later incarnation gets a
    /// stream and a cursor of its own.
    NewEpoch,
}

impl StreamCursor {
    /// Checks a batch and, for [`BatchCheck::Apply`], moves past it.
    ///
    /// A new cursor accepts batch 0 of any epoch; any other batch is a gap from 0.
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

    /// Continues after a snapshot: `next_sequence` is the first batch that it does not contain.
    pub fn resume(&mut self, epoch: WorkerEpoch, next_sequence: u64) {
        self.position = Some((epoch, next_sequence));
    }

    /// The next batch to apply; `None` for a new cursor.
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
    fn a_stream_that_begins_in_the_middle_is_a_gap_from_0() {
        let mut cursor = StreamCursor::default();
        assert_eq!(cursor.check(FIRST, 7), BatchCheck::Gap { expected: 0 });
        assert_eq!(cursor.position(), None);
        cursor.resume(FIRST, 8);
        assert_eq!(cursor.check(FIRST, 7), BatchCheck::Duplicate);
        assert_eq!(cursor.check(FIRST, 8), BatchCheck::Apply);
    }

    #[test]
    fn a_new_epoch_starts_at_0_and_the_old_epoch_is_ignored() {
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
    fn a_new_epoch_that_begins_in_the_middle_is_a_gap_from_0() {
        let mut cursor = StreamCursor::default();
        cursor.resume(FIRST, 40);
        assert_eq!(cursor.check(SECOND, 5), BatchCheck::NewEpoch);
        cursor.resume(SECOND, 0);
        assert_eq!(cursor.check(SECOND, 5), BatchCheck::Gap { expected: 0 });
        assert_eq!(cursor.check(FIRST, 40), BatchCheck::OldEpoch);
    }
}
