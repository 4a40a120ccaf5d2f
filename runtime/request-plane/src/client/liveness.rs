//! Detects that the worker at the other end of a connection is gone.

use std::time::{Duration, Instant};

/// Decides when to send a ping, and when the connection counts as lost.
///
/// A ping is due when either side was silent for an interval. After a silent worker it tests the worker; after a silent
/// router it shows the worker that the router is present. So flowing streams cost no pings, and an idle link costs one
/// per interval.
#[derive(Debug)]
pub(super) struct Liveness {
    interval: Duration,
    timeout: Duration,
    last_received: Instant,
    last_sent: Instant,
    pinged_at: Option<Instant>,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LivenessStep {
    /// Wait until this moment, then call [`Liveness::next_step`] again.
    WaitUntil(Instant),
    /// Send a ping, then call [`Liveness::next_step`] again.
    Ping,
    /// The worker did not answer the ping, so the connection is lost.
    Lost,
}

impl Liveness {
    pub(super) fn new(interval: Duration, timeout: Duration, now: Instant) -> Self {
        Self {
            interval,
            timeout,
            last_received: now,
            last_sent: now,
            pinged_at: None,
        }
    }

    /// Notes that bytes arrived. Any bytes show that the worker is present.
    pub(super) fn received(&mut self, now: Instant) {
        self.last_received = now;
        self.pinged_at = None;
    }

    /// Notes that bytes were written.
    pub(super) fn sent(&mut self, now: Instant) {
        self.last_sent = now;
    }

    pub(super) fn next_step(&mut self, now: Instant) -> LivenessStep {
        if let Some(pinged_at) = self.pinged_at {
            let end = pinged_at + self.timeout;
            // If an answer arrives, the next ping is due an interval later. So wait at most an interval, not until `end`.
            let next_check = end.min(now + self.interval);
            return if now >= end {
                LivenessStep::Lost
            } else {
                LivenessStep::WaitUntil(next_check)
            };
        }
        let due = self.last_received.min(self.last_sent) + self.interval;
        if now < due {
            return LivenessStep::WaitUntil(due);
        }
        self.pinged_at = Some(now);
        LivenessStep::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(2);
    const TIMEOUT: Duration = Duration::from_secs(3);

    #[test]
    fn a_silent_worker_is_pinged_then_lost() {
        let start = Instant::now();
        let mut liveness = Liveness::new(INTERVAL, TIMEOUT, start);
        assert_eq!(
            liveness.next_step(start),
            LivenessStep::WaitUntil(start + INTERVAL)
        );
        assert_eq!(liveness.next_step(start + INTERVAL), LivenessStep::Ping);
        liveness.sent(start + INTERVAL);
        assert_eq!(
            liveness.next_step(start + INTERVAL),
            LivenessStep::WaitUntil(start + INTERVAL * 2)
        );
        assert_eq!(
            liveness.next_step(start + INTERVAL * 2),
            LivenessStep::WaitUntil(start + INTERVAL + TIMEOUT)
        );
        assert_eq!(liveness.next_step(start + INTERVAL + TIMEOUT), LivenessStep::Lost);
    }

    /// The loss is noticed at most an interval and a timeout after the worker's last byte, whenever that arrived.
    #[test]
    fn silence_is_noticed_in_time_whenever_it_begins() {
        let start = Instant::now();
        for last_byte_ms in (0..10_000).step_by(37) {
            let last_byte = start + Duration::from_millis(last_byte_ms);
            let (mut liveness, mut now) = (Liveness::new(INTERVAL, TIMEOUT, start), start);
            let noticed = loop {
                match liveness.next_step(now) {
                    LivenessStep::Lost => break now,
                    LivenessStep::Ping => {
                        liveness.sent(now);
                        // The worker answers at once until its last byte.
                        if now <= last_byte {
                            liveness.received(now);
                        }
                    }
                    LivenessStep::WaitUntil(due) => {
                        if now < last_byte && last_byte <= due {
                            liveness.received(last_byte);
                        }
                        now = due;
                    }
                }
            };
            let late = noticed - last_byte;
            assert!(
                late <= INTERVAL + TIMEOUT,
                "noticed {late:?} after a last byte at {last_byte_ms} ms"
            );
        }
    }

    #[test]
    fn any_bytes_answer_a_ping() {
        let start = Instant::now();
        let mut liveness = Liveness::new(INTERVAL, TIMEOUT, start);
        assert_eq!(liveness.next_step(start + INTERVAL), LivenessStep::Ping);
        liveness.sent(start + INTERVAL);
        liveness.received(start + INTERVAL * 2);
        assert_eq!(
            liveness.next_step(start + INTERVAL + TIMEOUT),
            LivenessStep::Ping,
            "the router was silent since its ping"
        );
    }

    #[test]
    fn traffic_both_ways_needs_no_ping() {
        let mut now = Instant::now();
        let mut liveness = Liveness::new(INTERVAL, TIMEOUT, now);
        for _ in 0..10 {
            now += INTERVAL / 2;
            liveness.received(now);
            liveness.sent(now);
            assert_eq!(liveness.next_step(now), LivenessStep::WaitUntil(now + INTERVAL));
        }
    }

    #[test]
    fn a_router_that_only_receives_still_sends_pings() {
        let start = Instant::now();
        let mut liveness = Liveness::new(INTERVAL, TIMEOUT, start);
        liveness.received(start + INTERVAL);
        assert_eq!(liveness.next_step(start + INTERVAL), LivenessStep::Ping);
    }
}
