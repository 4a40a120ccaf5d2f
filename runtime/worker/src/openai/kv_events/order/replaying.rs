//! One replay, from its first request to its end: what it is for, and how long it may take.

use std::time::{Duration, Instant};

/// Longest wait for an answer to a replay request, and between two answers. vLLM looks for requests every 100 ms, and
/// between batches.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest replay: 10,000 batches of vLLM's default buffer take seconds.
pub(super) const REPLAY_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests for one replay, the first included: an engine that does not answer three times in a row does not answer.
pub(super) const ATTEMPTS: u32 = 3;

/// One replay.
#[derive(Debug)]
pub(super) struct Replaying {
    pub(super) purpose: Purpose,
    /// Requests so far.
    attempts: u32,
    /// When the next answer must have arrived.
    pub(super) answer_by: Instant,
    /// When the last answer must have arrived.
    end_by: Instant,
    pub(super) is_answered: bool,
    /// Whether the replay looks into silence.
    pub(super) is_probe: bool,
    /// Whether a batch was applied.
    pub(super) has_applied: bool,
}

/// What a replay is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Fetch the batches from the expected one on.
    Fill,
    /// Fetch the last batch applied first, to see whether the engine is the same, and fill from there.
    Verify {
        /// Whether the connection is a new one: without an answer, the engine counts as another one.
        reconnected: bool,
    },
}

impl Replaying {
    /// Before the first request.
    pub(super) fn new(purpose: Purpose, now: Instant) -> Self {
        Self {
            purpose,
            attempts: 0,
            answer_by: now,
            end_by: now,
            is_answered: false,
            is_probe: purpose == Purpose::Verify { reconnected: false },
            has_applied: false,
        }
    }

    /// A request is sent.
    pub(super) fn requested(&mut self, now: Instant) {
        self.attempts += 1;
        self.answer_by = now + ANSWER_TIMEOUT;
        self.end_by = now + REPLAY_TIMEOUT;
    }

    /// An answer arrived.
    pub(super) fn answered(&mut self, now: Instant) {
        self.is_answered = true;
        self.answer_by = (now + ANSWER_TIMEOUT).min(self.end_by);
    }

    /// Whether another request may follow one without answer. A look into silence is repeated after the next silence.
    pub(super) fn may_ask_again(&self) -> bool {
        self.attempts < ATTEMPTS && !self.is_probe
    }
}
