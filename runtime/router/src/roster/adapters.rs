//! What the names of LoRA adapters mean.
//!
//! Each adapter of a ready worker is a model of its own, named as at its engine, and served by the workers that have it. A
//! name means one thing at a time:
//!
//! - A base model's name means the base model, also while no worker serves it.
//! - If workers of different base models have an adapter of one name, it means the adapter of the base model that had it
//!   first, for as long as a ready worker of that model has it. The prompts of both would be other tokens.
//! - A name stays known when the last worker that has the adapter leaves, as a model's does. It is forgotten when the last
//!   engine that has the adapter unloads it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::AtomicU64},
};

use signalbox_protocol::{LoraAdapter, WorkerId};

use super::{ModelEntry, ReadyWorkers, WorkerEntry, WorkerPhase};

/// Most adapter names kept, so that engines with ever new adapters cannot fill the memory.
const MAX_ADAPTERS: usize = 4_096;

/// The known adapters, by the name that clients request.
#[derive(Debug, Default)]
pub(super) struct Adapters {
    known: HashMap<String, KnownAdapter>,
    /// The adapters that workers have and requests cannot name.
    unserved: BTreeMap<(WorkerId, String), NotServed>,
}

#[derive(Debug)]
struct KnownAdapter {
    /// The name of the base model.
    base: String,
    root: Option<String>,
    /// How many decisions this process has made for the adapter.
    decisions: Arc<AtomicU64>,
}

/// An adapter of a worker that no request can name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnservedAdapter {
    pub(crate) worker: WorkerId,
    pub(crate) name: String,
    pub(crate) reason: NotServed,
}

/// Why an adapter of a worker is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotServed {
    #[error("a base model has this name")]
    BaseModel,
    #[error("workers of the model {0:?} have an adapter of this name")]
    OtherBase(String),
    #[error("{MAX_ADAPTERS} adapters are known, which is the most")]
    Full,
}

impl Adapters {
    /// The names that a view has, for an actor that takes over from a failed one.
    pub(super) fn restore(view: &HashMap<String, Arc<ModelEntry>>) -> Self {
        let known = view.iter().map(|(name, entry)| {
            let known = KnownAdapter {
                base: entry.name.clone(),
                root: entry.adapter.as_ref().and_then(|adapter| adapter.root.clone()),
                decisions: entry.decisions.clone(),
            };
            (name.clone(), known)
        });
        Self {
            known: known.collect(),
            unserved: BTreeMap::new(),
        }
    }

    /// Forgets an adapter that the last engine which had it has unloaded.
    pub(super) fn forget(&mut self, name: &str) {
        self.known.remove(name);
    }

    /// Decides what each name means, given the present workers. Returns what has become unserved since the last call.
    pub(super) fn settle<M>(
        &mut self,
        workers: &BTreeMap<WorkerId, WorkerEntry>,
        models: &HashMap<String, M>,
    ) -> Vec<UnservedAdapter> {
        self.known.retain(|name, _| !models.contains_key(name));
        // The adapters of each name that ready workers have, each with its base model.
        let mut loaded: BTreeMap<&str, Vec<(&str, &LoraAdapter)>> = BTreeMap::new();
        for worker in ready(workers.values()) {
            for adapter in worker.adapters() {
                let of_name = loaded.entry(&adapter.name).or_default();
                of_name.push((&worker.card.model, adapter));
            }
        }
        if self.known.len() + loaded.len() > MAX_ADAPTERS {
            self.known.retain(|name, _| loaded.contains_key(name.as_str()));
        }
        for (name, adapters) in &loaded {
            if models.contains_key(*name) {
                continue;
            }
            let known = self.known.get(*name);
            let of_known = known.and_then(|known| adapters.iter().find(|(base, _)| *base == known.base));
            let Some((base, adapter)) = of_known.or_else(|| adapters.first()) else {
                continue;
            };
            if known.is_none() && self.known.len() >= MAX_ADAPTERS {
                continue;
            }
            let decisions = known
                .filter(|known| known.base == *base)
                .map_or_else(Arc::default, |known| known.decisions.clone());
            let settled = KnownAdapter {
                base: (*base).to_owned(),
                root: adapter.root.clone(),
                decisions,
            };
            self.known.insert((*name).to_owned(), settled);
        }
        self.note_unserved(workers, models)
    }

    fn note_unserved<M>(
        &mut self,
        workers: &BTreeMap<WorkerId, WorkerEntry>,
        models: &HashMap<String, M>,
    ) -> Vec<UnservedAdapter> {
        let mut unserved = BTreeMap::new();
        for worker in ready(workers.values()) {
            for LoraAdapter { name, .. } in worker.adapters() {
                let reason = match self.known.get(name) {
                    _ if models.contains_key(name) => NotServed::BaseModel,
                    Some(known) if known.base == worker.card.model => continue,
                    Some(known) => NotServed::OtherBase(known.base.clone()),
                    None => NotServed::Full,
                };
                unserved.insert((worker.card.id.clone(), name.clone()), reason);
            }
        }
        let earlier = std::mem::replace(&mut self.unserved, unserved);
        let new = self
            .unserved
            .iter()
            .filter(|(key, reason)| earlier.get(*key) != Some(*reason));
        new.map(|((worker, name), reason)| UnservedAdapter {
            worker: worker.clone(),
            name: name.clone(),
            reason: reason.clone(),
        })
        .collect()
    }

    /// The adapters as decisions read them, by the name that clients request.
    pub(super) fn view(
        &self,
        workers: &[WorkerEntry],
        models: &HashMap<String, Arc<ModelEntry>>,
    ) -> HashMap<String, Arc<ModelEntry>> {
        let mut serving: HashMap<&str, Vec<WorkerEntry>> = HashMap::new();
        for worker in ready(workers) {
            for LoraAdapter { name, .. } in worker.adapters() {
                if self
                    .known
                    .get(name)
                    .is_some_and(|known| known.base == worker.card.model)
                {
                    serving.entry(name).or_default().push(worker.clone());
                }
            }
        }
        let entry = |(name, known): (&String, &KnownAdapter)| {
            let workers: ReadyWorkers = serving.remove(name.as_str()).into_iter().flatten().collect();
            let entry = ModelEntry {
                adapter: Some(LoraAdapter {
                    name: name.clone(),
                    root: known.root.clone(),
                }),
                decisions: known.decisions.clone(),
                ..models.get(&known.base)?.with_workers(workers)
            };
            Some((name.clone(), Arc::new(entry)))
        };
        self.known.iter().filter_map(entry).collect()
    }
}

fn ready<'a>(workers: impl IntoIterator<Item = &'a WorkerEntry>) -> impl Iterator<Item = &'a WorkerEntry> {
    workers
        .into_iter()
        .filter(|worker| worker.phase == WorkerPhase::Ready)
}

#[cfg(test)]
mod tests;
