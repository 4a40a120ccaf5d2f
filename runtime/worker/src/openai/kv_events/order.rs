//! The order of an engine's batches: what to apply, what to fetch again, when the engine is another one.
//!
//! An engine numbers its batches from 0. It sends each once to those connected, drops them for a slow connection without
//! notice, and answers replay requests from the newest it retains. From the numbers alone:
//!
//! | observed | done |
//! |---|---|
//! | first connection | replay from 0; batches before the first retained one stay unknown |
//! | the next number | apply |
//! | a number that was applied | ignore, if numbers still rise on this connection |
//! | a smaller number than the one before on this connection | the engine started again: forget all, replay from 0 |
//! | a greater number | replay from the one expected |
//! | a replay that does not fill the gap | forget what is held, go on from what there is |
//! | a new connection, or silence | replay from the last batch applied: an equal batch shows that the engine is the same |
//! | no answer to a replay | ask again, then go on without it |
//! | batches found after silence that did not arrive live | connect again |
//!
//! Live batches that arrive during a replay are held, within bounds, and applied after it.

use std::time::{Duration, Instant};

use super::{
    facts::Replay,
    frames::{Numbered, ReplayAnswer},
};

mod replaying;
#[cfg(test)]
mod tests;
mod waiting;

use replaying::{Purpose, Replaying};
use waiting::Waiting;

/// Silence after which the source asks for what it may have missed: a batch that was lost without a later one leaves no
/// gap, and a host that is gone leaves the connection open.
const SILENCE: Duration = Duration::from_secs(10);

/// What the caller does, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Apply the batch.
    Apply(Numbered),
    /// Ask for all batches from this number on. Answers to an earlier request no longer count.
    Replay {
        /// The first batch wanted.
        from: u64,
    },
    /// Give up the request.
    StopReplay,
    /// Close the connection and open another one: nothing arrives on it.
    Reconnect,
    /// Events were lost: what is held is unknown.
    Forget,
    /// The engine is another one: it holds nothing that is known.
    Restart,
}

/// The position in one engine's stream. Pure.
#[derive(Debug)]
pub(super) struct Order {
    phase: Phase,
    /// The number of the next batch; `None` before any is known.
    expected: Option<u64>,
    /// The last batch applied.
    last: Option<Numbered>,
    /// The number of the newest live batch on this connection.
    last_live: Option<u64>,
    /// Live batches that arrived during a replay.
    waiting: Waiting,
    /// When the connection began or the last message arrived.
    last_message: Instant,
    replay: Replay,
    gaps: u64,
    unfilled_gaps: u64,
    restarts: u64,
    actions: Vec<Action>,
}

#[derive(Debug)]
enum Phase {
    Disconnected,
    Live,
    Replaying(Replaying),
}

impl Order {
    /// Before the first connection. `has_replay`: whether the engine has a replay socket.
    pub(super) fn new(has_replay: bool, now: Instant) -> Self {
        Self {
            phase: Phase::Disconnected,
            expected: None,
            last: None,
            last_live: None,
            waiting: Waiting::default(),
            last_message: now,
            replay: if has_replay {
                Replay::Untried
            } else {
                Replay::NotConfigured
            },
            gaps: 0,
            unfilled_gaps: 0,
            restarts: 0,
            actions: Vec::new(),
        }
    }

    /// Live batches can arrive from now on.
    pub(super) fn connected(&mut self, now: Instant) -> Vec<Action> {
        self.last_live = None;
        self.last_message = now;
        self.waiting.clear();
        self.phase = Phase::Live;
        if self.has_replay() {
            let purpose = match self.last {
                Some(_) => Purpose::Verify { reconnected: true },
                None => Purpose::Fill,
            };
            self.start_replay(purpose, now);
        } else if self.expected.is_some() {
            // Nothing shows whether the engine is the same, or what was sent meanwhile.
            self.restart(None);
        }
        self.take_actions()
    }

    /// The connection is lost.
    pub(super) fn disconnected(&mut self) {
        self.phase = Phase::Disconnected;
        self.waiting.clear();
    }

    /// A live batch arrived.
    pub(super) fn live(&mut self, batch: Numbered, now: Instant) -> Vec<Action> {
        self.last_message = now;
        let fell = self.last_live.is_some_and(|last| batch.number < last);
        self.last_live = Some(batch.number);
        if fell {
            self.waiting.clear();
            self.restart(Some(0));
            if matches!(self.phase, Phase::Replaying(_)) {
                self.actions.push(Action::StopReplay);
            }
            self.phase = Phase::Live;
        }
        match &self.phase {
            Phase::Disconnected => {}
            Phase::Live => self.accept(batch, now),
            // A look for lost batches does not hold up those that arrive.
            Phase::Replaying(Replaying {
                is_probe: true,
                is_answered: false,
                ..
            }) => {
                self.actions.push(Action::StopReplay);
                self.phase = Phase::Live;
                self.accept(batch, now);
            }
            Phase::Replaying(_) => self.waiting.push(batch),
        }
        self.take_actions()
    }

    /// An answer to the last replay request arrived.
    pub(super) fn replayed(&mut self, answer: ReplayAnswer, now: Instant) -> Vec<Action> {
        let Phase::Replaying(replaying) = &mut self.phase else {
            return Vec::new();
        };
        self.replay = Replay::Available;
        replaying.answered(now);
        match (replaying.purpose, answer) {
            (Purpose::Fill, answer) => self.fill_from(answer, now),
            (Purpose::Verify { .. }, answer) => {
                replaying.purpose = Purpose::Fill;
                let is_probe = replaying.is_probe;
                self.verify(answer, is_probe, now);
            }
        }
        self.take_actions()
    }

    /// The replay ended without its end mark: the connection failed or the answers made no sense.
    pub(super) fn replay_failed(&mut self, now: Instant) -> Vec<Action> {
        self.retry_replay(now);
        self.take_actions()
    }

    /// When [`Self::timed_out`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Disconnected => None,
            Phase::Replaying(replaying) => Some(replaying.answer_by),
            Phase::Live if self.has_replay() => Some(self.last_message + SILENCE),
            Phase::Live => None,
        }
    }

    /// The deadline has passed.
    pub(super) fn timed_out(&mut self, now: Instant) -> Vec<Action> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        if matches!(self.phase, Phase::Replaying(_)) {
            self.retry_replay(now);
        } else {
            self.last_message = now;
            self.start_replay(Purpose::Verify { reconnected: false }, now);
        }
        self.take_actions()
    }

    /// Whether the source has caught up: the next batch's number is known, and no replay is due.
    pub(super) fn is_current(&self) -> bool {
        let is_live = match &self.phase {
            Phase::Disconnected => false,
            Phase::Live => true,
            // A look for lost batches shows nothing missing until it is answered.
            Phase::Replaying(replaying) => replaying.is_probe,
        };
        is_live && self.expected.is_some()
    }

    /// Whether lost batches can be fetched again.
    pub(super) fn replay(&self) -> Replay {
        self.replay
    }

    /// Times that batches were missing.
    pub(super) fn gaps(&self) -> u64 {
        self.gaps
    }

    /// Times that missing batches could not be fetched.
    pub(super) fn unfilled_gaps(&self) -> u64 {
        self.unfilled_gaps
    }

    /// Times that the engine was taken for another one.
    pub(super) fn restarts(&self) -> u64 {
        self.restarts
    }

    fn has_replay(&self) -> bool {
        self.replay != Replay::NotConfigured
    }

    fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Applies a live batch if it is the next one.
    fn accept(&mut self, batch: Numbered, now: Instant) {
        match self.expected {
            Some(expected) if batch.number < expected => {}
            Some(expected) if batch.number > expected => {
                self.gaps += 1;
                if self.has_replay() {
                    self.waiting.put_back(batch);
                    self.start_replay(Purpose::Fill, now);
                } else {
                    self.skip_to(batch);
                }
            }
            Some(_) => self.apply(batch),
            None => self.begin_at(batch),
        }
    }

    /// The first answer to a request for the last batch applied.
    fn verify(&mut self, answer: ReplayAnswer, is_probe: bool, now: Instant) {
        let Some(last) = &self.last else {
            return self.fill_from(answer, now);
        };
        match answer {
            ReplayAnswer::Batch(batch) if batch == *last => {}
            // The connection is not to this engine.
            _ if is_probe => {
                self.restart(None);
                self.actions.extend([Action::StopReplay, Action::Reconnect]);
                self.phase = Phase::Live;
            }
            // The batch is no longer retained. It may be that the engine started again and sent more batches than that.
            ReplayAnswer::Batch(batch) if batch.number > last.number => {
                self.restart(None);
                self.fill(batch);
            }
            ReplayAnswer::Batch(_) | ReplayAnswer::End => {
                self.restart(None);
                self.start_replay(Purpose::Fill, now);
            }
        }
    }

    fn fill_from(&mut self, answer: ReplayAnswer, now: Instant) {
        match answer {
            ReplayAnswer::Batch(batch) => {
                let before = self.expected;
                self.fill(batch);
                if let Phase::Replaying(replaying) = &mut self.phase {
                    replaying.has_applied |= self.expected != before;
                }
            }
            ReplayAnswer::End => {
                let arrives_nothing = match &self.phase {
                    Phase::Replaying(replaying) => {
                        replaying.is_probe && replaying.has_applied && self.waiting.is_empty()
                    }
                    _ => false,
                };
                // Nothing retained and nothing expected: the engine has sent nothing.
                self.expected.get_or_insert(0);
                self.go_live(now);
                if arrives_nothing {
                    self.actions.push(Action::Reconnect);
                }
            }
        }
    }

    /// Applies a replayed batch if it is not applied yet, and goes on from it if those before it are gone.
    fn fill(&mut self, batch: Numbered) {
        match self.expected {
            Some(expected) if batch.number < expected => {}
            Some(expected) if batch.number > expected => self.skip_to(batch),
            Some(_) => self.apply(batch),
            None => self.begin_at(batch),
        }
    }

    /// Applies the first batch that is known of the engine.
    fn begin_at(&mut self, batch: Numbered) {
        if batch.number > 0 {
            self.actions.push(Action::Forget);
        }
        self.apply(batch);
    }

    /// Applies a batch although those before it are lost.
    fn skip_to(&mut self, batch: Numbered) {
        self.unfilled_gaps += 1;
        self.actions.push(Action::Forget);
        self.apply(batch);
    }

    fn apply(&mut self, batch: Numbered) {
        self.expected = Some(batch.number.saturating_add(1));
        self.last = Some(batch.clone());
        self.actions.push(Action::Apply(batch));
    }

    fn restart(&mut self, expected: Option<u64>) {
        self.restarts += 1;
        self.expected = expected;
        self.last = None;
        self.actions.push(Action::Restart);
    }

    fn start_replay(&mut self, purpose: Purpose, now: Instant) {
        self.phase = Phase::Replaying(Replaying::new(purpose, now));
        self.request_replay(now);
    }

    fn request_replay(&mut self, now: Instant) {
        let Phase::Replaying(replaying) = &mut self.phase else {
            return;
        };
        replaying.requested(now);
        let from = match (replaying.purpose, &self.last) {
            (Purpose::Verify { .. }, Some(last)) => last.number,
            _ => self.expected.unwrap_or(0),
        };
        self.actions.push(Action::Replay { from });
    }

    fn retry_replay(&mut self, now: Instant) {
        let Phase::Replaying(replaying) = &self.phase else {
            return;
        };
        if replaying.may_ask_again() {
            self.request_replay(now);
            return;
        }
        let is_unverified = replaying.purpose == Purpose::Verify { reconnected: true };
        self.replay = Replay::Unanswered;
        self.actions.push(Action::StopReplay);
        if is_unverified {
            self.restart(None);
        }
        self.go_live(now);
    }

    /// Ends a replay: applies the batches that arrived meanwhile.
    fn go_live(&mut self, now: Instant) {
        self.phase = Phase::Live;
        self.last_message = now;
        // What the replay did not have before the first of them is lost.
        if let Some(first) = self.waiting.pop() {
            self.fill(first);
        }
        while matches!(self.phase, Phase::Live)
            && let Some(batch) = self.waiting.pop()
        {
            self.accept(batch, now);
        }
    }
}
