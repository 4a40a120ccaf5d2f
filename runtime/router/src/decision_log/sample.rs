//! Decisions that leave the process: a sample of all, each with the outcome of its request.
//!
//! A sampled decision is copied when it is made, and queued when its request ends. Nothing on the request's path waits: where
//! the copies that wait for outcomes and for the reader take too much memory, a decision is dropped and counted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use metrics::{Counter, counter, describe_counter};
use signalbox_protocol::{RouterId, SequenceHash, name_hash};

use super::record::{Decided, Record};
use crate::{
    recorded_decision::{DECISION_FORMAT, DecisionOutcome, RecordedDecision},
    selection::scramble,
};

/// Most bytes of sampled decisions whose requests are under way, or that wait for the reader: 16,000 decisions among 64
/// candidates.
const MAX_BYTES: usize = 64 << 20;
/// Most decisions that wait for the reader: a second's worth of a busy router, with a reader that pauses so long.
const MAX_QUEUED: usize = 16_384;
/// Longest settings of a policy that a record repeats, in bytes. Longer ones would be most of each line.
const MAX_SETTINGS: usize = 16 << 10;

/// Chooses the decisions that leave the process. Clone = handle.
#[derive(Debug, Clone)]
pub struct DecisionSampler(Arc<SamplerInner>);

#[derive(Debug)]
struct SamplerInner {
    router: RouterId,
    share: f64,
    queue: SyncSender<SampledDecision>,
    bytes: Arc<AtomicUsize>,
    /// Dropped since the copies took too much memory, or since the queue was full.
    dropped: Counter,
}

/// The other end: sampled decisions whose requests have ended, in the order in which they ended.
#[derive(Debug)]
pub struct DecisionFeed(Receiver<SampledDecision>);

/// What a [`DecisionFeed`] has next.
#[derive(Debug)]
pub enum NextDecision {
    /// A decision.
    Decision(Box<RecordedDecision>),
    /// None has come in the time given.
    Idle,
    /// There will be no more: the router is gone.
    Ended,
}

/// A copy of a decision, on its way to the feed.
#[derive(Debug)]
pub(super) struct SampledDecision {
    sampler: Arc<SamplerInner>,
    thread: u32,
    record: Record,
    blocks: Vec<SequenceHash>,
    bytes: usize,
}

/// A sampler of a share (0 to 1) of the decisions of this incarnation of a router, and the feed to read them from.
#[must_use]
pub fn decision_feed(router: RouterId, share: f64) -> (DecisionSampler, DecisionFeed) {
    describe_counter!(
        "signalbox_decisions_dropped_total",
        "Sampled decisions that were not written, by reason: memory, queue, size or output"
    );
    let (queue, feed) = sync_channel(MAX_QUEUED);
    let sampler = SamplerInner {
        router,
        share,
        queue,
        bytes: Arc::default(),
        dropped: counter!("signalbox_decisions_dropped_total", "reason" => "queue"),
    };
    (DecisionSampler(Arc::new(sampler)), DecisionFeed(feed))
}

impl DecisionFeed {
    /// Waits so long for the next decision.
    #[must_use]
    pub fn next(&self, longest: Duration) -> NextDecision {
        match self.0.recv_timeout(longest) {
            Ok(sampled) => NextDecision::Decision(Box::new(sampled.recorded())),
            Err(RecvTimeoutError::Timeout) => NextDecision::Idle,
            Err(RecvTimeoutError::Disconnected) => NextDecision::Ended,
        }
    }
}

impl DecisionSampler {
    /// Whether a decision is in the sample. All decisions about one session are, or none, so that a replay of the sample has
    /// whole conversations; without a session, all decisions about one request.
    pub(super) fn takes(&self, decided: &Decided<'_>) -> bool {
        if self.0.share >= 1.0 {
            return true;
        }
        let key = match (decided.features.keys.session, decided.request) {
            (0, Some(request)) => name_hash(request.as_str()),
            (0, None) => decided.features.seed,
            (session, _) => session,
        };
        // Scrambled, so that it is no sample of what else is divided by the session's hash. 53 bits are exact in an f64.
        let drawn = scramble(key) >> 11;
        (drawn as f64) < self.0.share * (1_u64 << 53) as f64
    }

    /// A copy of a record, if there is memory for it.
    pub(super) fn copy(
        &self,
        thread: u32,
        record: &Record,
        blocks: &[SequenceHash],
    ) -> Option<Box<SampledDecision>> {
        let bytes = bytes_of(record, blocks);
        if self.0.bytes.fetch_add(bytes, Relaxed).saturating_add(bytes) > MAX_BYTES {
            self.0.bytes.fetch_sub(bytes, Relaxed);
            counter!("signalbox_decisions_dropped_total", "reason" => "memory").increment(1);
            return None;
        }
        Some(Box::new(SampledDecision {
            sampler: self.0.clone(),
            thread,
            record: record.clone(),
            blocks: blocks.to_vec(),
            bytes,
        }))
    }
}

impl SampledDecision {
    /// The request has ended: the decision goes to the feed.
    pub(super) fn ended(mut self, outcome: DecisionOutcome) {
        self.record.outcome = Some(outcome);
        let sampler = self.sampler.clone();
        match sampler.queue.try_send(self) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => sampler.dropped.increment(1),
            // The process stops.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    fn recorded(&self) -> RecordedDecision {
        let record = &self.record;
        let component = record.component.upgrade();
        let settings = component
            .as_ref()
            .map(|component| component.settings().to_owned());
        RecordedDecision {
            signalbox_decision: DECISION_FORMAT,
            router: self.sampler.router.to_string(),
            thread: self.thread,
            number: record.number,
            sample: self.sampler.share,
            at_unix_ms: record.at_unix_ms,
            took_ns: record.took_ns,
            request: record.request.as_ref().map(|id| id.as_str().to_owned()),
            model: record.model.to_string(),
            policy: record.policy.to_string(),
            digest: component.map(|component| component.digest().to_owned()),
            settings: settings.filter(|settings| settings.len() <= MAX_SETTINGS),
            features: record.features.clone(),
            blocks: self.blocks.clone(),
            workers: (0..record.rows.len())
                .map(|row| record.worker(row).to_owned())
                .collect(),
            columns: record.columns.clone(),
            costs: record.costs.clone(),
            pick: record.pick,
            chosen: record.chosen_row,
            outcome: record.outcome,
        }
    }
}

impl Drop for SampledDecision {
    fn drop(&mut self) {
        self.sampler.bytes.fetch_sub(self.bytes, Relaxed);
    }
}

/// About how much memory a copy takes: at most some 40 columns of 4 to 8 bytes for each row.
fn bytes_of(record: &Record, blocks: &[SequenceHash]) -> usize {
    const OF_A_ROW: usize = 160;
    size_of::<SampledDecision>() + record.rows.len() * OF_A_ROW + size_of_val(blocks)
}
