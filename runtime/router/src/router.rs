//! The state that every router replica of a process shares, its start, and the views that the admin API shows.

use std::sync::Arc;

use actix::prelude::*;
use arc_swap::ArcSwap;
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use signalbox_discovery::Discovery;
use signalbox_event_plane::EventPlane;
use signalbox_kv_index::SharedKvIndex;
use signalbox_policy_host::PolicyRegistry;
use signalbox_policy_store::SharedStore;
use signalbox_protocol::{LoraAdapter, Parity, PlaneStatus, ReplicaLoad, WorkerCard, WorkerEpoch, WorkerId};
use signalbox_request_plane::LinkConfig;
use signalbox_tokenize::ModelText;
use tokio::sync::watch;

use crate::{
    affinity::AffinityTable,
    audit::AuditLog,
    block_learner::{self, BlockLearnerHandle},
    breaker::BreakerConfig,
    continuation::KeptBytes,
    decision_log::{DecisionFilter, DecisionLogs, DecisionSampler, DecisionView},
    health::{self, WorkerHealth},
    index_figures,
    latency::{self, LatencyTable, MeasuredLatency},
    load::{EventState, LoadTable},
    parity::{self, ParityTable},
    patience::TokenTimeouts,
    policy_replicator::PolicyReplicatorHandle,
    replica_sync::{PublishedLoads, ReplicaConfig, ReplicaSync},
    retries::{self, Retries},
    rivals::IdConflict,
    roster::{ModelEntry, ModelVersion, PromptForm, RosterView, WorkerEntry, WorkerPhase},
    roster_listeners::RosterListeners,
    supervisor::ActorHandle,
    worker_roster::WorkerRoster,
    worker_session::SessionContext,
};

/// The parts that a router is started from.
#[derive(Debug)]
pub struct RouterConfig {
    /// Where workers are found. A worker that several of them list counts once.
    pub discovery: Vec<Arc<dyn Discovery>>,
    /// Carries the workers' KV events to this router.
    pub events: Arc<dyn EventPlane>,
    /// Copy KV events from the workers' request plane into `events`. Needed if nothing else carries them there.
    pub feeds_events: bool,
    /// The policies that decide.
    pub policies: PolicyRegistry,
    /// The store that `policies` are kept equal to.
    pub policy_store: Arc<dyn SharedStore>,
    /// Where changes of policies are recorded.
    pub audit: AuditLog,
    /// How this router and the others exchange what they have in flight; `None` to count this router's load only.
    pub replicas: Option<ReplicaConfig>,
    /// The planes by name, for `/health`.
    pub planes: Vec<(&'static str, watch::Receiver<PlaneStatus>)>,
    /// Takes decisions out of the process; `None` for none.
    pub decisions: Option<DecisionSampler>,
    /// Bounds of every worker link.
    pub links: LinkConfig,
    /// Most bytes of the KV index (K-3).
    pub index_bytes: usize,
    /// When workers that fail get no requests.
    pub breakers: BreakerConfig,
    /// How long requests wait for tokens of a worker that may be stuck.
    pub token_timeouts: TokenTimeouts,
}

/// The state that every router replica of a process shares: roster, KV index, load table, policies. Clone = handle.
#[derive(Debug, Clone)]
pub struct Router {
    pub(crate) view: Arc<ArcSwap<RosterView>>,
    pub(crate) index: SharedKvIndex,
    pub(crate) load: LoadTable,
    pub(crate) parity: ParityTable,
    pub(crate) latency: LatencyTable,
    pub(crate) affinity: AffinityTable,
    pub(crate) decisions: DecisionLogs,
    pub(crate) kept_bytes: KeptBytes,
    pub(crate) retries: Retries,
    pub(crate) token_timeouts: TokenTimeouts,
    /// Held so that the learner runs, and is started again if it fails.
    pub(crate) learner: BlockLearnerHandle,
    pub(crate) links: LinkConfig,
    /// The actors that follow the view.
    pub(crate) roster_listeners: RosterListeners,
    /// Held so that the actor is started again if it fails.
    _roster: ActorHandle<WorkerRoster>,
    /// Held likewise.
    _replica_sync: Option<ActorHandle<ReplicaSync>>,
    planes: Arc<[(&'static str, watch::Receiver<PlaneStatus>)]>,
    policies: PolicyReplicatorHandle,
    audit: AuditLog,
    arbiter: ArbiterHandle,
}

/// A model that this router serves, or has served.
#[derive(Debug, Clone)]
pub struct ModelView {
    /// The name that clients ask for.
    pub name: String,
    /// What it is an adapter of, if it is a LoRA adapter.
    pub adapter: Option<AdapterView>,
    /// Seconds since the Unix epoch when it was first served.
    pub created: u64,
    /// How workers read prompts: a request is made ready for this.
    pub form: PromptForm,
    /// Most tokens of a prompt and its answer together at any ready worker that reads prompts in this form.
    pub context_length: u32,
    /// Whether these workers' engines read clients' bodies themselves. Such a body needs only the checks of routing.
    pub reads_body: bool,
    /// The tokenizer and chat template of this form.
    pub text: Arc<ModelText>,
    /// The model in the other forms that its workers read. There are some while a rolling update changes the tokenizer.
    pub other_forms: Vec<Self>,
}

impl ModelView {
    /// Most tokens of a prompt and its answer together at any ready worker.
    pub fn longest_context(&self) -> u32 {
        let others = self.other_forms.iter().map(|other| other.context_length);
        others.fold(self.context_length, u32::max)
    }

    /// All forms of prompts that workers of the model read.
    pub fn forms(&self) -> impl Iterator<Item = PromptForm> {
        std::iter::once(self.form).chain(self.other_forms.iter().map(|other| other.form))
    }
}

/// What makes a model a LoRA adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterView {
    /// The name of the base model.
    pub base: String,
    /// Where the engine loaded the adapter from, if it states that.
    pub root: Option<String>,
}

/// A worker as `/health` and `/admin/v1/workers` show it.
#[derive(Debug, Clone)]
pub struct InstanceView {
    /// The worker's own description of itself.
    pub card: Arc<WorkerCard>,
    /// Whether the worker may be given work.
    pub state: WorkerPhase,
    /// The version of the model that the worker serves: its tokenizer and block size as one name, equal on all routers.
    pub version: String,
    /// Whether discovery lists the worker. One that is not listed stays present for as long as its connection answers.
    pub listed: bool,
    /// The LoRA adapters that the worker's engine has loaded, as last reported.
    pub adapters: Vec<LoraAdapter>,
    /// This router's requests in flight on the worker.
    pub requests: u32,
    /// Prompt tokens of this router's requests that the worker has yet to compute.
    pub prefill_tokens: u32,
    /// KV blocks of this router's requests.
    pub decode_blocks: u32,
    /// What all other routers together have in flight on the worker.
    pub others: ReplicaLoad,
    /// KV blocks that the index credits the worker with.
    pub index_blocks: usize,
    /// Where those blocks come from.
    pub events: EventState,
    /// How exact this router's knowledge of the worker's KV cache is.
    pub kv: Parity,
    /// The worker's latency, as this router measures it from its own streams.
    pub latency: MeasuredLatency,
    /// Whether the worker fails its requests.
    pub health: WorkerHealth,
}

/// The KV index in figures, as `/admin/v1/index` shows it.
#[derive(Debug, Clone)]
pub struct IndexView {
    /// Triples of a worker, a tier and a block that the worker holds on that tier.
    pub memberships: usize,
    /// Different blocks that any worker holds.
    pub blocks: usize,
    /// Memory of the index, in bytes.
    pub bytes: usize,
    /// Blocks that the index refused because of its bounds, since the start.
    pub refused_stores: u64,
    /// Memberships that were evicted to make room for newer ones, since the start.
    pub evicted: u64,
    /// Every present worker, by name.
    pub workers: Vec<IndexedWorkerView>,
}

/// A worker's part of the KV index.
#[derive(Debug, Clone)]
pub struct IndexedWorkerView {
    /// The worker's name.
    pub id: WorkerId,
    /// The worker's incarnation.
    pub epoch: WorkerEpoch,
    /// KV blocks that the index credits the worker with.
    pub blocks: usize,
    /// Digest of those blocks and their tiers. Routers with the same digest credit the worker with the same blocks.
    pub digest: u64,
    /// Whether the index lacks blocks of the worker, because it was full.
    pub is_partial: bool,
    /// The state of the worker's KV event stream.
    pub events: EventState,
}

impl Router {
    /// Starts a router: its roster, its event streams and its policy replicator run on a new arbiter. Needs an actix
    /// system.
    pub fn start(config: RouterConfig) -> Self {
        describe_metrics();
        let view = Arc::new(ArcSwap::from_pointee(RosterView::default()));
        let index = SharedKvIndex::new(config.index_bytes);
        let load = LoadTable::new(config.breakers);
        let (parity, latency) = (ParityTable::default(), LatencyTable::default());
        let affinity = AffinityTable::default();
        let session = SessionContext {
            plane: config.events,
            feeds_plane: config.feeds_events,
            index: index.clone(),
            load: load.clone(),
            parity: parity.clone(),
            latency: latency.clone(),
            affinity: affinity.clone(),
            links: config.links.clone(),
            present: Arc::default(),
        };
        let arbiter = Arbiter::new().handle();
        let learner = BlockLearnerHandle::start_in_arbiter(&arbiter, index.clone(), load.clone());
        let roster_listeners = RosterListeners::default();
        let roster = {
            let (discovery, view) = (config.discovery.clone(), view.clone());
            let listeners = roster_listeners.clone();
            ActorHandle::start_in_arbiter(&arbiter, "worker_roster", move || {
                WorkerRoster::new(
                    session.clone(),
                    discovery.clone(),
                    view.clone(),
                    listeners.clone(),
                )
            })
        };
        let replica_sync = config.replicas.map(|replicas| {
            let (load, view, listeners) = (load.clone(), view.clone(), roster_listeners.clone());
            let published = PublishedLoads::default();
            ActorHandle::start_in_arbiter(&arbiter, "replica_sync", move || {
                ReplicaSync::new(
                    replicas.clone(),
                    load.clone(),
                    view.clone(),
                    listeners.clone(),
                    config.discovery.clone(),
                    published.clone(),
                )
            })
        });
        let policies = PolicyReplicatorHandle::start(
            config.policies,
            config.policy_store,
            config.audit.clone(),
            &arbiter,
        );
        Self {
            view,
            index,
            load,
            parity,
            latency,
            affinity,
            decisions: DecisionLogs::with_sampler(config.decisions),
            kept_bytes: KeptBytes::default(),
            retries: Retries::default(),
            token_timeouts: config.token_timeouts,
            learner,
            links: config.links,
            roster_listeners,
            _roster: roster,
            _replica_sync: replica_sync,
            planes: config.planes.into(),
            policies,
            audit: config.audit,
            arbiter,
        }
    }

    /// Stops the roster, its links, its event streams and the policy replicator. Requests in flight go on, because they
    /// run on the links of the replicas.
    pub fn stop(&self) {
        self.arbiter.stop();
    }

    /// The models and LoRA adapters with at least one ready worker, by name.
    pub fn models(&self) -> Vec<ModelView> {
        let view = self.view.load();
        let mut models: Vec<_> = view
            .models
            .values()
            .chain(view.adapters.values())
            .filter(|model| !model.workers.is_empty())
            .filter_map(|model| model_view(model))
            .collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    /// A model or LoRA adapter by name. It stays known while none of its workers is ready.
    pub fn model(&self, name: &str) -> Option<ModelView> {
        self.view
            .load()
            .requested(name)
            .and_then(|model| model_view(model))
    }

    /// Every present worker, by name.
    pub fn instances(&self) -> Vec<InstanceView> {
        let view = self.view.load();
        let instance = |worker: &WorkerEntry| {
            let load = self.load.get(worker.slot);
            InstanceView {
                card: worker.card.clone(),
                state: worker.phase,
                version: worker.version.to_string(),
                listed: worker.listed,
                adapters: worker.adapters().to_vec(),
                requests: load.requests,
                prefill_tokens: load.prefill_tokens,
                decode_blocks: load.decode_blocks,
                others: load.others,
                index_blocks: self.index.read(|index| index.blocks_of(worker.slot)),
                events: load.event_state,
                kv: self.parity.get(worker.slot),
                latency: self.latency.get(worker.slot),
                health: self.load.health().view(worker.slot),
            }
        };
        view.workers.iter().map(instance).collect()
    }

    /// The latest decisions of all threads that pass the filter, the latest first. With their policies' reasons it takes up
    /// to some 100 ms for each.
    pub fn decisions(&self, filter: &DecisionFilter) -> Vec<DecisionView> {
        self.decisions.find(filter)
    }

    /// The ids that two workers have, each of which answers. One of the two gets no requests.
    pub fn id_conflicts(&self) -> Vec<IdConflict> {
        self.view.load().conflicts.clone()
    }

    /// The status of each plane, by name.
    pub fn planes(&self) -> Vec<(&'static str, PlaneStatus)> {
        self.planes
            .iter()
            .map(|(name, status)| (*name, status.borrow().clone()))
            .collect()
    }

    /// The policies, and which of them decides for each model.
    pub fn policies(&self) -> &PolicyRegistry {
        self.policies.registry()
    }

    /// The changes of policies, and who made them.
    pub fn audit(&self) -> &AuditLog {
        &self.audit
    }

    /// Changes the policies of this router and of all others.
    pub fn policy_replicator(&self) -> &PolicyReplicatorHandle {
        &self.policies
    }

    /// The KV index in figures: totals, and the blocks and digest of each worker.
    pub fn index_view(&self) -> IndexView {
        let view = self.view.load();
        let worker = |worker: &WorkerEntry| {
            let (held, is_partial) = self
                .index
                .read(|index| (index.digest(worker.slot), index.is_partial(worker.slot)));
            IndexedWorkerView {
                id: worker.card.id.clone(),
                epoch: worker.card.epoch,
                blocks: held.blocks as usize,
                digest: held.sum,
                is_partial,
                events: self.load.event_state(worker.slot),
            }
        };
        let workers = view.workers.iter().map(worker).collect();
        let stats = self.index.read(|index| index.stats());
        IndexView {
            memberships: stats.memberships,
            blocks: stats.blocks,
            bytes: stats.bytes,
            refused_stores: stats.refused_stores,
            evicted: stats.evicted,
            workers,
        }
    }
}

fn describe_metrics() {
    describe_counter!(
        "signalbox_policy_decisions_total",
        "Decisions, by the policy that made them"
    );
    describe_histogram!(
        "signalbox_decision_seconds",
        Unit::Seconds,
        "Time of a decision: candidates, policy, selection, reservation"
    );
    describe_counter!(
        "signalbox_requests_moved_total",
        "Times a request was sent to another worker, because one had failed before the first bytes of its answer"
    );
    describe_counter!(
        "signalbox_requests_continued_total",
        "Times another worker continued an answer, because one had failed after the first bytes of it"
    );
    parity::describe_metrics();
    latency::describe_metrics();
    health::describe_metrics();
    retries::describe_metrics();
    block_learner::describe_metrics();
    index_figures::describe_metrics();
    describe_gauge!("signalbox_workers", "Workers that are present");
    describe_gauge!(
        "signalbox_workers_refused",
        "Present workers that get no requests, because there are as many models, or versions of one, as a router serves"
    );
    describe_gauge!(
        "signalbox_worker_id_conflicts",
        "Ids that two workers have, which both answer; one of the two gets no requests"
    );
    describe_counter!(
        "signalbox_kv_resyncs_total",
        "Times a worker's KV index was built from a snapshot, by reason: start is its first one"
    );
    describe_gauge!(
        "signalbox_replicas",
        "Other routers whose reported load this router counts"
    );
    describe_counter!(
        "signalbox_replica_resyncs_total",
        "Times this router requested the whole load of another router after a lost message"
    );
    describe_counter!(
        "signalbox_actor_restarts_total",
        "Times an actor failed and was started again, by actor"
    );
}

/// The model, in the form that most of its workers read first.
fn model_view(model: &ModelEntry) -> Option<ModelView> {
    let (first, others) = model.versions.split_first()?;
    let mut view = formed_view(model, first);
    for version in others {
        let form = version.id.form;
        let mut known = std::iter::once((view.form, &mut view.context_length)).chain(
            view.other_forms
                .iter_mut()
                .map(|other| (other.form, &mut other.context_length)),
        );
        match known.find(|(known, _)| *known == form) {
            Some((_, context_length)) => *context_length = version.context_length.max(*context_length),
            None => {
                drop(known);
                view.other_forms.push(formed_view(model, version));
            }
        }
    }
    Some(view)
}

fn formed_view(model: &ModelEntry, version: &ModelVersion) -> ModelView {
    ModelView {
        name: model.requested_name().to_owned(),
        adapter: model.adapter.as_ref().map(|adapter| AdapterView {
            base: model.name.clone(),
            root: adapter.root.clone(),
        }),
        created: model.created,
        form: version.id.form,
        context_length: version.context_length,
        reads_body: version.reads_body,
        text: version.text.clone(),
        other_forms: Vec::new(),
    }
}
