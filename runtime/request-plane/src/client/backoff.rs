//! How long a link waits before it dials again.

use std::time::Duration;

/// Doubling waits between two bounds. Half of each wait is random, so that routers that lose a worker at the same moment
/// do not dial it again at the same moment.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max: max.max(min),
            failures: 0,
        }
    }

    /// The wait after one more failure. `jitter` is uniform in 0..1.
    pub(super) fn after_failure(&mut self, jitter: f64) -> Duration {
        // 2^20 times any sensible minimum is past any maximum.
        let factor = 1 << self.failures.min(20);
        self.failures = self.failures.saturating_add(1);
        let wait = self.min.saturating_mul(factor).min(self.max);
        wait.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }

    /// Starts again with the shortest wait: the cause of the failures is gone.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Resets the waits after a connection that lasted. A connection lost right after its hello does not reset them.
    pub(super) fn after_connection(&mut self, lasted: Duration) {
        if lasted >= self.max {
            self.failures = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(5);

    #[test]
    fn waits_double_up_to_the_maximum() {
        let mut backoff = Backoff::new(MIN, MAX);
        let waits: Vec<_> = (0..8).map(|_| backoff.after_failure(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        for _ in 0..100 {
            assert_eq!(backoff.after_failure(1.0), MAX);
        }
    }

    #[test]
    fn jitter_takes_at_most_half() {
        assert_eq!(Backoff::new(MIN, MAX).after_failure(0.0), MIN / 2);
    }

    #[test]
    fn only_a_lasting_connection_resets_the_waits() {
        let mut backoff = Backoff::new(MIN, MAX);
        backoff.after_failure(1.0);
        backoff.after_connection(MIN);
        assert_eq!(backoff.after_failure(1.0), MIN * 2);
        backoff.after_connection(MAX);
        assert_eq!(backoff.after_failure(1.0), MIN);
    }
}
