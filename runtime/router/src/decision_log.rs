//! Why each request went where it went: what a decision saw and chose, and what became of the request.
//!
//! Each thread that decides has a ring of its latest decisions. Recording allocates nothing once the ring's buffers have
//! grown to the size of the cluster: each record is written over the oldest one. Among many candidates only some decisions
//! keep all rows, so that recording costs a small share of a decision. The admin API reads all rings.
//!
//! With a [`DecisionSampler`], a share of the decisions is copied too, and leaves the process with the outcomes.

use std::sync::Arc;

use parking_lot::Mutex;
use signalbox_protocol::RequestId;

use crate::recorded_decision::DecisionOutcome;
use record::Record;
use sample::SampledDecision;

pub(crate) use record::Decided;
pub use sample::{DecisionFeed, DecisionSampler, NextDecision, decision_feed};
pub use view::{CandidateView, DecisionView};

mod record;
mod sample;
#[cfg(test)]
mod tests;
mod view;
mod words;

/// Decisions that a thread keeps. With 64 candidates each takes some 4 KB.
const MAX_RECORDS: usize = 256;
/// Most candidates of a decision that always keeps all rows. Copying more costs more than 0.3 µs.
const MAX_ROWS: usize = 128;
/// Of the decisions among more candidates, one in 16 keeps all rows.
const SAMPLED: u64 = 16;

/// The rings of all threads. Clone = handle.
#[derive(Debug, Clone, Default)]
pub(crate) struct DecisionLogs(Arc<LogsInner>);

#[derive(Debug, Default)]
struct LogsInner {
    logs: Mutex<Vec<DecisionLog>>,
    sampler: Option<DecisionSampler>,
}

/// The latest decisions of one thread. Clone = handle.
#[derive(Debug, Clone)]
pub(crate) struct DecisionLog(Arc<LogInner>);

#[derive(Debug)]
struct LogInner {
    /// The number of the thread, from 0.
    thread: u32,
    ring: Mutex<Ring>,
    sampler: Option<DecisionSampler>,
}

#[derive(Debug, Default)]
struct Ring {
    records: Vec<Record>,
    /// Decisions recorded so far.
    written: u64,
}

/// The record of one decision, for its outcome.
#[derive(Debug)]
pub(crate) struct DecisionTicket {
    log: DecisionLog,
    number: u64,
    /// Its copy, if it is in the sample.
    sampled: Option<Box<SampledDecision>>,
}

/// Which decisions to show.
#[derive(Debug, Clone, Default)]
pub struct DecisionFilter {
    /// Of this model.
    pub model: Option<String>,
    /// That chose this worker.
    pub worker: Option<String>,
    /// By this policy: its name, or `name@version`.
    pub policy: Option<String>,
    /// About this request.
    pub request: Option<String>,
    /// Whether the policy of each is asked for its reason.
    pub explained: bool,
    /// Most decisions to show; the latest come first.
    pub limit: usize,
}

impl DecisionLogs {
    /// Rings whose decisions the sampler may take.
    pub(crate) fn with_sampler(sampler: Option<DecisionSampler>) -> Self {
        Self(Arc::new(LogsInner {
            logs: Mutex::default(),
            sampler,
        }))
    }

    /// The ring of one more thread.
    pub(crate) fn add(&self) -> DecisionLog {
        let mut logs = self.0.logs.lock();
        let log = DecisionLog(Arc::new(LogInner {
            thread: u32::try_from(logs.len()).unwrap_or(u32::MAX),
            ring: Mutex::default(),
            sampler: self.0.sampler.clone(),
        }));
        logs.push(log.clone());
        log
    }

    /// The recorded decisions that the filter lets pass, the latest first.
    ///
    /// A thread that decides waits only while its records are copied.
    pub(crate) fn find(&self, filter: &DecisionFilter) -> Vec<DecisionView> {
        let logs = self.0.logs.lock().clone();
        let mut found: Vec<Record> = Vec::new();
        for log in &logs {
            let ring = log.0.ring.lock();
            let mut latest: Vec<&Record> = ring
                .records
                .iter()
                .filter(|record| filter.passes(record))
                .collect();
            latest.sort_by_key(|record| std::cmp::Reverse(record.number));
            found.extend(latest.into_iter().take(filter.limit).cloned());
        }
        // A request has one thread, so the order of its decisions is kept within a millisecond, too.
        found.sort_by_key(|record| std::cmp::Reverse(record.at_unix_ms));
        found.truncate(filter.limit);
        found.iter().map(|record| record.view(filter.explained)).collect()
    }
}

impl DecisionLog {
    /// Records a decision.
    pub(crate) fn record(&self, decided: Decided<'_>) -> DecisionTicket {
        let blocks = decided.blocks;
        let sampler = self.0.sampler.as_ref().filter(|sampler| sampler.takes(&decided));
        let mut ring = self.0.ring.lock();
        let number = ring.written;
        ring.written += 1;
        let place = number as usize % MAX_RECORDS;
        if place >= ring.records.len() {
            ring.records.push(Record::default());
        }
        let record = &mut ring.records[place];
        let keeps_rows =
            decided.rows.len() <= MAX_ROWS || number.is_multiple_of(SAMPLED) || sampler.is_some();
        record.write(number, decided, keeps_rows);
        let sampled = sampler.and_then(|sampler| sampler.copy(self.0.thread, record, blocks));
        drop(ring);
        DecisionTicket {
            log: self.clone(),
            number,
            sampled,
        }
    }
}

impl DecisionTicket {
    /// The decision in words, from its costs; `None` if its record has been written over.
    pub(crate) fn explanation(&self) -> Option<String> {
        let ring = self.log.0.ring.lock();
        let record = ring.records.get(self.number as usize % MAX_RECORDS)?;
        (record.number == self.number).then(|| record.explanation())
    }

    /// The request has ended at the worker that was chosen.
    pub(crate) fn ended(self, outcome: DecisionOutcome) {
        let mut ring = self.log.0.ring.lock();
        let place = self.number as usize % MAX_RECORDS;
        if let Some(record) = ring.records.get_mut(place)
            && record.number == self.number
        {
            record.outcome = Some(outcome);
        }
        drop(ring);
        if let Some(sampled) = self.sampled {
            sampled.ended(outcome);
        }
    }
}

impl DecisionFilter {
    fn passes(&self, record: &Record) -> bool {
        let is =
            |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
        let policy = self.policy.as_deref();
        let name = record.policy.split('@').next().unwrap_or_default();
        is(&self.model, &record.model)
            && is(&self.worker, record.chosen_worker())
            && is(
                &self.request,
                record.request.as_ref().map_or("", RequestId::as_str),
            )
            && policy.is_none_or(|policy| policy == &*record.policy || policy == name)
    }
}
