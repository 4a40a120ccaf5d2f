//! The newest entries of a stream, numbered, within a bound.

use std::collections::VecDeque;

/// How much of a stream is kept for those who come late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Most batches.
    pub batches: usize,
    /// Most bytes, as encoded. The newest batch is kept whatever its size.
    pub bytes: usize,
}

impl Retention {
    /// What a router keeps of each worker it hears: ten seconds of a busy engine, where a subscriber that is on time is
    /// behind by milliseconds; one that is not takes a snapshot. 256 MiB for a thousand workers that busy.
    pub const OF_A_ROUTER: Self = Self {
        batches: 1024,
        bytes: 256 << 10,
    };
}

impl Default for Retention {
    /// 16,384 batches: an engine that steps a hundred times a second fills them in some three minutes, longer than
    /// a router takes to reconnect. 16 MiB: two million blocks, past which a snapshot of the cache is the smaller
    /// thing to send.
    fn default() -> Self {
        Self {
            batches: 16_384,
            bytes: 16 << 20,
        }
    }
}

/// The newest entries; the oldest go first.
#[derive(Debug)]
pub(crate) struct RetainedLog<T> {
    retention: Retention,
    /// Each with its size.
    entries: VecDeque<(T, usize)>,
    /// Position of the first in `entries`.
    oldest: u64,
    bytes: usize,
}

/// What there is at a position.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum At<T> {
    Entry(T),
    /// Not written yet.
    Ahead,
    /// No longer kept.
    Gone {
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

    /// Drops the entries before `position`: they are needed no more.
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

    pub(crate) fn at(&self, position: u64) -> At<T> {
        let Some(index) = position.checked_sub(self.oldest) else {
            return At::Gone { oldest: self.oldest };
        };
        match self.entries.get(index as usize) {
            Some((entry, _)) => At::Entry(entry.clone()),
            None => At::Ahead,
        }
    }

    /// The position of the first entry that is `wanted`; that of the next one to be written where none is.
    pub(crate) fn first(&self, mut wanted: impl FnMut(&T) -> bool) -> u64 {
        let index = self
            .entries
            .iter()
            .position(|(entry, _)| wanted(entry))
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
    fn the_oldest_go_when_there_are_too_many_or_they_are_too_large() {
        let mut log = RetainedLog::new(Retention {
            batches: 3,
            bytes: 100,
        });
        for entry in 0..4 {
            log.push(entry, 10);
        }
        assert_eq!(log.at(0), At::Gone { oldest: 1 });
        assert_eq!(
            (log.at(1), log.at(3), log.at(4)),
            (At::Entry(1), At::Entry(3), At::Ahead)
        );
        log.push(4, 85);
        assert_eq!((log.oldest(), log.next()), (3, 5), "10 and 85 bytes fit");
        log.push(5, 1000);
        assert_eq!((log.oldest(), log.at(5)), (5, At::Entry(5)), "the newest stays");
        assert_eq!((log.first(|entry| *entry == 5), log.first(|_| false)), (5, 6));
    }

    #[test]
    fn what_is_released_makes_room() {
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
