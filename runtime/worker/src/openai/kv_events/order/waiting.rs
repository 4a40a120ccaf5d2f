//! Live batches that arrive during a replay.

use std::collections::VecDeque;

use super::super::frames::Numbered;

/// Most live batches held during a replay: tens of seconds of a busy engine. Later ones are dropped, which leaves a gap
/// that the next replay fills.
pub(super) const MAX_WAITING: usize = 4096;
/// Most bytes of those.
pub(super) const MAX_WAITING_BYTES: usize = 32 << 20;

/// Batches in the order of their arrival, within bounds.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) batches: VecDeque<Numbered>,
    /// Of their payloads.
    pub(super) bytes: usize,
}

impl Waiting {
    /// Adds a batch, or drops it if there is no room.
    pub(super) fn push(&mut self, batch: Numbered) {
        let bytes = self.bytes + batch.payload.len();
        if self.batches.len() < MAX_WAITING && bytes <= MAX_WAITING_BYTES {
            self.bytes = bytes;
            self.batches.push_back(batch);
        }
    }

    /// Puts the batch back that was taken last, or the first one in.
    pub(super) fn put_back(&mut self, batch: Numbered) {
        self.bytes += batch.payload.len();
        self.batches.push_front(batch);
    }

    /// Takes the oldest batch.
    pub(super) fn pop(&mut self) -> Option<Numbered> {
        let batch = self.batches.pop_front()?;
        self.bytes -= batch.payload.len();
        Some(batch)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
