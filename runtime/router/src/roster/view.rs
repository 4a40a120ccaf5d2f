//! What decisions read about workers and models, at one moment.

use std::{
    collections::HashMap,
    ops::Deref,
    sync::{Arc, atomic::AtomicU64},
};

use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{BlockHasher, LoraAdapter, WorkerCard, WorkerRole};
use signalbox_tokenize::ModelText;

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
    pub(crate) context_length: u32,
    pub(crate) block_size: u32,
    pub(crate) artifacts_digest: String,
    /// Whether the engines read clients' bodies themselves. Workers of both kinds never serve one model: a body that
    /// was checked for one kind may mean something else to the other.
    pub(crate) reads_body: bool,
    pub(crate) text: Arc<ModelText>,
    /// How many decisions this process has made for the model. Round robin uses it as its counter.
    pub(crate) decisions: Arc<AtomicU64>,
    /// The ready workers, ordered by id. Policies are promised no order of rows (`wit/types.wit`).
    pub(crate) workers: ReadyWorkers,
}

/// The workers that may be given requests, and the columns that every decision reads of them.
#[derive(Debug, Default)]
pub(crate) struct ReadyWorkers {
    entries: Vec<WorkerEntry>,
    columns: WorkerColumns,
}

/// The properties of workers that do not change while they are present. Each column has one row for each worker, in
/// the order of the workers.
#[derive(Debug, Default)]
pub(crate) struct WorkerColumns {
    pub(crate) slots: Vec<u32>,
    pub(crate) kv_blocks: Vec<u32>,
    /// Most requests that a worker accepts, running and waiting together.
    pub(crate) most_requests: Vec<u32>,
    pub(crate) roles: Vec<WorkerRole>,
}

impl ReadyWorkers {
    pub(crate) fn columns(&self) -> &WorkerColumns {
        &self.columns
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
        let mut columns = WorkerColumns::default();
        for worker in &entries {
            let capacity = worker.card.capacity;
            columns.slots.push(worker.slot.0);
            columns.kv_blocks.push(capacity.kv_blocks);
            let most_requests = capacity.max_sequences.saturating_add(capacity.max_waiting);
            columns.most_requests.push(most_requests);
            columns.roles.push(worker.card.role);
        }
        Self { entries, columns }
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
}

impl WorkerEntry {
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
    /// It is refused: its card contradicts the cards of the model's other workers.
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
            context_length: self.context_length,
            block_size: self.block_size,
            artifacts_digest: self.artifacts_digest.clone(),
            reads_body: self.reads_body,
            text: self.text.clone(),
            decisions: self.decisions.clone(),
            workers,
        }
    }

    /// The hasher for prompts of this model.
    pub(crate) fn hasher(&self, lora: &str, cache_salt: &str) -> BlockHasher {
        BlockHasher::new(&self.name, lora, cache_salt, self.block_size as usize)
    }
}
