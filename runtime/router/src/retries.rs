//! Whether a request may be sent to a worker again: the retry budget of the router, and the requests whose workers were lost.
//!
//! - Retries are at most a fifth of all requests, beside a small number that is always allowed: where every worker fails,
//!   a router must not send each request several times. A request whose worker never got it, and one whose connection was
//!   lost, need no place in the budget: the former costs no worker anything, and the latter moves once.
//! - A request whose worker was lost may have killed it. It is moved once. If the second worker is lost too, it is refused,
//!   and so is whoever asks the same until [`REMEMBERED_FOR`] has passed. So a prompt that kills workers kills two. A whole
//!   answer clears it.
//!
//! Both are pure states; [`Retries`] shares them among threads.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::breaker::Incarnation;

#[cfg(test)]
mod tests;

/// Retries for each request.
const RETRIES_PER_REQUEST: f64 = 0.2;

/// Retries a second that are allowed whatever the number of requests: a router with few of them moves each one.
const RETRIES_PER_SECOND: f64 = 10.0;

/// Most retries that are saved up: a worker with this many requests may fail all at once.
const MOST_SAVED: f64 = 100.0;

/// How long a request is remembered after a loss. Long enough that a client's own retries end, and short enough that one
/// that was at two workers by chance when each was lost may be sent again.
pub(crate) const REMEMBERED_FOR: Duration = Duration::from_secs(120);

/// Most requests that are remembered: those of the workers that are lost within that time. At the limit the oldest is
/// forgotten.
const MOST_REMEMBERED: usize = 4_096;

/// After this many losses a request is refused.
pub(crate) const MOST_LOSSES: u32 = 2;

/// What a request asks: a hash of its model and prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PromptId(pub(crate) u64);

/// The retry budget and the lost requests of a router. Clone = handle.
#[derive(Debug, Clone, Default)]
pub(crate) struct Retries(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Requests since the budget was last asked.
    requests: AtomicU32,
    budget: Mutex<Option<RetryBudget>>,
    /// How many requests are remembered, so that most requests need no lock.
    remembered: AtomicUsize,
    lost: Mutex<LostRequests>,
}

impl Retries {
    /// A request arrives.
    pub(crate) fn arrived(&self) {
        self.0.requests.fetch_add(1, Relaxed);
    }

    /// Takes a place in the budget. Returns false if there is none.
    pub(crate) fn may_retry(&self) -> bool {
        let now = Instant::now();
        let mut budget = self.0.budget.lock();
        let budget = budget.get_or_insert_with(|| RetryBudget::new(now));
        budget.add_requests(self.0.requests.swap(0, Relaxed));
        let may_retry = budget.take(now);
        if !may_retry {
            metrics::counter!("signalbox_retries_refused_total").increment(1);
        }
        may_retry
    }

    /// Leaves no place in the budget for the next retry.
    #[cfg(test)]
    pub(crate) fn exhaust(&self) {
        *self.0.budget.lock() = Some(RetryBudget {
            saved: 0.0,
            refilled: Instant::now() + Duration::from_secs(3_600),
        });
    }

    /// Whether this was asked of two workers that were lost.
    pub(crate) fn is_refused(&self, prompt: PromptId) -> bool {
        self.0.remembered.load(Relaxed) > 0
            && self.0.lost.lock().losses(prompt, Instant::now()) >= MOST_LOSSES
    }

    /// The connection to the worker of a request was lost. Returns whether the request is refused from now on. Requests of
    /// one prompt that lost the same incarnation of a worker count once.
    pub(crate) fn lost(&self, prompt: PromptId, worker: Incarnation) -> bool {
        let mut lost = self.0.lost.lock();
        let losses = lost.add(prompt, worker, Instant::now());
        self.0.remembered.store(lost.0.len(), Relaxed);
        losses >= MOST_LOSSES
    }

    /// This was answered, so it kills no workers.
    pub(crate) fn answered(&self, prompt: PromptId) {
        if self.0.remembered.load(Relaxed) > 0 {
            let mut lost = self.0.lost.lock();
            lost.0.remove(&prompt);
            self.0.remembered.store(lost.0.len(), Relaxed);
        }
    }
}

/// How many retries are allowed now.
#[derive(Debug)]
struct RetryBudget {
    saved: f64,
    refilled: Instant,
}

impl RetryBudget {
    fn new(now: Instant) -> Self {
        Self {
            saved: MOST_SAVED,
            refilled: now,
        }
    }

    fn add_requests(&mut self, requests: u32) {
        self.add(f64::from(requests) * RETRIES_PER_REQUEST);
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.refilled);
        self.refilled = now;
        self.add(passed.as_secs_f64() * RETRIES_PER_SECOND);
        let may_retry = self.saved >= 1.0;
        if may_retry {
            self.saved -= 1.0;
        }
        may_retry
    }

    fn add(&mut self, retries: f64) {
        self.saved = (self.saved + retries).min(MOST_SAVED);
    }
}

/// The requests whose workers were lost lately.
#[derive(Debug, Default)]
struct LostRequests(HashMap<PromptId, Losses>);

#[derive(Debug, Clone, Copy)]
struct Losses {
    workers: u32,
    /// The latest one, and when it was lost.
    latest: Incarnation,
    at: Instant,
}

impl LostRequests {
    fn losses(&self, prompt: PromptId, now: Instant) -> u32 {
        self.0
            .get(&prompt)
            .filter(|losses| losses.is_remembered(now))
            .map_or(0, |losses| losses.workers)
    }

    fn add(&mut self, prompt: PromptId, worker: Incarnation, now: Instant) -> u32 {
        let before = self.losses(prompt, now);
        let is_known = before > 0 && self.0.get(&prompt).is_some_and(|losses| losses.latest == worker);
        let workers = before + u32::from(!is_known);
        if self.0.len() >= MOST_REMEMBERED && !self.0.contains_key(&prompt) {
            self.0.retain(|_, losses| losses.is_remembered(now));
            if self.0.len() >= MOST_REMEMBERED
                && let Some(oldest) = self.0.iter().min_by_key(|(_, losses)| losses.at)
            {
                let oldest = *oldest.0;
                self.0.remove(&oldest);
            }
        }
        let losses = Losses {
            workers,
            latest: worker,
            at: now,
        };
        self.0.insert(prompt, losses);
        workers
    }
}

impl Losses {
    fn is_remembered(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < REMEMBERED_FOR
    }
}

/// Gives the installed recorder the help text of each metric of this file.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!(
        "signalbox_retries_refused_total",
        "Requests that were not sent to another worker, because the router's retries would have been more than a fifth of \
         its requests"
    );
    metrics::describe_counter!(
        "signalbox_requests_refused_after_losses_total",
        "Requests that were refused, because two workers were lost with the same prompt"
    );
}
