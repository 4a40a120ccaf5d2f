//! Which workers are present, which model each serves, and whether it may be given requests.
//!
//! [`Roster`] is the pure state behind the `WorkerRoster` actor. It gives every worker a dense slot, groups the workers
//! by model, and makes an immutable [`RosterView`] after each change. Decisions read the view and nothing else.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, atomic::AtomicU64},
};

use signalbox_discovery::Departure;
use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{LoraAdapter, WorkerCard, WorkerEpoch, WorkerId};
use signalbox_tokenize::ModelText;

pub use self::{version::PromptForm, view::WorkerPhase};
pub(crate) use self::{
    version::{ModelVersion, VersionId, versions_of},
    view::{ModelEntry, ReadyWorkers, RosterView, WorkerColumns, WorkerEntry},
};

use self::{
    adapters::{Adapters, UnservedAdapter},
    version::{admitted, latest_versions},
};
use crate::load::MAX_WORKERS;

mod adapters;
mod version;
mod view;

/// Most models kept, so that cards with ever new model names cannot fill the memory.
const MAX_MODELS: usize = 1_024;

/// Why a worker cannot join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RosterError {
    #[error("worker {0} is present already, in this epoch or a later one")]
    Known(WorkerId),
    #[error("{MAX_WORKERS} workers are present, which is the most; worker {0} is one too many")]
    Full(WorkerId),
}

/// How a worker joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joined {
    /// It is new, and has this slot. If another incarnation of it was present, this one took its place.
    New(WorkerSlot),
    /// It was present, but unlisted; discovery lists it again.
    Relisted,
}

/// A worker whose phase has changed because it was judged.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Judged {
    pub(crate) card: Arc<WorkerCard>,
    /// [`WorkerPhase::Ready`] or [`WorkerPhase::Refused`].
    pub(crate) phase: WorkerPhase,
}

/// What is kept of a model while its workers come and go.
#[derive(Debug)]
struct KnownModel {
    /// Seconds since the Unix epoch when it was first served.
    created: u64,
    decisions: Arc<AtomicU64>,
    /// Those that it has, or that its last workers had.
    versions: Vec<ModelVersion>,
}

/// What a worker's report of its LoRA adapters changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdapterReport {
    /// It is the first of this incarnation.
    First,
    /// The adapters are others than before.
    Changed,
    /// Nothing: the adapters are as before, or this incarnation is not present.
    Ignored,
}

/// What happened to a worker that discovery no longer lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Departed {
    /// It left.
    Left,
    /// It stays present, unlisted, for as long as its connection answers.
    Kept,
    /// This incarnation was not present.
    Unknown,
}

/// All mutable state of the roster.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    workers: BTreeMap<WorkerId, WorkerEntry>,
    models: HashMap<String, KnownModel>,
    adapters: Adapters,
    /// Of workers that answer in another epoch than the one that discovery lists, the latter. Discovery may be away.
    superseded: BTreeMap<WorkerId, WorkerEpoch>,
    /// How many slots have been given out. The slots of workers that left are in `vacant`.
    slots: u32,
    vacant: Vec<WorkerSlot>,
}

impl Roster {
    /// The state that made a view, for an actor that takes over from a failed one.
    ///
    /// Each worker keeps its slot and its phase. Each is unlisted until discovery lists it again: a worker that left
    /// in the meantime is never reported as left, and stays only while its connection answers.
    pub(crate) fn restore(view: &RosterView) -> Self {
        let unlisted = |entry: &WorkerEntry| {
            let entry = WorkerEntry {
                listed: false,
                ..entry.clone()
            };
            (entry.card.id.clone(), entry)
        };
        let taken: HashSet<_> = view.workers.iter().map(|entry| entry.slot).collect();
        let slots = (0..view.slots).map(WorkerSlot);
        Self {
            workers: view.workers.iter().map(unlisted).collect(),
            models: view.models.iter().map(KnownModel::of).collect(),
            adapters: Adapters::restore(&view.adapters),
            superseded: BTreeMap::new(),
            slots: view.slots,
            vacant: slots.filter(|slot| !taken.contains(slot)).collect(),
        }
    }

    /// Every present worker, ordered by id.
    pub(crate) fn workers(&self) -> impl Iterator<Item = &WorkerEntry> {
        self.workers.values()
    }

    /// A present worker.
    pub(crate) fn worker(&self, id: &WorkerId) -> Option<&WorkerEntry> {
        self.workers.get(id)
    }

    /// Whether a worker may join whose id is not present.
    pub(crate) fn has_room(&self) -> bool {
        !self.vacant.is_empty() || self.slots < MAX_WORKERS
    }

    /// Discovery lists a worker. A new one may not be given requests until its tokenizer is [`loaded`](Self::loaded).
    ///
    /// A vacant slot is given out again only if `is_unused` returns true for it: no request of the slot's previous worker
    /// may be under way. An error changes nothing.
    pub(crate) fn join(
        &mut self,
        card: Arc<WorkerCard>,
        is_unused: impl Fn(WorkerSlot) -> bool,
    ) -> Result<Joined, RosterError> {
        if let Some(known) = self.workers.get_mut(&card.id) {
            if known.card == card && self.superseded.remove(&card.id).is_some() {
                return Ok(Joined::Relisted);
            }
            if !known.listed && known.card == card {
                known.listed = true;
                return Ok(Joined::Relisted);
            }
            if known.listed && known.card.epoch >= card.epoch {
                return Err(RosterError::Known(card.id.clone()));
            }
        }
        self.superseded.remove(&card.id);
        self.admit(card, true, is_unused).map(Joined::New)
    }

    /// Makes a worker present. One with the same id leaves.
    fn admit(
        &mut self,
        card: Arc<WorkerCard>,
        listed: bool,
        is_unused: impl Fn(WorkerSlot) -> bool,
    ) -> Result<WorkerSlot, RosterError> {
        let earlier_slot = self.workers.get(&card.id).map(|earlier| earlier.slot);
        let slot = match self.vacant.iter().position(|slot| is_unused(*slot)) {
            Some(place) => self.vacant.swap_remove(place),
            None if self.slots < MAX_WORKERS => {
                self.slots += 1;
                WorkerSlot(self.slots - 1)
            }
            None => earlier_slot
                .filter(|slot| is_unused(*slot))
                .ok_or_else(|| RosterError::Full(card.id.clone()))?,
        };
        self.vacant
            .extend(earlier_slot.filter(|earlier| *earlier != slot));
        let entry = WorkerEntry {
            slot,
            card: card.clone(),
            phase: WorkerPhase::Preparing,
            listed,
            adapters: None,
            version: VersionId::of(&card),
            text: None,
        };
        self.workers.insert(card.id.clone(), entry);
        Ok(slot)
    }

    /// The tokenizer and chat template that this card names, if a worker with the same ones has joined before.
    pub(crate) fn known_text(&self, card: &WorkerCard) -> Option<Arc<ModelText>> {
        let has_text = |entry: &&WorkerEntry| {
            entry.text.is_some() && entry.card.artifacts_digest == card.artifacts_digest
        };
        if let Some(entry) = self.workers.values().find(has_text) {
            return entry.text.clone();
        }
        let form = PromptForm::of(card);
        let mut versions = self.models.values().flat_map(|model| &model.versions);
        let version = versions.find(|version| version.id.form == form)?;
        Some(version.text.clone())
    }

    /// The worker's tokenizer is loaded, and everything else is known of it: it may be [judged](Self::judge). Returns false
    /// if this incarnation of the worker left in the meantime.
    pub(crate) fn loaded(&mut self, card: &WorkerCard, text: Arc<ModelText>) -> bool {
        let entry = self.workers.get_mut(&card.id);
        let entry = entry.filter(|entry| entry.card.epoch == card.epoch);
        let is_present = entry.is_some();
        if let Some(entry) = entry {
            entry.text = Some(text);
        }
        is_present
    }

    /// Decides which workers may be given requests: each one whose tokenizer is loaded, as long as there are no more models,
    /// and no more versions of its model, than a router serves. Called for each view, so that a refused worker is ready as
    /// soon as there is room. Returns the workers whose phase changed.
    pub(crate) fn judge(&mut self, now_unix: u64) -> Vec<Judged> {
        let mut loaded: BTreeMap<&str, Vec<&WorkerEntry>> = BTreeMap::new();
        for worker in self.workers.values().filter(|worker| worker.is_loaded()) {
            loaded.entry(&worker.card.model).or_default().push(worker);
        }
        let new = loaded.keys().filter(|name| !self.models.contains_key(**name));
        if self.models.len() + new.count() > MAX_MODELS {
            self.models.retain(|name, _| loaded.contains_key(name.as_str()));
        }
        let mut served: HashMap<&str, Vec<VersionId>> = HashMap::with_capacity(loaded.len());
        for (name, workers) in &loaded {
            if !self.models.contains_key(*name) {
                if self.models.len() >= MAX_MODELS {
                    continue;
                }
                self.models.insert((*name).to_owned(), KnownModel::new(now_unix));
            }
            served.insert(name, admitted(workers.iter().map(|worker| worker.version)));
        }
        let phase_of = |worker: &WorkerEntry| {
            let versions = served.get(worker.card.model.as_str());
            match versions.is_some_and(|versions| versions.contains(&worker.version)) {
                true => WorkerPhase::Ready,
                false => WorkerPhase::Refused,
            }
        };
        let changed: Vec<_> = loaded
            .values()
            .flatten()
            .map(|worker| (worker, phase_of(worker)))
            .filter(|(worker, phase)| worker.phase != *phase)
            .map(|(worker, phase)| Judged {
                card: worker.card.clone(),
                phase,
            })
            .collect();
        for Judged { card, phase } in &changed {
            if let Some(worker) = self.workers.get_mut(&card.id) {
                worker.phase = *phase;
            }
        }
        self.note_versions();
        changed
    }

    /// How many workers are refused.
    pub(crate) fn refused(&self) -> usize {
        let workers = self.workers.values();
        workers
            .filter(|worker| worker.phase == WorkerPhase::Refused)
            .count()
    }

    /// Remembers the versions of each model that has ready workers.
    fn note_versions(&mut self) {
        for (name, workers) in ready_by_model(self.workers.values()) {
            if let Some(model) = self.models.get_mut(name) {
                model.versions = versions_of(workers.into_iter().filter_map(WorkerEntry::served));
            }
        }
    }

    /// A worker reported the LoRA adapters that its engine has loaded.
    pub(crate) fn report_adapters(
        &mut self,
        id: &WorkerId,
        epoch: WorkerEpoch,
        adapters: &[LoraAdapter],
    ) -> AdapterReport {
        let Some(entry) = self.workers.get_mut(id).filter(|entry| entry.card.epoch == epoch) else {
            return AdapterReport::Ignored;
        };
        let Some(earlier) = entry.adapters.replace(adapters.into()) else {
            return AdapterReport::First;
        };
        if *earlier == *adapters {
            return AdapterReport::Ignored;
        }
        let loaded = self.workers.values().flat_map(WorkerEntry::adapters);
        let loaded: HashSet<&str> = loaded.map(|adapter| adapter.name.as_str()).collect();
        for adapter in earlier
            .iter()
            .filter(|adapter| !loaded.contains(adapter.name.as_str()))
        {
            self.adapters.forget(&adapter.name);
        }
        AdapterReport::Changed
    }

    /// Whether this incarnation has reported its adapters.
    pub(crate) fn has_reported_adapters(&self, card: &WorkerCard) -> bool {
        let entry = self
            .workers
            .get(&card.id)
            .filter(|entry| entry.card.epoch == card.epoch);
        entry.is_some_and(|entry| entry.adapters.is_some())
    }

    /// Decides what the names of adapters mean, for the next view. Returns the adapters that no request can name any more
    /// or yet, each once.
    pub(crate) fn settle_adapters(&mut self) -> Vec<UnservedAdapter> {
        self.adapters.settle(&self.workers, &self.models)
    }

    /// Discovery no longer lists a worker. `answers`: whether the control link to the present incarnation is up.
    pub(crate) fn depart(
        &mut self,
        id: &WorkerId,
        epoch: WorkerEpoch,
        departure: Departure,
        answers: bool,
    ) -> Departed {
        if self.superseded.get(id) == Some(&epoch) {
            self.superseded.remove(id);
            let Some(entry) = self.workers.get_mut(id) else {
                return Departed::Unknown;
            };
            if answers {
                entry.listed = false;
                return Departed::Kept;
            }
            let present = entry.card.epoch;
            self.leave(id, present);
            return Departed::Left;
        }
        if departure == Departure::LeaseEnded
            && answers
            && let Some(entry) = self.workers.get_mut(id)
            && entry.card.epoch == epoch
        {
            entry.listed = false;
            return Departed::Kept;
        }
        match self.leave(id, epoch) {
            Some(_) => Departed::Left,
            None => Departed::Unknown,
        }
    }

    /// The worker at this address drains. Returns its card if it was ready until now.
    pub(crate) fn drain(&mut self, address: &str) -> Option<Arc<WorkerCard>> {
        let entry = self
            .workers
            .values_mut()
            .find(|entry| entry.card.address == address && entry.phase == WorkerPhase::Ready)?;
        entry.phase = WorkerPhase::Draining;
        Some(entry.card.clone())
    }

    /// The control link to this address is down: the worker there leaves if it is unlisted. Returns its card.
    pub(crate) fn lose(&mut self, address: &str) -> Option<Arc<WorkerCard>> {
        let card = self
            .workers
            .values()
            .find(|entry| entry.card.address == address && !entry.listed)
            .map(|entry| entry.card.clone())?;
        self.leave(&card.id, card.epoch);
        Some(card)
    }

    /// The control link to this address is up, and this worker has answered. If the roster has another incarnation there,
    /// or another worker, that one leaves, whatever discovery lists: it cannot be there any more (K-1). Returns it.
    ///
    /// The worker that answered is to be [adopted](Self::adopt) then.
    pub(crate) fn reach(&mut self, address: &str, found: &WorkerCard) -> Option<WorkerEntry> {
        let is_another = |card: &WorkerCard| card.id != found.id || card.epoch != found.epoch;
        let entry = self
            .workers
            .values()
            .find(|entry| entry.card.address == address && is_another(&entry.card))?;
        let earlier = entry.clone();
        let (id, epoch) = (&earlier.card.id, earlier.card.epoch);
        let listed_epoch = *self.superseded.get(id).unwrap_or(&epoch);
        self.leave(id, epoch);
        if earlier.listed && *id == found.id {
            self.superseded.insert(id.clone(), listed_epoch);
        }
        Some(earlier)
    }

    /// Makes a worker present that was found at an address, before discovery lists it. It stays while its connection
    /// answers, or while discovery lists the incarnation that it replaced: discovery may be away for longer than it runs.
    pub(crate) fn adopt(
        &mut self,
        card: Arc<WorkerCard>,
        is_unused: impl Fn(WorkerSlot) -> bool,
    ) -> Result<WorkerSlot, RosterError> {
        if self.workers.contains_key(&card.id) {
            return Err(RosterError::Known(card.id.clone()));
        }
        let listed = self.superseded.contains_key(&card.id);
        self.admit(card, listed, is_unused)
    }

    /// Removes an incarnation of a worker. Returns the slot that is vacant now.
    pub(crate) fn leave(&mut self, id: &WorkerId, epoch: WorkerEpoch) -> Option<WorkerSlot> {
        let slot = self
            .workers
            .get(id)
            .filter(|entry| entry.card.epoch == epoch)?
            .slot;
        self.workers.remove(id);
        self.superseded.remove(id);
        self.vacant.push(slot);
        Some(slot)
    }

    /// What decisions read from now on.
    pub(crate) fn view(&self) -> RosterView {
        let mut ready = ready_by_model(self.workers.values());
        let models = self.models.iter().map(|(name, model)| {
            let workers = ready.remove(name.as_str()).unwrap_or_default();
            let workers = workers.into_iter().cloned().collect();
            (name.clone(), Arc::new(model.entry(name, workers)))
        });
        let models = models.collect();
        let workers: Vec<_> = self.workers.values().cloned().collect();
        RosterView {
            adapters: self.adapters.view(&workers, &models),
            models,
            workers,
            slots: self.slots,
            conflicts: Vec::new(),
        }
    }
}

impl KnownModel {
    fn new(created: u64) -> Self {
        Self {
            created,
            decisions: Arc::default(),
            versions: Vec::new(),
        }
    }

    /// What a view knows of the model with this name.
    fn of((name, entry): (&String, &Arc<ModelEntry>)) -> (String, Self) {
        let known = Self {
            created: entry.created,
            decisions: entry.decisions.clone(),
            versions: entry.versions.clone(),
        };
        (name.clone(), known)
    }

    /// The model as decisions read it, served by these workers.
    fn entry(&self, name: &str, workers: ReadyWorkers) -> ModelEntry {
        ModelEntry {
            name: name.to_owned(),
            adapter: None,
            created: self.created,
            versions: latest_versions(workers.served(), &self.versions),
            decisions: self.decisions.clone(),
            workers,
        }
    }
}

/// The ready ones among these workers, by the name of their model, in the given order.
fn ready_by_model<'a>(
    workers: impl Iterator<Item = &'a WorkerEntry>,
) -> HashMap<&'a str, Vec<&'a WorkerEntry>> {
    let mut ready: HashMap<&str, Vec<&WorkerEntry>> = HashMap::new();
    for worker in workers.filter(|worker| worker.phase == WorkerPhase::Ready) {
        ready.entry(&worker.card.model).or_default().push(worker);
    }
    ready
}

#[cfg(test)]
mod tests;
