//! What every router replica of a process shares, and how it is started.

use std::sync::Arc;

use actix::prelude::*;
use arc_swap::ArcSwap;
use signalbox_discovery::Discovery;
use signalbox_event_plane::{EventPlane, SharedStore};
use signalbox_kv_index::SharedKvIndex;
use signalbox_policy_host::PolicyRegistry;
use signalbox_protocol::{PlaneStatus, ReplicaLoad, WorkerCard};
use signalbox_request_plane::LinkConfig;
use signalbox_tokenize::ModelText;
use tokio::sync::watch;

use crate::{
    load::LoadTable,
    policy_replicator::PolicyReplicator,
    replica_sync::{ReplicaConfig, ReplicaSync},
    roster::{ModelEntry, RosterView},
    worker_roster::WorkerRoster,
    worker_session::SessionContext,
};

/// How a router is put together.
#[derive(Debug)]
pub struct RouterConfig {
    /// Tell who is present. A worker that several name counts once.
    pub discovery: Vec<Arc<dyn Discovery>>,
    /// Carries KV events here.
    pub events: Arc<dyn EventPlane>,
    /// Copy events from the workers' request plane into `events`: where nothing else carries them there.
    pub feeds_events: bool,
    /// Decides.
    pub policies: PolicyRegistry,
    /// What `policies` are kept in agreement with.
    pub policy_store: Arc<dyn SharedStore>,
    /// Tells other routers what this one has in flight, and it what they have; `None`: it counts its own load only.
    pub replicas: Option<ReplicaConfig>,
    /// The planes by name, as `/health` tells of them.
    pub planes: Vec<(&'static str, watch::Receiver<PlaneStatus>)>,
    /// Bounds of every worker link.
    pub links: LinkConfig,
    /// Most bytes of the KV index (K-3).
    pub index_bytes: usize,
}

/// What every router replica of a process shares: roster, index, load, policies. Clone = handle.
#[derive(Debug, Clone)]
pub struct Router {
    pub(crate) view: Arc<ArcSwap<RosterView>>,
    pub(crate) index: SharedKvIndex,
    pub(crate) load: LoadTable,
    pub(crate) links: LinkConfig,
    pub(crate) roster: Addr<WorkerRoster>,
    planes: Arc<[(&'static str, watch::Receiver<PlaneStatus>)]>,
    policies: PolicyReplicator,
    arbiter: ArbiterHandle,
}

/// A model that is or was served here.
#[derive(Debug, Clone)]
pub struct ModelView {
    /// As clients ask for it.
    pub name: String,
    /// Seconds since the Unix epoch when it was first served.
    pub created: u64,
    /// Most tokens of prompt and answer together.
    pub context_length: u32,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Its tokenizer and chat template.
    pub text: Arc<ModelText>,
}

/// A worker as `/health` and `/admin/v1/workers` show it.
#[derive(Debug, Clone)]
pub struct InstanceView {
    /// What it says of itself.
    pub card: Arc<WorkerCard>,
    /// `preparing`, `ready`, `draining` or `refused`.
    pub state: &'static str,
    /// Whether discovery lists it; where not, it is kept because it answers.
    pub listed: bool,
    /// Requests from here that it works on.
    pub requests: u32,
    /// Prompt tokens from here that it has yet to compute.
    pub prefill_tokens: u32,
    /// KV blocks of requests from here.
    pub decode_blocks: u32,
    /// What other routers have in flight there.
    pub others: ReplicaLoad,
    /// KV blocks the index credits it with.
    pub index_blocks: usize,
    /// Its KV event stream: `following`, `resyncing` or `none`.
    pub events: &'static str,
}

impl Router {
    /// Starts the roster on an arbiter of its own, where the policy store is followed too. Needs an actix system.
    pub fn start(config: RouterConfig) -> Self {
        let view = Arc::new(ArcSwap::from_pointee(RosterView::default()));
        let index = SharedKvIndex::new(config.index_bytes);
        let load = LoadTable::default();
        let session = SessionContext {
            plane: config.events,
            feeds_plane: config.feeds_events,
            index: index.clone(),
            load: load.clone(),
            links: config.links.clone(),
            present: Arc::default(),
        };
        let arbiter = Arbiter::new().handle();
        let (discovery, roster_view) = (config.discovery.clone(), view.clone());
        let roster =
            WorkerRoster::start_in_arbiter(&arbiter, |_| WorkerRoster::new(session, discovery, roster_view));
        if let Some(replicas) = config.replicas {
            let (load, view, roster) = (load.clone(), view.clone(), roster.clone());
            ReplicaSync::start_in_arbiter(&arbiter, |_| {
                ReplicaSync::new(replicas, load, view, roster, config.discovery)
            });
        }
        let policies = PolicyReplicator::new(config.policies, config.policy_store);
        // Refused only by an arbiter that has stopped, and this one has just started.
        arbiter.spawn(policies.clone().follow());
        Self {
            view,
            index,
            load,
            links: config.links,
            roster,
            planes: config.planes.into(),
            policies,
            arbiter,
        }
    }

    /// Ends the roster, its links and its event streams, and follows the policy store no more. Requests under way are the replicas' own.
    pub fn stop(&self) {
        self.arbiter.stop();
    }

    /// The models with at least one ready worker, by name.
    pub fn models(&self) -> Vec<ModelView> {
        let view = self.view.load();
        let mut models: Vec<_> = view
            .models
            .values()
            .filter(|model| !model.workers.is_empty())
            .map(|model| model_view(model))
            .collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    /// A model by name, also while none of its workers is ready.
    pub fn model(&self, name: &str) -> Option<ModelView> {
        self.view.load().models.get(name).map(|model| model_view(model))
    }

    /// Every present worker, by name.
    pub fn instances(&self) -> Vec<InstanceView> {
        let view = self.view.load();
        let instance = |worker: &crate::roster::WorkerEntry| {
            let load = self.load.get(worker.slot);
            InstanceView {
                card: worker.card.clone(),
                state: worker.phase.as_str(),
                listed: worker.listed,
                requests: load.requests,
                prefill_tokens: load.prefill_tokens,
                decode_blocks: load.decode_blocks,
                others: load.others,
                index_blocks: self.index.read(|index| index.blocks_of(worker.slot)),
                events: self.load.event_state(worker.slot).as_str(),
            }
        };
        view.workers.iter().map(instance).collect()
    }

    /// How each plane is doing, by name.
    pub fn planes(&self) -> Vec<(&'static str, PlaneStatus)> {
        self.planes
            .iter()
            .map(|(name, status)| (*name, status.borrow().clone()))
            .collect()
    }

    /// The policies and which of them decides.
    pub fn policies(&self) -> &PolicyRegistry {
        self.policies.registry()
    }

    /// Changes the policies, here and on all routers.
    pub fn policy_replicator(&self) -> &PolicyReplicator {
        &self.policies
    }

    /// The KV index in figures: totals, and blocks and digest of each worker.
    pub fn index_json(&self) -> serde_json::Value {
        let view = self.view.load();
        let worker = |worker: &crate::roster::WorkerEntry| {
            let (blocks, digest) = self
                .index
                .read(|index| (index.blocks_of(worker.slot), index.digest(worker.slot)));
            let figures = serde_json::json!({
                "epoch": worker.card.epoch,
                "blocks": blocks,
                "digest": format!("{digest:016x}"),
                "events": self.load.event_state(worker.slot).as_str(),
            });
            (worker.card.id.to_string(), figures)
        };
        let workers: serde_json::Map<_, _> = view.workers.iter().map(worker).collect();
        let stats = self.index.read(|index| index.stats());
        serde_json::json!({
            "memberships": stats.memberships,
            "blocks": stats.blocks,
            "bytes": stats.bytes,
            "refused_stores": stats.refused_stores,
            "workers": workers,
        })
    }
}

fn model_view(model: &ModelEntry) -> ModelView {
    ModelView {
        name: model.name.clone(),
        created: model.created,
        context_length: model.context_length,
        block_size: model.block_size,
        text: model.text.clone(),
    }
}
