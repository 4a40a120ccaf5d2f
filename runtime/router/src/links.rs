//! One thread's links to the workers.

use std::{cell::Cell, collections::HashSet};

use signalbox_protocol::WorkerEpoch;
use signalbox_request_plane::{LinkHandle, LinkState, StateChanges};

use crate::{
    roster::{RosterView, WorkerEntry},
    router::Router,
};

/// This thread's links, by worker slot.
#[derive(Debug, Default)]
pub(crate) struct Links {
    by_slot: Vec<Option<(WorkerEpoch, LinkHandle)>>,
    changes: StateChanges,
    /// Whether all are usable, and after how many changes they were asked; `None` since the links are others.
    all_usable: Cell<Option<(u64, bool)>>,
}

impl Links {
    /// Opens links to newcomers and closes those to workers that left.
    pub(crate) fn follow(&mut self, view: &RosterView, router: &Router) {
        let present: HashSet<_> = view
            .workers
            .iter()
            .map(|worker| (worker.slot.0 as usize, worker.card.epoch))
            .collect();
        for (slot, entry) in self.by_slot.iter_mut().enumerate() {
            let gone = entry
                .as_ref()
                .is_some_and(|(epoch, _)| !present.contains(&(slot, *epoch)));
            if gone && let Some((_, link)) = entry.take() {
                link.close();
                self.all_usable.set(None);
            }
        }
        for worker in &view.workers {
            let _ = self.get(worker, router);
        }
    }

    /// The worker's link, opened now where there is none.
    pub(crate) fn get(&mut self, worker: &WorkerEntry, router: &Router) -> LinkHandle {
        let place = worker.slot.0 as usize;
        if self.by_slot.len() <= place {
            self.by_slot.resize_with(place + 1, || None);
        }
        match &self.by_slot[place] {
            Some((epoch, link)) if *epoch == worker.card.epoch => link.clone(),
            stale => {
                if let Some((_, link)) = stale {
                    link.close();
                }
                let link = LinkHandle::start(worker.card.address.clone(), router.links.clone(), None);
                link.count_changes(self.changes.clone());
                self.by_slot[place] = Some((worker.card.epoch, link.clone()));
                self.all_usable.set(None);
                link
            }
        }
    }

    /// Whether a request may be given to the worker: not while its link waits to dial again. A link not opened yet
    /// is worth a try.
    pub(crate) fn is_usable(&self, worker: &WorkerEntry) -> bool {
        match self.by_slot.get(worker.slot.0 as usize) {
            Some(Some((epoch, link))) if *epoch == worker.card.epoch => is_usable(link),
            _ => true,
        }
    }

    /// Whether [`Links::is_usable`] is true of every worker: mostly so, and then nobody needs to be asked.
    pub(crate) fn are_all_usable(&self) -> bool {
        let changes = self.changes.count();
        if let Some((_, all)) = self.all_usable.get().filter(|(seen, _)| *seen == changes) {
            return all;
        }
        let all = self.by_slot.iter().flatten().all(|(_, link)| is_usable(link));
        self.all_usable.set(Some((changes, all)));
        all
    }
}

fn is_usable(link: &LinkHandle) -> bool {
    matches!(link.state(), LinkState::Up | LinkState::Connecting)
}
