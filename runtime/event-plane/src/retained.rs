//! The newest entries of a numbered stream, within a bound.

use std::collections::VecDeque;

/// How much of a stream is retained for late or slow readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Most batches.
    pub batches: usize,
    /// Most bytes, as encoded. The newest batch is retained whatever its size.
    pub bytes: usize,
}

impl Retention {
    /// What a router retains of each worker: ten seconds of a busy engine. A subscriber is usually milliseconds behind,
    /// and one that falls behind this takes a snapshot. A thousand busy workers need 256 MiB.
    pub const OF_A_ROUTER: Self = Self {
        batches: 1024,
        bytes: 256 << 10,
    };
}

impl Default for Retention {
    /// 16,384 batches: an engine with a hundred steps a second fills them in about three minutes, longer than a router
    /// needs to reconnect. 16 MiB: two million blocks, beyond which a snapshot of the cache is smaller.
    fn default() -> Self {
        Self {
            batches: 16_384,
            bytes: 16 << 20,
        }
    }
}

/// The newest entries. The oldest are dropped first.
#[derive(Debug)]
pub(crate) struct RetainedLog<T> {
    retention: Retention,
    /// Each with its size in bytes.
    entries: VecDeque<(T, usize)>,
    /// The position of the first of `entries`.
    oldest: u64,
    bytes: usize,
}

/// What the log has at a position.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup<T> {
    Entry(T),
    /// The entry is not written yet.
    NotWritten,
    /// The entry is not retained any more.
    Dropped {
        oldest: u64,
    },
}

impl<T: Clone> RetainedLog<T> {
    pub(crate) fn new(retention: Retention) -> Self {
        Self {
            retention,
            entries: VecDeque::new(),
            oldest: 0,
            bytes: 0,
        }
    }

    pub(crate) fn push(&mut self, entry: T, bytes: usize) {
        self.entries.push_back((entry, bytes));
        self.bytes += bytes;
        while self.entries.len() > self.retention.batches.max(1)
            || (self.bytes > self.retention.bytes && self.entries.len() > 1)
        {
            let Some((_, bytes)) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= bytes;
            self.oldest += 1;
        }
    }

    /// Drops the entries before `position`.
    pub(crate) fn release(&mut self, position: u64) {
        while self.oldest < position
            && let Some((_, bytes)) = self.entries.pop_front()
        {
            self.bytes -= bytes;
            self.oldest += 1;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn get(&self, position: u64) -> Lookup<T> {
        let Some(index) = position.checked_sub(self.oldest) else {
            return Lookup::Dropped { oldest: self.oldest };
        };
        match self.entries.get(index as usize) {
            Some((entry, _)) => Lookup::Entry(entry.clone()),
            None => Lookup::NotWritten,
        }
    }

    /// The position of the first entry that `is_wanted`, or else of the next entry to be written.
    pub(crate) fn first(&self, mut is_wanted: impl FnMut(&T) -> bool) -> u64 {
        let index = self
            .entries
            .iter()
            .position(|(entry, _)| is_wanted(entry))
            .unwrap_or(self.entries.len());
        self.oldest + index as u64
    }

    pub(crate) fn oldest(&self) -> u64 {
        self.oldest
    }

    /// The position of the next entry to be written.
    pub(crate) fn next(&self) -> u64 {
        self.oldest + self.entries.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entries_are_dropped_when_there_are_too_many_or_too_many_bytes() {
        let mut log = RetainedLog::new(Retention {
            batches: 3,
            bytes: 100,
        });
        for entry in 0..4 {
            log.push(entry, 10);
        }
        assert_eq!(log.get(0), Lookup::Dropped { oldest: 1 });
        assert_eq!(
            (log.get(1), log.get(3), log.get(4)),
            (Lookup::Entry(1), Lookup::Entry(3), Lookup::NotWritten)
        );
        log.push(4, 85);
        assert_eq!((log.oldest(), log.next()), (3, 5), "10 and 85 bytes fit");
        log.push(5, 1000);
        assert_eq!(
            (log.oldest(), log.get(5)),
            (5, Lookup::Entry(5)),
            "the newest stays"
        );
        assert_eq!((log.first(|entry| *entry == 5), log.first(|_| false)), (5, 6));
    }

    #[test]
    fn released_entries_make_room() {
        let mut log = RetainedLog::new(Retention {
            batches: 10,
            bytes: 100,
        });
        for entry in 0..4 {
            log.push(entry, 30);
        }
        assert_eq!((log.oldest(), log.len()), (1, 3), "three of 30 bytes fit");
        log.release(3);
        log.release(0);
        assert_eq!((log.oldest(), log.len()), (3, 1));
        log.push(4, 70);
        assert_eq!((log.oldest(), log.len()), (3, 2), "30 and 70 bytes fit");
        log.release(100);
        assert_eq!((log.oldest(), log.next(), log.len()), (5, 5, 0));
    }
}
