//! Who is present, what they serve, and whether they may be given work.
//!
//! [`Roster`] is the pure state behind the `WorkerRoster` actor: it gives every worker a dense slot, groups workers
//! by model, and publishes an immutable [`RosterView`] after each change. Decisions read the view and nothing else.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Deref,
    sync::{Arc, atomic::AtomicU64},
};

use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{BlockHasher, WorkerCard, WorkerEpoch, WorkerId, WorkerRole};
use signalbox_tokenize::ModelText;

use crate::load::MAX_WORKERS;

/// Most models remembered, so that cards with ever new model names cannot fill the memory.
const MAX_MODELS: usize = 1_024;

/// Everything a decision needs to know of workers and models at one moment.
#[derive(Debug, Default)]
pub(crate) struct RosterView {
    /// By the name clients ask for. Models whose workers all left stay, so that a client is told "no worker now"
    /// rather than "no such model".
    pub(crate) models: HashMap<String, Arc<ModelEntry>>,
    /// Everybody, ready or not, by name.
    pub(crate) workers: Vec<WorkerEntry>,
}

/// A model and the workers that may be given work for it.
#[derive(Debug)]
pub(crate) struct ModelEntry {
    pub(crate) name: String,
    /// Seconds since the Unix epoch when it was first served.
    pub(crate) created: u64,
    pub(crate) context_length: u32,
    pub(crate) block_size: u32,
    pub(crate) artifacts_digest: String,
    pub(crate) text: Arc<ModelText>,
    /// Decisions made for the model by this process so far: round robin counts with it.
    pub(crate) decisions: Arc<AtomicU64>,
    /// Ready workers, ordered by name. Policies are promised no order of rows (`wit/types.wit`).
    pub(crate) workers: ReadyWorkers,
}

/// The workers that may be given work, and beside them what every decision reads of each.
#[derive(Debug, Default)]
pub(crate) struct ReadyWorkers {
    entries: Vec<WorkerEntry>,
    columns: WorkerColumns,
}

/// What a decision reads of workers that does not change while they are present: a row for each, in their order.
#[derive(Debug, Default)]
pub(crate) struct WorkerColumns {
    pub(crate) slots: Vec<u32>,
    pub(crate) kv_blocks: Vec<u32>,
    /// Most requests a worker takes, running and waiting.
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
    /// Whether discovery lists it; where not, it is present by its connection alone.
    pub(crate) listed: bool,
}

/// Whether a worker may be given work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerPhase {
    /// Its tokenizer is on the way here.
    Preparing,
    /// It may.
    Ready,
    /// It finishes what it has and leaves.
    Draining,
    /// Its card contradicts that of the model's other workers.
    Refused,
}

impl ModelEntry {
    /// The hasher for prompts of this model.
    pub(crate) fn hasher(&self, lora: &str, cache_salt: &str) -> BlockHasher {
        BlockHasher::new(&self.name, lora, cache_salt, self.block_size as usize)
    }
}

/// Why a worker is not taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RosterError {
    #[error("worker {0} is present already in this or a later epoch")]
    Known(WorkerId),
    #[error("{MAX_WORKERS} workers are present; worker {0} is one too many")]
    Full(WorkerId),
}

/// The changeable state.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    workers: BTreeMap<WorkerId, WorkerEntry>,
    models: HashMap<String, Arc<ModelEntry>>,
    /// Slots given out so far; those of workers that left wait in `vacant`.
    slots: u32,
    vacant: Vec<WorkerSlot>,
}

impl Roster {
    /// Takes in a worker that may not be given work yet. `is_unused` tells whether no request of a slot's previous
    /// worker is under way any more; only then is the slot given again.
    pub(crate) fn join(
        &mut self,
        card: Arc<WorkerCard>,
        is_unused: impl Fn(WorkerSlot) -> bool,
    ) -> Result<WorkerSlot, RosterError> {
        if self
            .workers
            .get(&card.id)
            .is_some_and(|known| known.card.epoch >= card.epoch)
        {
            return Err(RosterError::Known(card.id.clone()));
        }
        if let Some(earlier) = self.workers.remove(&card.id) {
            self.vacant.push(earlier.slot);
        }
        let slot = match self.vacant.iter().position(|slot| is_unused(*slot)) {
            Some(place) => self.vacant.swap_remove(place),
            None if self.slots < MAX_WORKERS => {
                self.slots += 1;
                WorkerSlot(self.slots - 1)
            }
            None => return Err(RosterError::Full(card.id.clone())),
        };
        let entry = WorkerEntry {
            slot,
            card: card.clone(),
            phase: WorkerPhase::Preparing,
            listed: true,
        };
        self.workers.insert(card.id.clone(), entry);
        Ok(slot)
    }

    /// The text side of a model that is served already, where a worker with this card agrees with it.
    pub(crate) fn known_text(&self, card: &WorkerCard) -> Option<Arc<ModelText>> {
        let model = self
            .models
            .values()
            .find(|model| model.artifacts_digest == card.artifacts_digest)?;
        Some(model.text.clone())
    }

    /// The worker may be given work, unless its card contradicts the model's other workers.
    ///
    /// Returns its phase now; `None` where this life of the worker left meanwhile.
    pub(crate) fn ready(
        &mut self,
        card: &WorkerCard,
        text: Arc<ModelText>,
        now_unix: u64,
    ) -> Option<WorkerPhase> {
        let is_here = |entry: &&mut WorkerEntry| entry.card.epoch == card.epoch;
        // Who left defines no model.
        self.workers.get_mut(&card.id).filter(is_here)?;
        let phase = if self.fit_model(card, text, now_unix) {
            WorkerPhase::Ready
        } else {
            WorkerPhase::Refused
        };
        self.workers.get_mut(&card.id)?.phase = phase;
        Some(phase)
    }

    /// Whether `card` agrees with its model, which it defines where no other worker serves it now.
    fn fit_model(&mut self, card: &WorkerCard, text: Arc<ModelText>, now_unix: u64) -> bool {
        let served =
            |entry: &WorkerEntry| entry.card.model == card.model && entry.phase == WorkerPhase::Ready;
        let is_served = self.workers.values().any(served);
        let known = self.models.get(&card.model);
        if let (true, Some(model)) = (is_served, known) {
            return model.block_size == card.block_size && model.artifacts_digest == card.artifacts_digest;
        }
        if known.is_none() && self.models.len() >= MAX_MODELS {
            return false;
        }
        let model = ModelEntry {
            name: card.model.clone(),
            created: known.map_or(now_unix, |model| model.created),
            context_length: card.context_length,
            block_size: card.block_size,
            artifacts_digest: card.artifacts_digest.clone(),
            text,
            decisions: known.map_or_else(Arc::default, |model| model.decisions.clone()),
            workers: ReadyWorkers::default(),
        };
        self.models.insert(card.model.clone(), Arc::new(model));
        true
    }

    /// The worker finishes what it has; returns whether that is news.
    pub(crate) fn drain(&mut self, id: &WorkerId, epoch: WorkerEpoch) -> bool {
        match self.workers.get_mut(id) {
            Some(entry) if entry.card.epoch == epoch && entry.phase == WorkerPhase::Ready => {
                entry.phase = WorkerPhase::Draining;
                true
            }
            _ => false,
        }
    }

    /// Discovery lists the worker, or does no more; returns whether that is news.
    pub(crate) fn set_listed(&mut self, id: &WorkerId, listed: bool) -> bool {
        self.workers
            .get_mut(id)
            .is_some_and(|entry| std::mem::replace(&mut entry.listed, listed) != listed)
    }

    /// Whether discovery lists the worker; an absent one counts as listed.
    pub(crate) fn is_listed(&self, id: &WorkerId) -> bool {
        self.workers.get(id).is_none_or(|entry| entry.listed)
    }

    /// The worker is gone; returns the slot that is vacant now.
    pub(crate) fn leave(&mut self, id: &WorkerId, epoch: WorkerEpoch) -> Option<WorkerSlot> {
        let slot = self
            .workers
            .get(id)
            .filter(|entry| entry.card.epoch == epoch)?
            .slot;
        self.workers.remove(id);
        self.vacant.push(slot);
        Some(slot)
    }

    /// What decisions shall see from now on.
    pub(crate) fn view(&self) -> RosterView {
        let workers: Vec<_> = self.workers.values().cloned().collect();
        let models = self.models.iter().map(|(name, model)| {
            let is_ready =
                |entry: &&WorkerEntry| entry.card.model == *name && entry.phase == WorkerPhase::Ready;
            let model = ModelEntry {
                name: name.clone(),
                created: model.created,
                context_length: model.context_length,
                block_size: model.block_size,
                artifacts_digest: model.artifacts_digest.clone(),
                text: model.text.clone(),
                decisions: model.decisions.clone(),
                workers: workers.iter().filter(is_ready).cloned().collect(),
            };
            (name.clone(), Arc::new(model))
        });
        RosterView {
            models: models.collect(),
            workers,
        }
    }
}
