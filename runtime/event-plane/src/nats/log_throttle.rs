//! Warnings that could come a thousand times a second.

use std::time::{Duration, Instant};

/// At most one warning in this long: enough to be seen, and a log stays readable.
const PAUSE: Duration = Duration::from_secs(10);

/// Lets one through now and then, and counts the others.
#[derive(Debug, Default)]
pub(super) struct LogThrottle {
    last: Option<Instant>,
    held_back: u64,
}

impl LogThrottle {
    /// Whether to tell now; then how many were not told since the last time.
    pub(super) fn tell(&mut self) -> Option<u64> {
        if self.last.is_some_and(|last| last.elapsed() < PAUSE) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.held_back))
    }
}
