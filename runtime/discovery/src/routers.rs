//! The routers present.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use signalbox_protocol::{RouterCard, RouterId};
use tokio::sync::watch;

/// All routers present, as whoever asked sees them.
pub(crate) type RouterCards = Arc<BTreeMap<RouterId, RouterCard>>;

/// Holds [`RouterCards`] and tells of changes.
#[derive(Debug, Default)]
pub(crate) struct Routers {
    present: watch::Sender<RouterCards>,
    registrations: Mutex<Registrations>,
}

/// Tells registrations of one router apart: only the last one counts.
#[derive(Debug, Default)]
struct Registrations {
    last: BTreeMap<RouterId, u64>,
    next: u64,
}

impl Routers {
    /// Makes a router present. The number to [`remove`](Self::remove) it with.
    pub(crate) fn insert(&self, card: RouterCard) -> u64 {
        let mut registrations = self.registrations.lock();
        let number = registrations.next;
        registrations.next += 1;
        registrations.last.insert(card.id.clone(), number);
        self.present.send_modify(|present| {
            Arc::make_mut(present).insert(card.id.clone(), card);
        });
        number
    }

    /// Ends a registration, unless another replaced it.
    pub(crate) fn remove(&self, id: &RouterId, number: u64) {
        let mut registrations = self.registrations.lock();
        if registrations.last.get(id) == Some(&number) {
            registrations.last.remove(id);
            self.present.send_modify(|present| {
                Arc::make_mut(present).remove(id);
            });
        }
    }

    /// Says who is present, for those that learn it from elsewhere; wakes nobody when that changes nothing.
    pub(crate) fn replace(&self, cards: &BTreeMap<RouterId, RouterCard>) {
        self.present.send_if_modified(|present| {
            let changes = **present != *cards;
            if changes {
                *present = Arc::new(cards.clone());
            }
            changes
        });
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<RouterCards> {
        self.present.subscribe()
    }
}
