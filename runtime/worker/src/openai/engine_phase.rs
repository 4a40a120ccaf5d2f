//! Whether an engine next door still runs, judged from polls of it. Pure state: a task polls and reports here.

use std::time::Duration;

use tokio::time::Instant;

use super::facts::StartTime;

/// Connections refused in a row after which the engine is down. One refusal can be a full backlog of a busy engine.
const MOST_REFUSALS: u32 = 2;

/// Longest time without an answer. The process of the engine's API can be busy with the text of one request for
/// seconds, and answers nothing then.
const MOST_SILENCE: Duration = Duration::from_secs(30);

/// Whether the engine runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum EnginePhase {
    /// It answers.
    #[default]
    Up,
    /// It did not answer the last poll. Streams without data are failed, and new requests are still tried.
    Unsure,
    /// It is gone for good, with the reason. If it answers again, it is another incarnation.
    Gone(String),
}

/// What one poll showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Poll {
    /// It is healthy. Its start time, if it states one.
    Healthy(Option<StartTime>),
    /// It answered that it is not healthy.
    Unhealthy(u16),
    /// No connection.
    Refused,
    /// No answer in time.
    Silent,
    /// It serves another model than before.
    OtherModel(String),
}

/// What the polls have shown so far.
#[derive(Debug)]
pub(crate) struct PollHistory {
    started_at: Option<StartTime>,
    /// Polls without a healthy answer since the last healthy one.
    failures: u32,
    first_failure: Option<Instant>,
}

impl PollHistory {
    /// Of an engine that is up and started then.
    pub(crate) fn new(started_at: Option<StartTime>) -> Self {
        Self {
            started_at,
            failures: 0,
            first_failure: None,
        }
    }

    /// Takes the result of a poll; returns what it means.
    pub(crate) fn take(&mut self, poll: Poll, now: Instant) -> EnginePhase {
        let reason = match poll {
            Poll::Healthy(started_at) => {
                if let (Some(known), Some(started_at)) = (self.started_at, started_at)
                    && known != started_at
                {
                    return EnginePhase::Gone("the engine was restarted".into());
                }
                self.failures = 0;
                self.first_failure = None;
                return EnginePhase::Up;
            }
            Poll::OtherModel(model) => {
                return EnginePhase::Gone(format!("the engine serves another model: {model}"));
            }
            Poll::Refused => "the engine refuses connections".into(),
            Poll::Unhealthy(status) => format!("the engine answers {status} to health checks"),
            Poll::Silent => format!("the engine has answered nothing for {} s", MOST_SILENCE.as_secs()),
        };
        let since = *self.first_failure.get_or_insert(now);
        self.failures += 1;
        let is_gone = match poll {
            Poll::Silent => now.saturating_duration_since(since) >= MOST_SILENCE,
            _ => self.failures >= MOST_REFUSALS,
        };
        match is_gone {
            true => EnginePhase::Gone(reason),
            false => EnginePhase::Unsure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Option<StartTime> = Some(StartTime(1_000));

    fn phases(polls: &[(u64, Poll)]) -> Vec<&'static str> {
        let (mut history, start) = (PollHistory::new(START), Instant::now());
        polls
            .iter()
            .map(
                |(second, poll)| match history.take(poll.clone(), start + Duration::from_secs(*second)) {
                    EnginePhase::Up => "up",
                    EnginePhase::Unsure => "unsure",
                    EnginePhase::Gone(reason) if reason.contains("restarted") => "restarted",
                    EnginePhase::Gone(reason) if reason.contains("other model: b") => "replaced",
                    EnginePhase::Gone(_) => "gone",
                },
            )
            .collect()
    }

    #[test]
    fn an_engine_is_gone_after_refusals_in_a_row() {
        let refused = || Poll::Refused;
        assert_eq!(phases(&[(0, refused()), (1, refused())]), ["unsure", "gone"]);
        let healthy = Poll::Healthy(START);
        assert_eq!(
            phases(&[
                (0, refused()),
                (1, healthy),
                (2, refused()),
                (3, Poll::Unhealthy(503))
            ]),
            ["unsure", "up", "unsure", "gone"]
        );
    }

    #[test]
    fn a_busy_engine_may_be_silent_for_a_while() {
        let polls: Vec<_> = (0..=6).map(|poll| (5 * poll, Poll::Silent)).collect();
        let phases = phases(&polls);
        assert_eq!(phases[..6], ["unsure"; 6]);
        assert_eq!(phases[6], "gone");
    }

    #[test]
    fn another_start_or_model_is_another_incarnation() {
        assert_eq!(
            phases(&[(0, Poll::Healthy(Some(StartTime(2_000))))]),
            ["restarted"]
        );
        assert_eq!(
            phases(&[(0, Poll::Healthy(None))]),
            ["up"],
            "a start time that is not stated proves nothing"
        );
        assert_eq!(phases(&[(0, Poll::OtherModel("b".into()))]), ["replaced"]);
    }
}
