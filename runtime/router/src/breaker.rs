//! When a worker that fails gets no requests, as a pure state: the circuit breakers of all workers.
//!
//! A worker that answers every request with an error is idle, so policies prefer it: it draws the traffic of the whole
//! fleet. So failures count as load until they age out, and a worker that fails repeatedly is *ejected*: its breaker is
//! open. After a wait that doubles with each ejection the breaker is half open: the router sends one request of its own, a
//! probe. If the worker answers it, the breaker closes; if not, it opens again.
//!
//! - A worker is ejected after several failures in a row, or when half of its recent requests failed.
//! - At most half of a model's workers are ejected at a time. If more fail, the cause is rarely theirs, and the others
//!   could not take their load.
//! - Only faults of the worker count ([`Fault`]): not a client's fault, not a client that leaves, not a refusal for lack of
//!   room.
//!
//! `health.rs` shares the state among threads, logs and exports its changes.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use signalbox_protocol::ErrorKind;
use signalbox_request_plane::LinkError;
use tokio::time::Instant;

#[cfg(test)]
mod tests;

/// How long the share of failed requests looks back. Short enough that a worker that is well again is not judged by its
/// past, and long enough to have some requests.
const WINDOW: Duration = Duration::from_secs(10);

/// Fewer requests in the window say nothing about a share.
const LEAST_REQUESTS: u32 = 10;

/// The share of failed requests in the window that ejects a worker.
const FAILED_SHARE: f32 = 0.5;

/// How long a failure counts as load.
const FAILURE_COUNTS_FOR: Duration = Duration::from_secs(10);

/// Failures of one worker that count as load at a time. More would change no decision: the others are preferred already.
const MOST_COUNTED: usize = 16;

/// After this long without an ejection, the next one is as short as the first.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// A probe without a result counts as lost after this long, and is sent again. It is longer than a probe may take.
const PROBE_LOST_AFTER: Duration = Duration::from_secs(15);

/// When workers are ejected, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures in a row after which a worker is ejected; 0: no worker is ever ejected. Envoy takes 5 and linkerd 7. Fewer
    /// are enough here, because a wrong ejection costs little: it ends with the first probe, a second later.
    pub failures: u32,
    /// The shortest time until the first probe. It doubles with each further ejection.
    pub eject_min: Duration,
    /// The longest time until a probe. It bounds how long a worker that is well again gets no requests, and a probe costs
    /// a worker nothing worth counting.
    pub eject_max: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures: 3,
            eject_min: Duration::from_secs(1),
            eject_max: Duration::from_secs(6),
        }
    }
}

/// A failure that is the worker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The worker answered with an error that is its own, or ended an answer without its end.
    Error,
    /// The connection was lost after the request was sent.
    Lost,
    /// No first token in time.
    NoFirstToken,
    /// No further token in time.
    NoNextToken,
}

impl Fault {
    /// The fault that this error shows; `None` if it is not the worker's. The link itself looks after connections that
    /// cannot be opened, and a worker that leaves or is full is not sick.
    pub(crate) fn of(error: &LinkError) -> Option<Self> {
        match error {
            LinkError::Lost { .. } => Some(Self::Lost),
            LinkError::Refused(error) => {
                matches!(error.kind, ErrorKind::Internal | ErrorKind::Unavailable).then_some(Self::Error)
            }
            LinkError::Unreachable { .. } | LinkError::Draining { .. } | LinkError::Full { .. } => None,
        }
    }

    /// The label of metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Lost => "lost",
            Self::NoFirstToken => "no_first_token",
            Self::NoNextToken => "no_next_token",
        }
    }
}

/// Whether a worker gets requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BreakerState {
    /// It does.
    #[default]
    Closed,
    /// It is ejected.
    Open,
    /// It is ejected, and a probe is under way.
    HalfOpen,
}

/// The breakers of all present workers, by slot.
#[derive(Debug, Default)]
pub(crate) struct Breakers {
    config: BreakerConfig,
    workers: BTreeMap<u32, Breaker>,
    generations: u32,
}

/// The breaker of one incarnation of a worker.
#[derive(Debug)]
struct Breaker {
    /// Workers of one model are ejected in turn, not all at once.
    model: String,
    /// Differs between the incarnations that have the slot in turn.
    generation: u32,
    phase: Phase,
    /// Failures since the last whole answer.
    in_row: u32,
    window: Window,
    /// When each recent failure happened, and the prompt tokens that were to be computed for it.
    failures: VecDeque<(Instant, u32)>,
    /// Ejections, the longer of which ago are forgotten.
    ejections: u32,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Closed { since: Instant },
    Open { until: Instant },
    HalfOpen { since: Instant },
}

/// Requests of the last [`WINDOW`], in two halves of it, so that old ones leave without a list of all.
#[derive(Debug)]
struct Window {
    began: Instant,
    now: Ended,
    before: Ended,
}

#[derive(Debug, Clone, Copy, Default)]
struct Ended {
    requests: u32,
    failed: u32,
}

/// What a failure led to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ejected {
    /// How long until the first probe.
    pub(crate) wait: Duration,
    /// Failures since the last whole answer.
    pub(crate) in_row: u32,
}

/// What decisions read of a worker's breaker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) is_ejected: bool,
    /// Failures that count as load.
    pub(crate) failures: u32,
    /// The prompt tokens of those failures.
    pub(crate) prefill_tokens: u32,
}

/// One incarnation of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Incarnation {
    pub(crate) slot: u32,
    /// Differs between the incarnations that have the slot in turn.
    pub(crate) generation: u32,
}

impl Breakers {
    pub(crate) fn new(config: BreakerConfig) -> Self {
        Self {
            config,
            ..Self::default()
        }
    }

    /// A worker joins. Whatever had the slot before is forgotten. Returns the number of this incarnation.
    pub(crate) fn join(&mut self, slot: u32, model: &str, now: Instant) -> u32 {
        self.generations = self.generations.wrapping_add(1);
        let breaker = Breaker {
            model: model.to_owned(),
            generation: self.generations,
            phase: Phase::Closed { since: now },
            in_row: 0,
            window: Window::new(now),
            failures: VecDeque::new(),
            ejections: 0,
        };
        self.workers.insert(slot, breaker);
        self.generations
    }

    /// A worker left.
    pub(crate) fn leave(&mut self, slot: u32) {
        self.workers.remove(&slot);
    }

    /// Requests ended with a whole answer since the last call.
    pub(crate) fn answered(&mut self, slot: u32, answers: u32, now: Instant) {
        if let Some(breaker) = self.workers.get_mut(&slot)
            && answers > 0
        {
            breaker.in_row = 0;
            breaker.window.add(answers, 0, now);
        }
    }

    /// A request failed by a fault of the worker, whose prompt has this many tokens to compute. `chance`, from 0 to 1, is
    /// drawn for the wait. Returns the ejection that follows, if any.
    pub(crate) fn failed(
        &mut self,
        Incarnation { slot, generation }: Incarnation,
        prefill_tokens: u32,
        now: Instant,
        chance: f64,
    ) -> Option<Ejected> {
        let failures = self.config.failures;
        let breaker = self.of(slot, generation)?;
        breaker.in_row += 1;
        breaker.window.add(1, 1, now);
        if breaker.failures.len() == MOST_COUNTED {
            breaker.failures.pop_front();
        }
        breaker.failures.push_back((now, prefill_tokens));
        let is_closed = matches!(breaker.phase, Phase::Closed { .. });
        let is_sick = failures > 0 && (breaker.in_row >= failures || breaker.window.is_mostly_failed(now));
        if !is_closed || !is_sick || !self.may_eject(slot) {
            return None;
        }
        self.eject(slot, now, chance)
    }

    /// Whether one more worker of the model may be ejected.
    fn may_eject(&self, slot: u32) -> bool {
        let Some(model) = self.workers.get(&slot).map(|breaker| &breaker.model) else {
            return false;
        };
        let (mut all, mut ejected) = (0, 0);
        for other in self.workers.values().filter(|other| other.model == *model) {
            all += 1;
            ejected += usize::from(other.is_ejected());
        }
        (ejected + 1) * 2 <= all
    }

    fn eject(&mut self, slot: u32, now: Instant, chance: f64) -> Option<Ejected> {
        let BreakerConfig {
            eject_min, eject_max, ..
        } = self.config;
        let breaker = self.workers.get_mut(&slot)?;
        if let Phase::Closed { since } = breaker.phase
            && now.saturating_duration_since(since) >= FORGOTTEN_AFTER
        {
            breaker.ejections = 0;
        }
        let doubled = eject_min.saturating_mul(1_u32.checked_shl(breaker.ejections).unwrap_or(u32::MAX));
        let longest = doubled.min(eject_max);
        // Half of the wait is random, so that workers that failed together are not probed together.
        let wait = longest.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0));
        breaker.ejections = breaker.ejections.saturating_add(1);
        breaker.phase = Phase::Open { until: now + wait };
        Some(Ejected {
            wait,
            in_row: breaker.in_row,
        })
    }

    /// The probes that are due now. Their breakers are half open.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Incarnation> {
        let mut due = Vec::new();
        for (slot, breaker) in &mut self.workers {
            breaker.age(now);
            let is_due = match breaker.phase {
                Phase::Closed { .. } => false,
                Phase::Open { until } => now >= until,
                Phase::HalfOpen { since } => now.saturating_duration_since(since) >= PROBE_LOST_AFTER,
            };
            if is_due {
                breaker.phase = Phase::HalfOpen { since: now };
                due.push(Incarnation {
                    slot: *slot,
                    generation: breaker.generation,
                });
            }
        }
        due
    }

    /// A probe has ended. Returns whether the worker gets requests again; `None` if it is not ejected.
    pub(crate) fn probed(
        &mut self,
        Incarnation { slot, generation }: Incarnation,
        has_answered: bool,
        now: Instant,
        chance: f64,
    ) -> Option<bool> {
        let breaker = self.of(slot, generation)?;
        if !matches!(breaker.phase, Phase::HalfOpen { .. }) {
            return None;
        }
        if !has_answered {
            self.eject(slot, now, chance);
            return Some(false);
        }
        breaker.phase = Phase::Closed { since: now };
        breaker.in_row = 0;
        breaker.window = Window::new(now);
        Some(true)
    }

    /// What decisions read of each worker.
    pub(crate) fn marks(&self) -> impl Iterator<Item = (u32, Mark)> {
        self.workers.iter().map(|(slot, breaker)| (*slot, breaker.mark()))
    }

    /// What decisions read of a worker.
    pub(crate) fn mark(&self, slot: u32) -> Mark {
        self.workers.get(&slot).map(Breaker::mark).unwrap_or_default()
    }

    /// The state of a worker's breaker.
    pub(crate) fn state(&self, slot: u32) -> BreakerState {
        match self.workers.get(&slot).map(|breaker| breaker.phase) {
            None | Some(Phase::Closed { .. }) => BreakerState::Closed,
            Some(Phase::Open { .. }) => BreakerState::Open,
            Some(Phase::HalfOpen { .. }) => BreakerState::HalfOpen,
        }
    }

    /// The incarnation that has a slot.
    fn of(&mut self, slot: u32, generation: u32) -> Option<&mut Breaker> {
        let breaker = self.workers.get_mut(&slot);
        breaker.filter(|breaker| breaker.generation == generation)
    }
}

impl Breaker {
    fn is_ejected(&self) -> bool {
        !matches!(self.phase, Phase::Closed { .. })
    }

    /// Drops the failures that do not count any more.
    fn age(&mut self, now: Instant) {
        let counts = |at: Instant| now.saturating_duration_since(at) < FAILURE_COUNTS_FOR;
        while self.failures.front().is_some_and(|(at, _)| !counts(*at)) {
            self.failures.pop_front();
        }
    }

    fn mark(&self) -> Mark {
        let tokens = self.failures.iter().map(|(_, tokens)| *tokens);
        Mark {
            is_ejected: self.is_ejected(),
            failures: self.failures.len() as u32,
            prefill_tokens: tokens.fold(0, u32::saturating_add),
        }
    }
}

impl Window {
    fn new(now: Instant) -> Self {
        Self {
            began: now,
            now: Ended::default(),
            before: Ended::default(),
        }
    }

    fn add(&mut self, requests: u32, failed: u32, now: Instant) {
        self.turn(now);
        self.now.requests = self.now.requests.saturating_add(requests);
        self.now.failed = self.now.failed.saturating_add(failed);
    }

    fn is_mostly_failed(&mut self, now: Instant) -> bool {
        self.turn(now);
        let requests = self.now.requests.saturating_add(self.before.requests);
        let failed = self.now.failed.saturating_add(self.before.failed);
        requests >= LEAST_REQUESTS && failed as f32 >= FAILED_SHARE * requests as f32
    }

    fn turn(&mut self, now: Instant) {
        let half = WINDOW / 2;
        let since = now.saturating_duration_since(self.began);
        if since < half {
            return;
        }
        self.before = if since < WINDOW {
            self.now
        } else {
            Ended::default()
        };
        self.now = Ended::default();
        self.began = now;
    }
}
