//! One decision: candidates, policy, verdict, reservation. Synchronous, and without allocation once its buffers
//! have grown to the cluster's size.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use hashbrown::HashMap;
use metrics::{Counter, Histogram};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use signalbox_kv_index::{OverlapScores, SharedKvIndex};
use signalbox_policy_host::{Candidates, Decision, Fallback, PolicyRegistry, PolicyRunner, RequestFeatures};
use signalbox_protocol::SequenceHash;

use crate::{
    candidates::{NoCandidate, assemble, fill_optional},
    load::{LoadTable, Reservation},
    roster::{ModelEntry, WorkerEntry},
    selection,
};

/// Most counters kept at hand; policies come and go, and an old label costs a look-up again.
const MAX_COUNTERS: usize = 64;

/// What a decision needs of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand<'a> {
    pub(crate) prompt_tokens: u32,
    pub(crate) blocks: &'a [SequenceHash],
    pub(crate) expected_output_tokens: u32,
    pub(crate) priority: i32,
    pub(crate) session: u64,
    pub(crate) lora: u64,
}

/// The outcome.
#[derive(Debug)]
pub(crate) struct Placement {
    pub(crate) worker: WorkerEntry,
    /// `name@version` of who decided.
    pub(crate) policy: Arc<str>,
    /// Leading prompt blocks the worker holds on its device.
    pub(crate) overlap_blocks: u32,
    pub(crate) reservation: Reservation,
}

/// One thread's means to decide.
#[derive(Debug)]
pub(crate) struct Decider {
    index: SharedKvIndex,
    load: LoadTable,
    policies: PolicyRegistry,
    /// By model.
    runners: HashMap<String, PolicyRunner>,
    random: StdRng,
    overlaps: OverlapScores,
    columns: Candidates,
    rows: Vec<usize>,
    decision: Decision,
    counters: Vec<(Arc<str>, Counter)>,
    seconds: Histogram,
}

impl Decider {
    pub(crate) fn new(index: SharedKvIndex, load: LoadTable, policies: PolicyRegistry) -> Self {
        Self {
            index,
            load,
            policies,
            runners: HashMap::new(),
            random: StdRng::from_rng(&mut rand::rng()),
            overlaps: OverlapScores::default(),
            columns: Candidates::default(),
            rows: Vec::new(),
            decision: Decision::default(),
            counters: Vec::new(),
            seconds: metrics::histogram!("signalbox_decision_seconds"),
        }
    }

    /// Picks one of `model`'s workers, of those that `may_use` allows if it is given, and reserves the load there.
    pub(crate) fn decide(
        &mut self,
        model: &ModelEntry,
        demand: Demand<'_>,
        may_use: Option<impl Fn(&WorkerEntry) -> bool>,
    ) -> Result<Placement, NoCandidate> {
        let started = Instant::now();
        self.index
            .read(|index| index.overlaps(demand.blocks, &mut self.overlaps));
        assemble(
            &model.workers,
            &self.load,
            &self.overlaps,
            may_use,
            &mut self.columns,
            &mut self.rows,
        )?;

        let request = RequestFeatures {
            prompt_tokens: demand.prompt_tokens,
            prompt_blocks: u32::try_from(demand.blocks.len()).unwrap_or(u32::MAX),
            block_size: model.block_size,
            expected_output_tokens: demand.expected_output_tokens,
            priority: demand.priority,
            session: demand.session,
            lora: demand.lora,
            seed: self.random.random(),
            decision_number: model.decisions.fetch_add(1, Relaxed),
        };
        let runner = self
            .runners
            .entry_ref(&model.name)
            .or_insert_with(|| self.policies.runner(&model.name));
        let columns = &mut self.columns;
        let decided = runner.decide(
            &request,
            |wants_optional| {
                if wants_optional {
                    fill_optional(&model.workers, &self.load, &self.rows, columns);
                }
                columns
            },
            &mut self.decision,
        );
        let row = self.row(&request);
        debug_assert!(
            row < self.rows.len(),
            "P-1: a decision names a candidate of its own snapshot"
        );
        let overlap_blocks = self.columns.overlap_device.get(row).copied().unwrap_or(0);
        let worker = self
            .rows
            .get(row)
            .and_then(|place| model.workers.get(*place))
            .ok_or(NoCandidate::Unavailable)?
            .clone();

        let cached = overlap_blocks.saturating_mul(model.block_size);
        let prefill_tokens = demand.prompt_tokens.saturating_sub(cached);
        let decode_blocks = demand.prompt_tokens.div_ceil(model.block_size.max(1));
        let reservation = self.load.reserve(worker.slot, prefill_tokens, decode_blocks);
        self.count(&decided.by);
        self.seconds.record(started.elapsed());
        Ok(Placement {
            worker,
            policy: decided.by,
            overlap_blocks,
            reservation,
        })
    }

    /// The row the policy's answer names. A policy that excludes every candidate would strand the request: the
    /// fallback names one then.
    fn row(&mut self, request: &RequestFeatures) -> usize {
        let candidates = self.rows.len();
        let mut draw = |below: u32| self.random.random_range(0..below.max(1));
        if let Some(row) = selection::select_row(&self.decision, candidates, &mut draw) {
            return row;
        }
        Fallback.decide(request, &self.columns, &mut self.decision);
        selection::select_row(&self.decision, candidates, &mut draw).unwrap_or(0)
    }

    fn count(&mut self, policy: &Arc<str>) {
        if let Some((_, counter)) = self
            .counters
            .iter()
            .find(|(label, _)| Arc::ptr_eq(label, policy) || label == policy)
        {
            return counter.increment(1);
        }
        if self.counters.len() >= MAX_COUNTERS {
            self.counters.clear();
        }
        let counter = metrics::counter!("signalbox_policy_decisions_total", "policy" => policy.to_string());
        counter.increment(1);
        self.counters.push((policy.clone(), counter));
    }
}
