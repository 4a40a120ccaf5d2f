//! Who is present, and what each watcher knows of it.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
};

use parking_lot::Mutex;
use signalbox_protocol::{WorkerCard, WorkerEpoch, WorkerId};
use tokio::sync::watch;

use crate::{Departure, StaleEpoch, WorkerChange};

/// Those present, and a bell for watchers.
#[derive(Debug)]
pub(crate) struct Membership {
    present: Mutex<Present>,
    changed: watch::Sender<()>,
    /// What is said of everybody who leaves.
    departure: Departure,
}

#[derive(Debug, Default)]
struct Present {
    workers: BTreeMap<WorkerId, Entry>,
    /// Numbers the next registration.
    next: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    card: Arc<WorkerCard>,
    /// Tells registrations of one worker apart, also of one epoch, and puts them in order.
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

    /// Makes a worker present. The number to [`remove`](Self::remove) it with.
    pub(crate) fn insert(&self, card: Arc<WorkerCard>) -> Result<u64, StaleEpoch> {
        let mut present = self.present.lock();
        present.check(&card)?;
        let number = present.insert(card);
        drop(present);
        self.ring();
        Ok(number)
    }

    /// Whether a later epoch of this worker is present.
    pub(crate) fn check(&self, card: &WorkerCard) -> Result<(), StaleEpoch> {
        self.present.lock().check(card)
    }

    /// Says of each worker which card is present now, if any, whatever was before.
    pub(crate) fn update(&self, changes: impl IntoIterator<Item = (WorkerId, Option<Arc<WorkerCard>>)>) {
        let mut present = self.present.lock();
        for (id, card) in changes {
            match card {
                Some(card) => _ = present.insert(card),
                None => _ = present.workers.remove(&id),
            }
        }
        drop(present);
        self.ring();
    }

    /// Ends a registration, unless another replaced it.
    pub(crate) fn remove(&self, id: &WorkerId, number: u64) {
        let mut present = self.present.lock();
        if present
            .workers
            .get(id)
            .is_some_and(|entry| entry.number == number)
        {
            present.workers.remove(id);
            drop(present);
            self.ring();
        }
    }

    fn ring(&self) {
        self.changed.send_modify(|()| {});
    }

    pub(crate) fn watch(self: &Arc<Self>) -> Watch {
        let changed = self.changed.subscribe();
        Watch {
            membership: self.clone(),
            changed,
            known: BTreeMap::new(),
            untold: VecDeque::new(),
            looked: false,
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

/// Keeps a worker or router present; dropping it ends that, for its own registration only.
#[must_use = "a worker or router is present until its registration is dropped"]
pub struct Registration {
    on_drop: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Registration {
    /// A registration that is ended by `on_drop`, which must not block.
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

/// Follows who is present.
///
/// It keeps what it told, and compares that with who is present: memory for two changes a worker at most, however
/// slowly it is read.
#[derive(Debug)]
pub struct Watch {
    membership: Arc<Membership>,
    changed: watch::Receiver<()>,
    /// What `untold` leads to.
    known: BTreeMap<WorkerId, Entry>,
    untold: VecDeque<WorkerChange>,
    looked: bool,
}

impl Watch {
    /// Waits for the next change. Loses nothing when cancelled.
    pub async fn next(&mut self) -> WorkerChange {
        loop {
            if let Some(change) = self.untold.pop_front() {
                return change;
            }
            if self.looked {
                // The sender lives as long as we hold the membership, so this only ever waits.
                _ = self.changed.changed().await;
            }
            // Marked as seen before looking, so that what comes in between wakes us.
            self.changed.borrow_and_update();
            self.looked = true;
            self.compare();
        }
    }

    /// Finds what changed since the last look: first who left, then who joined, in the order they did.
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
            self.untold.push_back(WorkerChange::Left { id, epoch, departure });
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
            self.untold.push_back(WorkerChange::Joined(entry.card.clone()));
        }
    }
}
