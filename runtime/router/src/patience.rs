//! How long a request waits for the next token of its worker, until it goes elsewhere.
//!
//! A worker that is stuck answers pings and reports, and no request. A worker with a long queue, or with a long prompt to
//! compute, sends nothing either, and must not lose its requests: each other worker would need as long. So a request waits
//!
//! - as long as its worker may need for what is queued there, by the speed that was measured, several times over; and
//! - beyond that for as long as the worker's engine makes progress: it reports the steps that it has done.
//!
//! A worker that reports no steps, as one of an earlier release, is given ten times as long.

use std::{rc::Rc, time::Duration};

use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{GenerateRequest, WorkerCard};
use tokio::time::Instant;

use crate::{latency::LatencyTable, load::LoadTable};

#[cfg(test)]
mod tests;

/// How many times as long as expected a worker may take. Speeds are means, and a prompt may be far from the mean.
const SLACK: f32 = 4.0;

/// Decode steps that a worker may take beyond what is queued: answers under way go on before a new one begins.
const SPARE_STEPS: f32 = 20.0;

/// How many times as long a worker may take whose steps are not known, and one whose answer nobody can continue: there is
/// less to gain by giving up.
const UNSURE: u32 = 10;

/// Prompt tokens a second of a worker whose speed is not known: a large model on a processor.
const UNKNOWN_RATE: f32 = 50.0;

/// The time of a decode step that is not known, in milliseconds.
const UNKNOWN_STEP_MS: f32 = 50.0;

/// The time beyond that for a worker whose speed is not known: its first request may load what it needs.
const UNKNOWN_EXTRA: Duration = Duration::from_secs(30);

/// The time in which a worker may compile the grammar that an answer obeys.
const GRAMMAR_TIME: Duration = Duration::from_secs(30);

/// How long a request waits at least for tokens of a worker that is idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenTimeouts {
    /// For its first token; `None`: until its deadline.
    pub first: Option<Duration>,
    /// For each further token; `None`: until its deadline.
    pub next: Option<Duration>,
}

impl Default for TokenTimeouts {
    /// Long for an engine on a GPU, whose steps take tens of milliseconds, and short for a client.
    fn default() -> Self {
        Self {
            first: Some(Duration::from_millis(1_500)),
            next: Some(Duration::from_millis(1_500)),
        }
    }
}

/// The patience of one thread's requests.
#[derive(Debug)]
pub(crate) struct Patience {
    timeouts: TokenTimeouts,
    load: LoadTable,
    latency: LatencyTable,
}

/// What a worker has to do before it sends the next piece, beside what is queued.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Expected {
    /// Tokens that it generates without a piece for each.
    tokens: u32,
    compiles: bool,
}

/// The silence of a worker within an answer.
#[derive(Debug)]
pub(crate) struct Silence {
    patience: Rc<Patience>,
    worker: WorkerSlot,
    least: Duration,
    since: Instant,
    /// Whether a piece has come since the silence was last looked at.
    pub(crate) is_broken: bool,
}

impl Expected {
    /// An engine next door sends a whole answer at once. The engines of this repository report its tokens meanwhile.
    pub(crate) fn of(generate: &GenerateRequest, card: &WorkerCard) -> Self {
        let is_whole = card.reads_body && !generate.format.stream;
        Self {
            tokens: if is_whole { generate.sampling.max_tokens } else { 0 },
            compiles: generate.constraint.is_some(),
        }
    }
}

impl Patience {
    pub(crate) fn new(timeouts: TokenTimeouts, load: LoadTable, latency: LatencyTable) -> Self {
        Self {
            timeouts,
            load,
            latency,
        }
    }

    pub(crate) fn timeouts(&self) -> TokenTimeouts {
        self.timeouts
    }

    /// Whether a worker is stuck that has sent nothing for `quiet`. It may take at least `least`.
    pub(crate) fn is_stuck(
        &self,
        worker: WorkerSlot,
        quiet: Duration,
        least: Duration,
        expected: Expected,
    ) -> bool {
        // Reports come this often, so later ones may show progress that was made before.
        let least = least.max(3 * self.load.report_interval());
        let allowed = least.saturating_add(self.work(worker, expected));
        match self.load.since_progress(worker, std::time::Instant::now()) {
            Some(since) => quiet >= allowed && since >= allowed,
            None => quiet >= allowed.saturating_mul(UNSURE),
        }
    }

    /// How long the worker may take for its work.
    fn work(&self, worker: WorkerSlot, expected: Expected) -> Duration {
        let load = self.load.get(worker);
        let report = self.load.last_report(worker).unwrap_or_default();
        let measured = self.latency.get(worker);
        let measured_rate = match (measured.uncached_prompt_tokens, measured.ttft_ms) {
            (Some(tokens), Some(ttft_ms)) if tokens >= 1.0 && ttft_ms > 0.0 => Some(tokens / ttft_ms * 1e3),
            _ => None,
        };
        let rate = match report.prefill_tokens_per_s {
            0 => measured_rate,
            reported => Some(reported as f32),
        };
        let step_ms = match report.decode_step_us {
            0 => measured.itl_ms,
            step_us => Some(step_us as f32 / 1e3),
        };
        let queued = load.prefill_tokens.saturating_add(load.others.prefill_tokens) as f32;
        let usual_ms = measured.ttft_ms.unwrap_or(0.0);
        let step_ms = step_ms.unwrap_or(UNKNOWN_STEP_MS);
        let ms = SLACK * (queued / rate.unwrap_or(UNKNOWN_RATE) * 1e3 + usual_ms)
            + (SPARE_STEPS + SLACK * expected.tokens as f32) * step_ms;
        let extra = [(rate.is_none(), UNKNOWN_EXTRA), (expected.compiles, GRAMMAR_TIME)];
        let extra = extra
            .into_iter()
            .filter(|(counts, _)| *counts)
            .map(|(_, time)| time);
        // What does not fit into a duration is for ever.
        let scaled = Duration::try_from_secs_f32(ms / 1e3).unwrap_or(Duration::MAX);
        extra.fold(scaled, Duration::saturating_add)
    }
}

impl Silence {
    /// How often the silence is looked at. Each look wakes the answer, and costs less than a token.
    pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(300);

    /// Of an answer of this worker that begins now; `None` if it is waited for until its deadline.
    pub(crate) fn of(worker: WorkerSlot, patience: Rc<Patience>) -> Option<Self> {
        let least = patience.timeouts.next?;
        Some(Self {
            patience,
            worker,
            least,
            since: Instant::now(),
            is_broken: false,
        })
    }

    pub(crate) fn worker(&self) -> WorkerSlot {
        self.worker
    }

    /// How long the worker has sent nothing, if that is too long.
    pub(crate) fn too_long(&mut self, now: Instant, is_continuable: bool) -> Option<Duration> {
        if std::mem::take(&mut self.is_broken) {
            self.since = now;
            return None;
        }
        let quiet = now.saturating_duration_since(self.since);
        let least = match is_continuable {
            true => self.least,
            false => self.least.saturating_mul(UNSURE),
        };
        let is_stuck = self
            .patience
            .is_stuck(self.worker, quiet, least, Expected::default());
        is_stuck.then_some(quiet)
    }
}
