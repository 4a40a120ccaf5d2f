//! Whether the worker at the other end is still there.

use std::time::{Duration, Instant};

/// Decides when to ping and when to give up.
///
/// A ping is due when either side was silent for an interval: to learn whether the worker lives, or to show it that
/// this router does. So streams that flow cost no pings, and an idle link costs one an interval.
#[derive(Debug)]
pub(super) struct Liveness {
    interval: Duration,
    timeout: Duration,
    heard: Instant,
    said: Instant,
    asked: Option<Instant>,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing before this moment.
    WaitUntil(Instant),
    /// Send a ping, then ask again.
    Ping,
    /// The worker did not answer: the connection is lost.
    Dead,
}

impl Liveness {
    pub(super) fn new(interval: Duration, timeout: Duration, now: Instant) -> Self {
        Self {
            interval,
            timeout,
            heard: now,
            said: now,
            asked: None,
        }
    }

    /// Bytes arrived; whatever they are, the worker lives.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.asked = None;
    }

    /// Bytes were written.
    pub(super) fn said(&mut self, now: Instant) {
        self.said = now;
    }

    pub(super) fn verdict(&mut self, now: Instant) -> Verdict {
        if let Some(asked) = self.asked {
            let end = asked + self.timeout;
            // An answer makes the next ping due an interval after it: look again by then, not only at the end.
            let look_again = end.min(now + self.interval);
            return if now >= end {
                Verdict::Dead
            } else {
                Verdict::WaitUntil(look_again)
            };
        }
        let due = self.heard.min(self.said) + self.interval;
        if now < due {
            return Verdict::WaitUntil(due);
        }
        self.asked = Some(now);
        Verdict::Ping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(2);
    const TIMEOUT: Duration = Duration::from_secs(3);

    #[test]
    fn a_silent_worker_is_pinged_then_given_up() {
        let start = Instant::now();
        let mut liveness = Liveness::new(INTERVAL, TIMEOUT, start);
        assert_eq!(liveness.verdict(start), Verdict::WaitUntil(start + INTERVAL));
        assert_eq!(liveness.verdict(start + INTERVAL), Verdict::Ping);
        liveness.said(start + INTERVAL);
        assert_eq!(
            liveness.verdict(start + INTERVAL),
            Verdict::WaitUntil(start + INTERVAL * 2)
        );
        assert_eq!(
            liveness.verdict(start + INTERVAL * 2),
            Verdict::WaitUntil(start + INTERVAL + TIMEOUT)
        );
        assert_eq!(liveness.verdict(start + INTERVAL + TIMEOUT), Verdict::Dead);
    }

    /// Whenever the worker's last byte came, its silence is noticed an interval and a timeout after it.
    #[test]
    fn silence_is_noticed_in_time_wherever_it_begins() {
        let start = Instant::now();
        for last_byte_ms in (0..10_000).step_by(37) {
            let last_byte = start + Duration::from_millis(last_byte_ms);
            let (mut liveness, mut now) = (Liveness::new(INTERVAL, TIMEOUT, start), start);
            let noticed = loop {
                match liveness.verdict(now) {
                    Verdict::Dead => break now,
                    Verdict::Ping => {
                        liveness.said(now);
                        // Answered at once, while the worker lives.
                        if now <= last_byte {
                            liveness.heard(now);
                        }
                    }
                    Verdict::WaitUntil(due) => {
                        if now < last_byte && last_byte <= due {
                            liveness.heard(last_byte);
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
        assert_eq!(liveness.verdict(start + INTERVAL), Verdict::Ping);
        liveness.said(start + INTERVAL);
        liveness.heard(start + INTERVAL * 2);
        assert_eq!(
            liveness.verdict(start + INTERVAL + TIMEOUT),
            Verdict::Ping,
            "silent since it spoke itself"
        );
    }

    #[test]
    fn traffic_both_ways_needs_no_ping() {
        let mut now = Instant::now();
        let mut liveness = Liveness::new(INTERVAL, TIMEOUT, now);
        for _ in 0..10 {
            now += INTERVAL / 2;
            liveness.heard(now);
            liveness.said(now);
            assert_eq!(liveness.verdict(now), Verdict::WaitUntil(now + INTERVAL));
        }
    }

    #[test]
    fn a_router_that_only_listens_still_shows_that_it_lives() {
        let start = Instant::now();
        let mut liveness = Liveness::new(INTERVAL, TIMEOUT, start);
        liveness.heard(start + INTERVAL);
        assert_eq!(liveness.verdict(start + INTERVAL), Verdict::Ping);
    }
}
