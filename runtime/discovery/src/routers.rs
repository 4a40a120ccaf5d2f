//! The routers that are present.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use signalbox_protocol::{RouterCard, RouterId};
use tokio::sync::watch;

/// All routers present at one moment.
pub(crate) type RouterCards = Arc<BTreeMap<RouterId, RouterCard>>;

/// The routers that are present, and the receivers of changes.
#[derive(Debug, Default)]
pub(crate) struct Routers {
    present: watch::Sender<RouterCards>,
    registrations: Mutex<Registrations>,
}

/// The number of the last registration of each router: only that one can end it.
#[derive(Debug, Default)]
struct Registrations {
    last: BTreeMap<RouterId, u64>,
    next: u64,
}

impl Routers {
    /// Makes a router present. Returns the number with which to [`remove`](Self::remove) it.
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

    /// Ends a registration, unless another one has replaced it.
    pub(crate) fn remove(&self, id: &RouterId, number: u64) {
        let mut registrations = self.registrations.lock();
        if registrations.last.get(id) == Some(&number) {
            registrations.last.remove(id);
            self.present.send_modify(|present| {
                Arc::make_mut(present).remove(id);
            });
        }
    }

    /// Sets the routers that are present. Wakes no receiver if nothing changed.
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
