//! One thread's links to the workers.

use std::{cell::Cell, collections::HashSet};

use signalbox_protocol::WorkerEpoch;
use signalbox_request_plane::{LinkConfig, LinkHandle, LinkState, StateChanges};

use crate::roster::{WorkerEntry, WorkerPhase};

#[cfg(test)]
mod tests;

/// This thread's links, by worker slot.
#[derive(Debug)]
pub(crate) struct Links {
    config: LinkConfig,
    by_slot: Vec<Option<(WorkerEpoch, LinkHandle)>>,
    /// Counts the changes of state of all these links.
    changes: StateChanges,
    /// The last answer of [`Links::are_all_up`], and the count of changes it was computed at; `None` after a link was
    /// opened or closed.
    all_up: Cell<Option<(u64, bool)>>,
}

impl Links {
    pub(crate) fn new(config: LinkConfig) -> Self {
        Self {
            config,
            by_slot: Vec::new(),
            changes: StateChanges::default(),
            all_up: Cell::new(None),
        }
    }

    /// Opens links to the workers that are ready and have none, and closes links to workers that are not among `workers`. One
    /// that is not ready has perhaps never answered: each thread would dial it for nothing.
    pub(crate) fn follow(&mut self, workers: &[WorkerEntry]) {
        let present: HashSet<_> = workers
            .iter()
            .map(|worker| (worker.slot.0 as usize, worker.card.epoch))
            .collect();
        for (slot, entry) in self.by_slot.iter_mut().enumerate() {
            let has_left = entry
                .as_ref()
                .is_some_and(|(epoch, _)| !present.contains(&(slot, *epoch)));
            if has_left && let Some((_, link)) = entry.take() {
                link.close();
                self.all_up.set(None);
            }
        }
        for worker in workers.iter().filter(|worker| worker.phase == WorkerPhase::Ready) {
            let _ = self.get(worker);
        }
    }

    /// The link to a worker. Opens one if the worker has none, or has one to an earlier incarnation.
    pub(crate) fn get(&mut self, worker: &WorkerEntry) -> LinkHandle {
        let slot = worker.slot.0 as usize;
        if self.by_slot.len() <= slot {
            self.by_slot.resize_with(slot + 1, || None);
        }
        match &self.by_slot[slot] {
            Some((epoch, link)) if *epoch == worker.card.epoch => link.clone(),
            earlier => {
                if let Some((_, link)) = earlier {
                    link.close();
                }
                let link = LinkHandle::start(worker.card.address.clone(), self.config.clone(), None);
                link.count_changes(self.changes.clone());
                self.by_slot[slot] = Some((worker.card.epoch, link.clone()));
                self.all_up.set(None);
                link
            }
        }
    }

    /// Whether the worker's link is up.
    pub(crate) fn is_up(&self, worker: &WorkerEntry) -> bool {
        self.state(worker) == Some(LinkState::Up)
    }

    /// Whether the worker may be a candidate where no worker's link is up: its link is being dialled, or no link to it was
    /// opened yet. A dial may last as long as it is allowed to, and a request would wait for it.
    pub(crate) fn is_usable(&self, worker: &WorkerEntry) -> bool {
        matches!(
            self.state(worker),
            None | Some(LinkState::Up | LinkState::Connecting)
        )
    }

    /// The state of the worker's link, if one was opened.
    fn state(&self, worker: &WorkerEntry) -> Option<LinkState> {
        match self.by_slot.get(worker.slot.0 as usize) {
            Some(Some((epoch, link))) if *epoch == worker.card.epoch => Some(link.state()),
            _ => None,
        }
    }

    /// Whether every link is up. That is the usual case, and a decision then skips [`Links::is_up`] for each worker. A
    /// worker to which no link was opened yet counts as one whose link is up: its link is opened with the first request.
    pub(crate) fn are_all_up(&self) -> bool {
        let changes = self.changes.count();
        if let Some((_, all)) = self.all_up.get().filter(|(count, _)| *count == changes) {
            return all;
        }
        let mut links = self.by_slot.iter().flatten();
        let all = links.all(|(_, link)| link.state() == LinkState::Up);
        self.all_up.set(Some((changes, all)));
        all
    }
}
