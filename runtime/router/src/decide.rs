//! One decision: list the candidates, call the policy, select a candidate, reserve its load. Synchronous. It allocates
//! nothing after its buffers have grown to the size of the cluster.

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
    selection::select_row,
};

#[cfg(test)]
mod tests;

/// Most counters that a thread keeps at hand, one per policy version. At the limit all are dropped, and each costs one
/// look-up in the registry of metrics again.
const MAX_COUNTERS: usize = 64;

/// What a decision reads of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand<'a> {
    pub(crate) prompt_tokens: u32,
    /// The whole KV blocks of the prompt.
    pub(crate) blocks: &'a [SequenceHash],
    pub(crate) expected_output_tokens: u32,
    pub(crate) priority: i32,
    /// Hash of the client's session or user; 0 for none.
    pub(crate) session: u64,
    /// Hash of the LoRA adapter's name; 0 for the base model.
    pub(crate) lora: u64,
}

/// The chosen worker and the load reserved there.
#[derive(Debug)]
pub(crate) struct Placement {
    pub(crate) worker: WorkerEntry,
    /// `name@version` of the policy that decided.
    pub(crate) policy: Arc<str>,
    /// Leading KV blocks of the prompt that the worker holds on its device.
    pub(crate) overlap_blocks: u32,
    /// Prompt tokens beyond those blocks.
    pub(crate) uncached_tokens: u32,
    pub(crate) reservation: Reservation,
}

/// Makes the decisions of one thread: its policy runners, and the buffers it fills anew for each decision.
#[derive(Debug)]
pub(crate) struct Decider {
    index: SharedKvIndex,
    load: LoadTable,
    policies: PolicyRegistry,
    /// By the name of the model.
    runners: HashMap<String, PolicyRunner>,
    /// Draws the seed of each decision, and nothing else.
    seeds: StdRng,
    overlaps: OverlapScores,
    columns: Candidates,
    /// For each row of `columns`, the place of its worker among the model's workers.
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
            seeds: StdRng::from_rng(&mut rand::rng()),
            overlaps: OverlapScores::default(),
            columns: Candidates::default(),
            rows: Vec::new(),
            decision: Decision::default(),
            counters: Vec::new(),
            seconds: metrics::histogram!("signalbox_decision_seconds"),
        }
    }

    /// Chooses one of `model`'s workers and reserves the request's load there. `may_use` limits the choice; `None`
    /// allows every worker.
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
            seed: self.seeds.random(),
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
        let row = self.selected_row(&request);
        debug_assert!(
            row < self.rows.len(),
            "P-1: a decision names a candidate it was given"
        );
        let overlap_blocks = self.columns.overlap_device.get(row).copied().unwrap_or(0);
        let worker = self
            .rows
            .get(row)
            .and_then(|place| model.workers.get(*place))
            .ok_or(NoCandidate::Unavailable)?
            .clone();

        let cached = overlap_blocks.saturating_mul(model.block_size);
        let uncached_tokens = demand.prompt_tokens.saturating_sub(cached);
        let decode_blocks = demand.prompt_tokens.div_ceil(model.block_size.max(1));
        let reservation = self.load.reserve(worker.slot, uncached_tokens, decode_blocks);
        self.count(&decided.by);
        self.seconds.record(started.elapsed());
        Ok(Placement {
            worker,
            policy: decided.by,
            overlap_blocks,
            uncached_tokens,
            reservation,
        })
    }

    /// The row of the candidate that `self.decision` selects. `accept` of `policy-host/src/convert.rs` has checked the
    /// decision. This second check guards against a bug: if the decision selects no candidate, the fallback decides.
    fn selected_row(&mut self, request: &RequestFeatures) -> usize {
        let candidates = self.rows.len();
        if let Some(row) = select_row(&self.decision, candidates, request.seed) {
            return row;
        }
        Fallback.decide(request, &self.columns, &mut self.decision);
        select_row(&self.decision, candidates, request.seed).unwrap_or(0)
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
