//! Limits warnings that could come a thousand times per second.

use std::time::{Duration, Instant};

/// Shortest time between two warnings, so that the log stays readable.
const PAUSE: Duration = Duration::from_secs(10);

/// Allows one warning at a time, and counts the suppressed ones.
#[derive(Debug, Default)]
pub(super) struct LogThrottle {
    last: Option<Instant>,
    suppressed: u64,
}

impl LogThrottle {
    /// `Some` if a warning may be logged now, with the number of warnings suppressed since the last one.
    pub(super) fn allow(&mut self) -> Option<u64> {
        if self.last.is_some_and(|last| last.elapsed() < PAUSE) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.suppressed))
    }
}
