//! How soon the roster's view is published after a change.
//!
//! A view holds every worker, so publishing one for each of a thousand changes that come together takes a thousand times as
//! long as publishing one for all of them. Changes are published together when they come within a wait that follows from
//! how long publishing takes: at most a fifth of the roster's time.

use std::time::Duration;

/// Wait after a change if publishing takes no time: longer than the messages of one batch take to be handled.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// Longest wait. Until a view is published, requests may still be sent to a worker that left, and then move.
const MAX_WAIT: Duration = Duration::from_millis(250);

/// Waits this many times as long as publishing takes.
const WAIT_PER_TIME: u32 = 4;

/// Whether a view is to be published, and how long the last one took.
#[derive(Debug, Default)]
pub(crate) struct PublishPace {
    is_due: bool,
    took: Duration,
}

impl PublishPace {
    /// Something changed. Returns how long to wait until everything that changed by then is published; `None` if that is
    /// scheduled already.
    pub(crate) fn changed(&mut self) -> Option<Duration> {
        let was_due = std::mem::replace(&mut self.is_due, true);
        (!was_due).then(|| (self.took * WAIT_PER_TIME).clamp(MIN_WAIT, MAX_WAIT))
    }

    /// Everything that changed so far is published, which took this long.
    pub(crate) fn published(&mut self, took: Duration) {
        self.is_due = false;
        self.took = took;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_before_a_view_is_published_are_published_with_it() {
        let mut pace = PublishPace::default();
        assert_eq!(pace.changed(), Some(MIN_WAIT));
        assert_eq!([pace.changed(), pace.changed()], [None; 2]);
        pace.published(Duration::ZERO);
        assert_eq!(pace.changed(), Some(MIN_WAIT));
    }

    #[test]
    fn the_wait_follows_from_the_time_that_publishing_takes_and_is_bounded() {
        let mut pace = PublishPace::default();
        for (took, wait) in [(10, 40), (1_000, 250), (0, 1)] {
            pace.published(Duration::from_millis(took));
            assert_eq!(pace.changed(), Some(Duration::from_millis(wait)));
        }
    }
}
