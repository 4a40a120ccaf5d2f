//! One decision: list the candidates, call the policy, select a candidate, reserve its load. Synchronous. It allocates
//! nothing after its buffers have grown to the size of the cluster.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use metrics::{Counter, Histogram};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use signalbox_kv_index::{OverlapScores, SharedKvIndex};
use signalbox_policy_host::{
    Candidates, Decision, Fallback, Outcome, PolicyRegistry, RequestFeatures, RequestKeys,
};
use signalbox_protocol::{RequestId, name_hash};

use crate::{
    affinity::AffinityTable,
    candidates::{NoCandidate, Sources, assemble, fill_wanted},
    decision_log::{Decided, DecisionLog, DecisionTicket},
    latency::LatencyTable,
    load::{LoadTable, Reservation},
    outcome::Awaited,
    roster::{ModelEntry, RosterView, WorkerEntry},
    runners::Runners,
    selection::select_row,
    unix_time::unix_ms,
    versioned_prompt::{Suitable, VersionedPrompt, convert_blocks, convert_wanted_blocks, look_up_others},
};

#[cfg(test)]
mod tests;

/// Most counters and names that a thread keeps at hand, one per policy version or model. At the limit all are dropped, and
/// each counter costs one look-up in the registry of metrics again.
const MAX_COUNTERS: usize = 64;

/// What a decision reads of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand<'a> {
    /// The request's id, for the record of the decision.
    pub(crate) request: Option<&'a RequestId>,
    /// The prompt for the workers of each version of the model: usually there is one.
    pub(crate) prompts: &'a [VersionedPrompt<'a>],
    pub(crate) expected_output_tokens: u32,
    /// The choices wanted, each a sequence of the engine.
    pub(crate) choices: u32,
    /// Most tokens of one choice, as the client set it.
    pub(crate) max_output_tokens: Option<u32>,
    pub(crate) priority: i32,
    /// How many workers failed the request.
    pub(crate) attempt: u32,
    /// Milliseconds until the request's deadline.
    pub(crate) deadline_ms: f32,
    /// Hashes of what the client named.
    pub(crate) keys: &'a RequestKeys,
    /// Whether the answer explains the decision.
    pub(crate) explained: bool,
}

/// The chosen worker and the load reserved there.
#[derive(Debug)]
pub(crate) struct Placement {
    pub(crate) worker: WorkerEntry,
    /// `name@version` of the policy that decided.
    pub(crate) policy: Arc<str>,
    /// Leading KV blocks of the prompt that the worker holds on its device, in blocks of its own size.
    pub(crate) overlap_blocks: u32,
    /// Prompt tokens beyond those blocks.
    pub(crate) uncached_tokens: u32,
    pub(crate) reservation: Reservation,
    pub(crate) awaited: Awaited,
    /// The decision in words, if they were asked for and decisions are recorded.
    pub(crate) explanation: Option<String>,
}

/// Makes the decisions of one thread: its policy runners, and the buffers it fills anew for each decision.
#[derive(Debug)]
pub(crate) struct Decider {
    index: SharedKvIndex,
    load: LoadTable,
    latency: LatencyTable,
    affinity: AffinityTable,
    runners: Runners,
    /// Draws the seed of each decision, and nothing else.
    seeds: StdRng,
    overlaps: OverlapScores,
    /// The overlaps with the prompt of another version.
    other_overlaps: OverlapScores,
    columns: Candidates,
    /// For each row of `columns`, the place of its worker among the model's workers.
    rows: Vec<usize>,
    decision: Decision,
    counters: Vec<(Arc<str>, Counter)>,
    seconds: Histogram,
    /// `None` where decisions are not recorded.
    log: Option<DecisionLog>,
    /// The names of models, each allocated once.
    models: Vec<Arc<str>>,
}

impl Decider {
    pub(crate) fn new(index: SharedKvIndex, load: LoadTable, policies: PolicyRegistry) -> Self {
        Self::with_seed(index, load, policies, rand::rng().random())
    }

    /// A decider whose decisions have the seeds that `seed` determines.
    pub(crate) fn with_seed(
        index: SharedKvIndex,
        load: LoadTable,
        policies: PolicyRegistry,
        seed: u64,
    ) -> Self {
        Self {
            index,
            load,
            latency: LatencyTable::default(),
            affinity: AffinityTable::default(),
            runners: Runners::new(policies),
            seeds: StdRng::seed_from_u64(seed),
            overlaps: OverlapScores::default(),
            other_overlaps: OverlapScores::default(),
            columns: Candidates::default(),
            rows: Vec::new(),
            decision: Decision::default(),
            counters: Vec::new(),
            seconds: metrics::histogram!("signalbox_decision_seconds"),
            log: None,
            models: Vec::new(),
        }
    }

    /// The same decider, which reads these tables of the process.
    pub(crate) fn with_tables(self, latency: LatencyTable, affinity: AffinityTable) -> Self {
        Self {
            latency,
            affinity,
            ..self
        }
    }

    /// The same decider, which records its decisions.
    pub(crate) fn with_log(self, log: DecisionLog) -> Self {
        Self {
            log: Some(log),
            ..self
        }
    }

    /// Gives the policy of a model the outcomes of requests that this decider placed, oldest first.
    pub(crate) fn observe(&mut self, model: &str, outcomes: &[Outcome]) {
        if let Some(runner) = self.runners.kept(model) {
            runner.observe(outcomes);
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
        let now = Instant::now();
        self.decide_at(model, demand, may_use, now, self.load.clock_ms(now))
    }

    /// As [`Decider::decide`], at `now_ms` of the clock that policies see.
    pub(crate) fn decide_at(
        &mut self,
        model: &ModelEntry,
        demand: Demand<'_>,
        may_use: Option<impl Fn(&WorkerEntry) -> bool>,
        started: Instant,
        now_ms: u64,
    ) -> Result<Placement, NoCandidate> {
        let Some((first, others)) = demand.prompts.split_first() else {
            return Err(NoCandidate::Unavailable);
        };
        self.index
            .read(|index| index.overlaps(first.blocks, &mut self.overlaps));
        let (scratch, overlaps) = (&mut self.other_overlaps, &mut self.overlaps);
        look_up_others(&self.index, others, &model.workers, scratch, overlaps);
        self.list_candidates(model, demand.prompts, may_use)?;
        let block_size = first.version.block_size;
        let has_other_sizes = model.versions.len() > 1;
        if has_other_sizes {
            convert_blocks(&model.workers, &self.rows, block_size, &mut self.columns);
        }

        let request = RequestFeatures {
            prompt_tokens: first.tokens,
            prompt_blocks: u32::try_from(first.blocks.len()).unwrap_or(u32::MAX),
            block_size,
            max_output_tokens: demand.max_output_tokens,
            expected_output_tokens: demand.expected_output_tokens,
            choices: demand.choices,
            priority: demand.priority,
            attempt: demand.attempt,
            now_ms,
            deadline_ms: demand.deadline_ms,
            keys: RequestKeys {
                prefix: first.prefix_key(),
                ..demand.keys.clone()
            },
            seed: self.seeds.random(),
            decision_number: model.decisions.fetch_add(1, Relaxed),
            other_routers: self.load.other_routers(),
        };
        let runner = self.runners.of(&model.name, started);
        let columns = &mut self.columns;
        let sources = Sources {
            workers: &model.workers,
            load: &self.load,
            latency: &self.latency,
            affinity: &self.affinity,
            rows: &self.rows,
            session: demand.keys.session,
            now_ms,
        };
        let mut notes_session = false;
        let decided = runner.decide(
            &request,
            |wanted| {
                notes_session = wanted.groups.affinity();
                fill_wanted(wanted, &sources, columns);
                if has_other_sizes {
                    convert_wanted_blocks(&model.workers, &self.rows, block_size, columns);
                }
                columns
            },
            &mut self.decision,
        );
        let observes = runner.observes();
        let activation = runner.activation();
        // Where the label is another one, the fallback decided.
        let is_recorded_policy = self.log.is_some() && Arc::ptr_eq(&activation.label, &decided.by);
        let component = is_recorded_policy.then(|| activation.component.clone());
        if let Some(rejection) = self.decision.rejection.take() {
            self.count(&decided.by);
            return Err(NoCandidate::Rejected(rejection));
        }
        let row = self.selected_row(&request);
        debug_assert!(
            row < self.rows.len(),
            "P-1: a decision names a candidate it was given"
        );
        let worker = self
            .rows
            .get(row)
            .and_then(|place| model.workers.get(*place))
            .ok_or(NoCandidate::Unavailable)?
            .clone();

        let prompt = VersionedPrompt::of(demand.prompts, worker.version).unwrap_or(first);
        let block_size = worker.version.block_size;
        let overlap_blocks = self.overlaps.device(worker.slot);
        let cached = overlap_blocks.saturating_mul(block_size);
        let uncached_tokens = prompt.tokens.saturating_sub(cached);
        let decode_blocks = prompt.tokens.div_ceil(block_size.max(1));
        let reservation = self
            .load
            .reserve(worker.slot, uncached_tokens, decode_blocks)
            .of_sequences(demand.choices, block_size);
        if notes_session {
            self.affinity.note(demand.keys.session, worker.slot, now_ms);
        }
        self.count(&decided.by);
        let took = started.elapsed();
        self.seconds.record(took);
        let name = self.name_of(model);
        let known = Outcome {
            worker: name_hash(worker.card.id.as_str()),
            decision_number: request.decision_number,
            prompt_tokens: prompt.tokens,
            overlap_blocks,
            ..Outcome::default()
        };
        let ticket = self.log.as_ref().map(|log| {
            log.record(Decided {
                at_unix_ms: unix_ms(),
                took_ns: u32::try_from(took.as_nanos()).unwrap_or(u32::MAX),
                request: demand.request,
                model: &name,
                policy: &decided.by,
                component: component.as_ref(),
                features: request,
                blocks: first.blocks,
                ids: &model.workers.columns().ids,
                rows: &self.rows,
                columns: &self.columns,
                decision: &self.decision,
                chosen_row: row,
            })
        });
        let explained = ticket.as_ref().filter(|_| demand.explained);
        let explanation = explained.and_then(DecisionTicket::explanation);
        Ok(Placement {
            worker,
            policy: decided.by,
            overlap_blocks,
            uncached_tokens,
            reservation,
            awaited: Awaited {
                ticket,
                observed: observes.then_some(name),
                known,
            },
            explanation,
        })
    }

    /// The model's name, allocated once.
    fn name_of(&mut self, model: &ModelEntry) -> Arc<str> {
        if let Some(name) = self.models.iter().find(|name| ***name == *model.name) {
            return name.clone();
        }
        if self.models.len() >= MAX_COUNTERS {
            self.models.clear();
        }
        let name: Arc<str> = model.name.as_str().into();
        self.models.push(name.clone());
        name
    }

    /// Fills `self.columns` and `self.rows` with the workers that suit the request and can take it now: those with the context
    /// that it wants or, if they cannot take it, those with the context that it needs.
    fn list_candidates(
        &mut self,
        model: &ModelEntry,
        prompts: &[VersionedPrompt<'_>],
        may_use: Option<impl Fn(&WorkerEntry) -> bool>,
    ) -> Result<(), NoCandidate> {
        let (workers, columns, rows) = (&model.workers, &mut self.columns, &mut self.rows);
        if let [only] = prompts
            && only.suits_all(model)
        {
            return assemble(workers, &self.load, &self.overlaps, may_use, columns, rows);
        }
        let suitable = Suitable::new(prompts, model)?;
        let may_use = |worker: &WorkerEntry| may_use.as_ref().is_none_or(|may_use| may_use(worker));
        let wanted = |worker: &WorkerEntry| suitable.has_wanted(worker) && may_use(worker);
        let least = |worker: &WorkerEntry| suitable.has_least(worker) && may_use(worker);
        match assemble(workers, &self.load, &self.overlaps, Some(wanted), columns, rows) {
            Err(reason) if suitable.may_take_least(&reason) => {
                assemble(workers, &self.load, &self.overlaps, Some(least), columns, rows)
            }
            outcome => outcome,
        }
    }

    /// Drops the policy instances of models that nobody asks for.
    pub(crate) fn drop_unused_runners(&mut self, view: &RosterView) {
        let has_workers = |model: &ModelEntry| !model.workers.is_empty();
        self.runners.drop_unused(Instant::now(), |model| {
            view.models.get(model).is_some_and(|model| has_workers(model))
        });
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
