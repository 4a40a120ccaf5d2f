//! What decisions read about workers and models, at one moment.

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{Arc, atomic::AtomicU64},
};

use parking_lot::RwLock;
use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{BlockHasher, LoraAdapter, WorkerCard, WorkerId, WorkerRole, name_hash};
use signalbox_tokenize::ModelText;

use crate::rivals::IdConflict;

use super::version::{ModelVersion, Served, VersionId, latest_versions};

/// Everything that a decision reads about workers and models, at one moment.
#[derive(Debug, Default)]
pub(crate) struct RosterView {
    /// The models by the name that clients request. A model stays when its last worker leaves, so that the error for a
    /// client is "no worker now" rather than "no such model".
    pub(crate) models: HashMap<String, Arc<ModelEntry>>,
    /// The LoRA adapters by the name that clients request. None has the name of a model.
    pub(crate) adapters: HashMap<String, Arc<ModelEntry>>,
    /// Every present worker, ready or not, ordered by id.
    pub(crate) workers: Vec<WorkerEntry>,
    /// How many slots have been given out. A slot below this number that no present worker has is vacant.
    pub(crate) slots: u32,
    /// The ids that two workers have.
    pub(crate) conflicts: Vec<IdConflict>,
}

impl RosterView {
    /// The model or LoRA adapter that clients request by this name.
    pub(crate) fn requested(&self, name: &str) -> Option<&Arc<ModelEntry>> {
        self.models.get(name).or_else(|| self.adapters.get(name))
    }
}

/// A model, or a LoRA adapter of it, and the workers that may be given requests for it.
#[derive(Debug)]
pub(crate) struct ModelEntry {
    /// The name of the model; of an adapter's, too. Its policy decides.
    pub(crate) name: String,
    /// The adapter; `None` for the model itself.
    pub(crate) adapter: Option<LoraAdapter>,
    /// Seconds since the Unix epoch when it was first served.
    pub(crate) created: u64,
    /// The versions that the ready workers serve, or those that the last ones served. At least one; the one with most
    /// workers is the first.
    pub(crate) versions: Vec<ModelVersion>,
    /// How many decisions this process has made for the model. Round robin uses it as its counter.
    pub(crate) decisions: Arc<AtomicU64>,
    /// The ready workers of all versions, ordered by id. Policies are promised no order of rows (`wit/types.wit`).
    pub(crate) workers: ReadyWorkers,
}

/// The workers that may be given requests, and the columns that every decision reads of them.
#[derive(Debug, Default)]
pub(crate) struct ReadyWorkers {
    entries: Vec<WorkerEntry>,
    columns: WorkerColumns,
    shortest_context: u32,
    /// The labels that policies asked for. They are few, so that a list is the quickest look-up.
    labels: RwLock<Vec<LabelRows>>,
}

/// A label of all workers, each in the order of the workers.
#[derive(Debug)]
pub(crate) struct LabelRows {
    name: Arc<str>,
    /// Its hash; 0 for none.
    keys: Arc<[u64]>,
    /// Its text as a number; 0 for none.
    numbers: Arc<[f32]>,
}

/// Most labels that are kept at hand. A policy names at most 32; at the limit all are looked up anew.
const MAX_LABELS: usize = 128;

/// The properties of workers that do not change while they are present. Each column has one row for each worker, in
/// the order of the workers.
#[derive(Debug, Default)]
pub(crate) struct WorkerColumns {
    pub(crate) slots: Vec<u32>,
    pub(crate) kv_blocks: Vec<u32>,
    /// Most requests that a worker accepts, running and waiting together.
    pub(crate) most_requests: Vec<u32>,
    pub(crate) roles: Vec<WorkerRole>,
    /// Sequences that a worker computes at once.
    pub(crate) max_sequences: Vec<u32>,
    pub(crate) context_lengths: Vec<u32>,
    pub(crate) ids: Arc<[WorkerId]>,
    /// The hashes of the workers' ids.
    pub(crate) keys: Vec<u64>,
    /// The hashes of their labels `zone`; 0 for none.
    pub(crate) zones: Vec<u64>,
}

impl ReadyWorkers {
    pub(crate) fn columns(&self) -> &WorkerColumns {
        &self.columns
    }

    /// The workers with their versions.
    pub(crate) fn served(&self) -> impl Iterator<Item = Served<'_>> {
        self.entries.iter().filter_map(WorkerEntry::served)
    }

    /// The hashes of the label of this name, and the label as numbers. The first call for a label makes them.
    pub(crate) fn label(&self, name: &Arc<str>) -> (Arc<[u64]>, Arc<[f32]>) {
        let of = |rows: &LabelRows| (rows.keys.clone(), rows.numbers.clone());
        let find = |labels: &[LabelRows]| labels.iter().find(|rows| rows.name == *name).map(of);
        if let Some(found) = find(&self.labels.read()) {
            return found;
        }
        let mut labels = self.labels.write();
        if labels.len() >= MAX_LABELS {
            labels.clear();
        }
        let text = |worker: &WorkerEntry| worker.card.labels.get(&**name).cloned().unwrap_or_default();
        let number = |worker| {
            text(worker)
                .trim()
                .parse::<f32>()
                .ok()
                .filter(|number| number.is_finite())
        };
        let rows = LabelRows {
            name: name.clone(),
            keys: self
                .entries
                .iter()
                .map(|worker| name_hash(&text(worker)))
                .collect(),
            numbers: self
                .entries
                .iter()
                .map(|worker| number(worker).unwrap_or(0.0))
                .collect(),
        };
        let found = of(&rows);
        labels.push(rows);
        found
    }

    /// The context length that every worker has at least.
    pub(crate) fn shortest_context(&self) -> u32 {
        self.shortest_context
    }
}

impl Deref for ReadyWorkers {
    type Target = [WorkerEntry];

    fn deref(&self) -> &[WorkerEntry] {
        &self.entries
    }
}

impl FromIterator<WorkerEntry> for ReadyWorkers {
    fn from_iter<T: IntoIterator<Item = WorkerEntry>>(workers: T) -> Self {
        let entries: Vec<_> = workers.into_iter().collect();
        let mut columns = WorkerColumns {
            ids: entries.iter().map(|worker| worker.card.id.clone()).collect(),
            ..WorkerColumns::default()
        };
        for worker in &entries {
            let capacity = worker.card.capacity;
            columns.slots.push(worker.slot.0);
            columns.kv_blocks.push(capacity.kv_blocks);
            columns.most_requests.push(capacity.most_requests());
            columns.roles.push(worker.card.role);
            columns.max_sequences.push(capacity.max_sequences);
            columns.context_lengths.push(worker.card.context_length);
            columns.keys.push(name_hash(worker.card.id.as_str()));
            let zone = worker.card.labels.get("zone");
            columns.zones.push(zone.map_or(0, |zone| name_hash(zone)));
        }
        let contexts = entries.iter().map(|worker| worker.card.context_length);
        Self {
            shortest_context: contexts.min().unwrap_or(0),
            entries,
            columns,
            labels: RwLock::default(),
        }
    }
}

/// A worker in a view.
#[derive(Debug, Clone)]
pub(crate) struct WorkerEntry {
    pub(crate) slot: WorkerSlot,
    pub(crate) card: Arc<WorkerCard>,
    pub(crate) phase: WorkerPhase,
    /// Whether discovery lists the worker. An unlisted worker is present only while its connection answers.
    pub(crate) listed: bool,
    /// The LoRA adapters that the worker's engine has loaded; `None` until the worker's first report.
    pub(crate) adapters: Option<Arc<[LoraAdapter]>>,
    /// The version of the model that the worker serves.
    pub(crate) version: VersionId,
    /// The worker's tokenizer and chat template; `None` until they are loaded.
    pub(crate) text: Option<Arc<ModelText>>,
}

impl WorkerEntry {
    /// Whether it may serve, as far as it is concerned: its tokenizer is loaded, and it does not drain.
    pub(super) fn is_loaded(&self) -> bool {
        self.text.is_some() && self.phase != WorkerPhase::Draining
    }

    /// The worker with its version; `None` before its tokenizer is loaded.
    pub(crate) fn served(&self) -> Option<Served<'_>> {
        Some((self.version, &*self.card, self.text.as_ref()?))
    }

    /// The LoRA adapters that are known of.
    pub(crate) fn adapters(&self) -> &[LoraAdapter] {
        self.adapters.as_deref().unwrap_or_default()
    }
}

/// Whether a worker may be given requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerPhase {
    /// The router is loading its tokenizer. It gets no requests yet.
    Preparing,
    /// It is ready for requests.
    Ready,
    /// It is draining: it finishes the requests that it has, and leaves.
    Draining,
    /// It is refused: there are as many models, or versions of its model, as a router serves. This is judged again at
    /// each change of the fleet.
    Refused,
}

impl ModelEntry {
    /// The name that clients request.
    pub(crate) fn requested_name(&self) -> &str {
        self.adapter.as_ref().map_or(&self.name, |adapter| &adapter.name)
    }

    /// The same model, served by these workers.
    pub(super) fn with_workers(&self, workers: ReadyWorkers) -> Self {
        Self {
            name: self.name.clone(),
            adapter: self.adapter.clone(),
            created: self.created,
            versions: latest_versions(workers.served(), &self.versions),
            decisions: self.decisions.clone(),
            workers,
        }
    }

    /// The most tokens of a prompt and its answer together that any ready worker takes.
    pub(crate) fn longest_context(&self) -> u32 {
        let contexts = self.versions.iter().map(|version| version.context_length);
        contexts.max().unwrap_or(0)
    }

    /// The hasher for prompts that workers with this block size get.
    pub(crate) fn hasher(&self, block_size: u32, lora: &str, cache_salt: &str) -> BlockHasher {
        BlockHasher::new(&self.name, lora, cache_salt, block_size as usize)
    }
}
