//! The workers that are present, and the watches on them.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
};

use parking_lot::Mutex;
use signalbox_protocol::{WorkerCard, WorkerEpoch, WorkerId};
use tokio::sync::watch;

use crate::{
    change::{Departure, WorkerChange},
    error::StaleEpoch,
};

/// The workers that are present.
#[derive(Debug)]
pub(crate) struct Membership {
    present: Mutex<Present>,
    /// Wakes the watches.
    changed: watch::Sender<()>,
    /// How every worker leaves.
    departure: Departure,
}

#[derive(Debug, Default)]
struct Present {
    workers: BTreeMap<WorkerId, Entry>,
    /// The number of the next registration.
    next: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    card: Arc<WorkerCard>,
    /// The number of the registration, unique and increasing.
    number: u64,
}

impl Membership {
    pub(crate) fn new(departure: Departure) -> Self {
        Self {
            present: Mutex::default(),
            changed: watch::Sender::default(),
            departure,
        }
    }

    /// Makes a worker present. Returns the number with which to [`remove`](Self::remove) it.
    pub(crate) fn insert(&self, card: Arc<WorkerCard>) -> Result<u64, StaleEpoch> {
        let mut present = self.present.lock();
        present.check(&card)?;
        let number = present.insert(card);
        drop(present);
        self.notify();
        Ok(number)
    }

    /// Fails if a later epoch of this worker is present.
    pub(crate) fn check(&self, card: &WorkerCard) -> Result<(), StaleEpoch> {
        self.present.lock().check(card)
    }

    /// Sets the present card of each worker, or removes it.
    pub(crate) fn update(&self, changes: impl IntoIterator<Item = (WorkerId, Option<Arc<WorkerCard>>)>) {
        let mut present = self.present.lock();
        for (id, card) in changes {
            match card {
                Some(card) => _ = present.insert(card),
                None => _ = present.workers.remove(&id),
            }
        }
        drop(present);
        self.notify();
    }

    /// Ends a registration, unless another one has replaced it.
    pub(crate) fn remove(&self, id: &WorkerId, number: u64) {
        let mut present = self.present.lock();
        if present
            .workers
            .get(id)
            .is_some_and(|entry| entry.number == number)
        {
            present.workers.remove(id);
            drop(present);
            self.notify();
        }
    }

    fn notify(&self) {
        self.changed.send_modify(|()| {});
    }

    pub(crate) fn watch(self: &Arc<Self>) -> Watch {
        let changed = self.changed.subscribe();
        Watch {
            membership: self.clone(),
            changed,
            known: BTreeMap::new(),
            undelivered: VecDeque::new(),
            has_compared: false,
        }
    }
}

impl Present {
    fn check(&self, card: &WorkerCard) -> Result<(), StaleEpoch> {
        match self.workers.get(&card.id).map(|entry| entry.card.epoch) {
            Some(known) if card.epoch < known => Err(StaleEpoch {
                id: card.id.clone(),
                known,
                refused: card.epoch,
            }),
            _ => Ok(()),
        }
    }

    fn insert(&mut self, card: Arc<WorkerCard>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.workers.insert(card.id.clone(), Entry { card, number });
        number
    }
}

/// Keeps a worker or router present until it is dropped. Dropping it does not affect another registration of the same
/// id.
#[must_use = "a worker or router is present until its registration is dropped"]
pub struct Registration {
    on_drop: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Registration {
    /// A registration that calls `on_drop`, which must not block, when it is dropped.
    pub fn new(on_drop: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self {
            on_drop: Some(Box::new(on_drop)),
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(on_drop) = self.on_drop.take() {
            on_drop();
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").finish_non_exhaustive()
    }
}

/// Watches the workers that are present.
///
/// It remembers the state that it has delivered and compares the present state with it. So it needs memory for at most
/// two changes per worker, however slowly it is read.
#[derive(Debug)]
pub struct Watch {
    membership: Arc<Membership>,
    changed: watch::Receiver<()>,
    /// The state after the changes in `undelivered`.
    known: BTreeMap<WorkerId, Entry>,
    undelivered: VecDeque<WorkerChange>,
    has_compared: bool,
}

impl Watch {
    /// Waits for the next change. Dropping the future loses nothing.
    pub async fn next(&mut self) -> WorkerChange {
        loop {
            if let Some(change) = self.undelivered.pop_front() {
                return change;
            }
            if self.has_compared {
                // An error would mean that the membership is gone, but this watch keeps it.
                _ = self.changed.changed().await;
            }
            // Marked as seen before the comparison, so that a change in between wakes this watch.
            self.changed.borrow_and_update();
            self.has_compared = true;
            self.compare();
        }
    }

    /// Queues the changes since the last comparison: first the workers that left, then those that joined, in order.
    fn compare(&mut self) {
        let present = self.membership.present.lock();
        let is_current = |id: &WorkerId, entry: &Entry| {
            present
                .workers
                .get(id)
                .is_some_and(|now| now.number == entry.number || now.card == entry.card)
        };
        let left: Vec<(WorkerId, WorkerEpoch)> = self
            .known
            .iter()
            .filter(|(id, entry)| !is_current(id, entry))
            .map(|(id, entry)| (id.clone(), entry.card.epoch))
            .collect();
        for (id, epoch) in left {
            self.known.remove(&id);
            let departure = self.membership.departure;
            self.undelivered
                .push_back(WorkerChange::Left { id, epoch, departure });
        }
        let mut joined: Vec<&Entry> = present
            .workers
            .iter()
            .filter(|(id, _)| !self.known.contains_key(*id))
            .map(|(_, entry)| entry)
            .collect();
        joined.sort_by_key(|entry| entry.number);
        for entry in joined {
            self.known.insert(entry.card.id.clone(), entry.clone());
            self.undelivered
                .push_back(WorkerChange::Joined(entry.card.clone()));
        }
    }
}
