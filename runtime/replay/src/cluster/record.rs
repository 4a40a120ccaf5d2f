//! What happened in a run. The figures are computed of it afterwards (`figures.rs`).

use std::{sync::Arc, time::Duration};

use super::worker::WorkerRecord;
use crate::trace::Trace;

/// Everything that happened in a run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRecord {
    /// By the number of the request.
    pub requests: Vec<RequestRecord>,
    /// By the number of the worker.
    pub workers: Vec<WorkerRecord>,
    /// The times between two tokens of one answer.
    pub gaps: TokenGaps,
    /// The decisions.
    pub decisions: DecisionRecord,
    /// When the last event happened.
    pub end: Duration,
}

/// What happened to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// When it arrived.
    pub arrival: Duration,
    /// When its first token was there.
    pub first_token: Option<Duration>,
    /// When its last token was there, or it was refused.
    pub end: Duration,
    /// How it ended.
    pub outcome: RequestOutcome,
    /// The worker that had it last.
    pub worker: Option<u32>,
    /// Tokens of the answer.
    pub generated_tokens: u32,
    /// Tokens of the prompt that its first worker took from its KV cache.
    pub cached_tokens: Option<u32>,
    /// Tokens of the prompt that the router expected its first worker to have.
    pub credited_tokens: u32,
    /// How often it moved to another worker because its own failed.
    pub moves: u32,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestOutcome {
    /// It has not ended.
    Open,
    /// The client has the whole answer.
    Completed,
    /// Every worker had as many requests as it takes.
    Shed,
    /// No worker was there, or its prompt is longer than a KV cache.
    Failed,
}

/// The times between two tokens of one answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenGaps {
    /// Each one, in microseconds. A longer one than an hour counts as `u32::MAX`.
    pub micros: Vec<u32>,
    /// Their sum.
    pub total: Duration,
}

/// The decisions of a run.
#[derive(Debug, Clone, Default)]
pub struct DecisionRecord {
    /// How many there were.
    pub count: u64,
    /// How many the fallback made, because the policy failed.
    pub by_fallback: u64,
    /// `name@version` of the policy.
    pub policy: Option<Arc<str>>,
    /// How long they took on this machine, all together. No figure that is compared depends on it.
    pub took: Duration,
}

impl PartialEq for DecisionRecord {
    /// All but the time that the decisions took on this machine.
    fn eq(&self, other: &Self) -> bool {
        (self.count, self.by_fallback, &self.policy) == (other.count, other.by_fallback, &other.policy)
    }
}

impl RunRecord {
    pub(super) fn new(trace: &Trace) -> Self {
        let request = |request: &crate::trace::TraceRequest| RequestRecord {
            input_tokens: request.input_tokens,
            arrival: Duration::ZERO,
            first_token: None,
            end: Duration::ZERO,
            outcome: RequestOutcome::Open,
            worker: None,
            generated_tokens: 0,
            cached_tokens: None,
            credited_tokens: 0,
            moves: 0,
        };
        Self {
            requests: trace.requests.iter().map(request).collect(),
            workers: Vec::new(),
            gaps: TokenGaps::default(),
            decisions: DecisionRecord::default(),
            end: Duration::ZERO,
        }
    }
}

impl TokenGaps {
    pub(super) fn add(&mut self, gap: Duration) {
        self.micros.push(gap.as_micros().try_into().unwrap_or(u32::MAX));
        self.total += gap;
    }
}

impl DecisionRecord {
    /// A decision by the policy with this label.
    pub(super) fn add(&mut self, policy: &Arc<str>, took: Duration) {
        self.count += 1;
        self.took += took;
        if policy.starts_with("fallback@") {
            self.by_fallback += 1;
        } else if self.policy.as_ref() != Some(policy) {
            self.policy = Some(policy.clone());
        }
    }
}
