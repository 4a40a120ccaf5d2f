//! What this process wants in etcd, and what is due.
//!
//! It is a set of keys, each with the card that the key should hold, or nothing, and the time when the key is due. A
//! registration changes what is wanted and wakes the registrar. The registrar does what is due, and repeats a key that
//! was changed meanwhile. So nothing queues up, however often a worker registers and however long etcd is away.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use signalbox_protocol::{WorkerCard, WorkerEpoch, WorkerId};
use tokio::sync::watch;

use crate::error::StaleEpoch;

/// How often a key is verified: a key that an operator deleted by mistake is written again.
const VERIFY_INTERVAL: Duration = Duration::from_secs(30);

/// How often a key that a later incarnation holds is tried again, because that incarnation may end.
pub(crate) const REFUSED_RETRY: Duration = Duration::from_secs(5);

/// The keys that this process wants in etcd.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    slots: Mutex<KeySlots>,
    /// Wakes the registrar.
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct KeySlots {
    by_key: BTreeMap<String, KeySlot>,
    /// The number of the last registration or withdrawal.
    last_number: u64,
    /// Whether everything is to be withdrawn at once.
    withdrawing: bool,
}

#[derive(Debug)]
struct KeySlot {
    /// What the key should hold; `None` if it should be deleted.
    wanted: Option<Wanted>,
    /// The number of the last registration or withdrawal of the key; also the order of keys that are due.
    number: u64,
    due: Instant,
    /// Whether a refusal was logged.
    refused: bool,
}

/// What a key should hold.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// The worker's incarnation; `None` for a router, which has a new id in each incarnation.
    pub(crate) incarnation: Option<(WorkerId, WorkerEpoch)>,
    /// The card, as JSON.
    pub(crate) value: Arc<[u8]>,
}

/// A key that is due.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) key: String,
    /// What the key should hold; `None` if it should be deleted.
    pub(crate) wanted: Option<Wanted>,
    number: u64,
}

/// The result of the work on a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The key holds what is wanted.
    Settled,
    /// A later incarnation of the worker holds the key.
    Refused(WorkerEpoch),
    /// Other processes kept writing the key. It is tried again later.
    Contended,
}

impl Registrations {
    /// Fails if this process has registered a later epoch of this worker.
    pub(crate) fn check(&self, card: &WorkerCard) -> Result<(), StaleEpoch> {
        let slots = self.slots.lock();
        let mut incarnations = slots
            .by_key
            .values()
            .filter_map(|slot| slot.wanted.as_ref()?.incarnation.as_ref());
        match incarnations.find(|(id, epoch)| *id == card.id && *epoch > card.epoch) {
            Some((id, known)) => Err(StaleEpoch {
                id: id.clone(),
                known: *known,
                refused: card.epoch,
            }),
            None => Ok(()),
        }
    }

    /// Registers a key. Returns the number with which to [`end`](Self::end) the registration.
    pub(crate) fn begin(&self, key: String, wanted: Wanted) -> u64 {
        let mut slots = self.slots.lock();
        let number = slots.next_number();
        let slot = KeySlot {
            wanted: Some(wanted),
            number,
            due: Instant::now(),
            refused: false,
        };
        slots.by_key.insert(key, slot);
        drop(slots);
        self.notify();
        number
    }

    /// Ends a registration, unless another one has replaced it.
    pub(crate) fn end(&self, key: &str, number: u64) {
        let mut slots = self.slots.lock();
        let number_of_end = slots.next_number();
        if let Some(slot) = slots.by_key.get_mut(key).filter(|slot| slot.number == number) {
            slot.wanted = None;
            slot.number = number_of_end;
            slot.due = Instant::now();
            drop(slots);
            self.notify();
        }
    }

    /// Ends all registrations and waits until etcd has confirmed it.
    pub(crate) async fn withdraw_all(&self) {
        let mut changed = self.changed.subscribe();
        {
            let mut slots = self.slots.lock();
            if slots.by_key.is_empty() {
                return;
            }
            slots.by_key.values_mut().for_each(|slot| slot.wanted = None);
            slots.withdrawing = true;
        }
        self.notify();
        while self.is_withdrawing() {
            // Cannot fail, because `self` keeps the sender.
            _ = changed.changed().await;
        }
    }

    pub(crate) fn is_withdrawing(&self) -> bool {
        self.slots.lock().withdrawing
    }

    /// The first key that is due now.
    pub(crate) fn next_work(&self, now: Instant) -> Option<Work> {
        let slots = self.slots.lock();
        let due = slots.by_key.iter().filter(|(_, slot)| slot.due <= now);
        due.min_by_key(|(_, slot)| slot.number).map(|(key, slot)| Work {
            key: key.clone(),
            wanted: slot.wanted.clone(),
            number: slot.number,
        })
    }

    /// When the next key is due, if nothing changes.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.slots.lock().by_key.values().map(|slot| slot.due).min()
    }

    /// Records the result of the work on a key. If the key has changed meanwhile, it stays due.
    pub(crate) fn done(&self, work: &Work, outcome: Outcome, now: Instant) {
        let mut slots = self.slots.lock();
        let Some(slot) = slots
            .by_key
            .get_mut(&work.key)
            .filter(|slot| slot.number == work.number)
        else {
            return;
        };
        match (outcome, &slot.wanted) {
            (Outcome::Settled, None) => _ = slots.by_key.remove(&work.key),
            (Outcome::Settled, Some(_)) => {
                slot.refused = false;
                slot.due = now + VERIFY_INTERVAL;
            }
            (Outcome::Refused(known), _) => {
                if !slot.refused {
                    let key = &work.key;
                    tracing::error!(
                        %key, %known,
                        "another worker is registered under this worker's id, in a later epoch: routers send requests to that \
                         one if it answers; give each worker an id of its own with --id, or end one of them"
                    );
                }
                slot.refused = true;
                slot.due = now + REFUSED_RETRY;
            }
            (Outcome::Contended, _) => slot.due = now + REFUSED_RETRY,
        }
    }

    /// Makes these keys due, because other processes have changed them.
    pub(crate) fn verify(&self, keys: &[String], now: Instant) {
        let mut slots = self.slots.lock();
        for key in keys {
            if let Some(slot) = slots.by_key.get_mut(key) {
                slot.due = now;
            }
        }
    }

    /// Records that the lease is gone and every key under it: keys that are wanted are due again, the others are done.
    pub(crate) fn lease_lost(&self, now: Instant) {
        let mut slots = self.slots.lock();
        slots.by_key.retain(|_, slot| slot.wanted.is_some());
        slots.by_key.values_mut().for_each(|slot| slot.due = now);
    }

    /// Records that the lease was revoked to withdraw everything.
    pub(crate) fn withdrawn(&self, now: Instant) {
        self.lease_lost(now);
        self.slots.lock().withdrawing = false;
        self.notify();
    }

    /// Whether a later incarnation holds the key.
    #[cfg(test)]
    pub(crate) fn is_refused(&self, key: &str) -> bool {
        self.slots.lock().by_key.get(key).is_some_and(|slot| slot.refused)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn notify(&self) {
        self.changed.send_modify(|()| {});
    }
}

impl KeySlots {
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::id;

    fn wanted(value: &str, epoch: u64) -> Wanted {
        Wanted {
            incarnation: Some((id("a"), WorkerEpoch(epoch))),
            value: value.as_bytes().into(),
        }
    }

    fn due(registrations: &Registrations, after: Duration) -> Option<Work> {
        registrations.next_work(Instant::now() + after)
    }

    #[test]
    fn a_key_that_changes_during_the_work_stays_due() {
        let registrations = Registrations::default();
        let number = registrations.begin("k".into(), wanted("1", 1));
        let put = due(&registrations, Duration::ZERO).unwrap();
        registrations.end("k", number);
        registrations.done(&put, Outcome::Settled, Instant::now());
        let delete = due(&registrations, Duration::ZERO).unwrap();
        assert!(put.wanted.is_some() && delete.wanted.is_none());
        registrations.done(&delete, Outcome::Settled, Instant::now());
        assert!(registrations.next_due().is_none());
    }

    #[test]
    fn a_replaced_registration_ends_nothing() {
        let registrations = Registrations::default();
        let first = registrations.begin("k".into(), wanted("1", 1));
        registrations.begin("k".into(), wanted("2", 1));
        registrations.end("k", first);
        assert_eq!(
            *due(&registrations, Duration::ZERO).unwrap().wanted.unwrap().value,
            *b"2"
        );
    }

    #[test]
    fn keys_are_verified_and_refused_ones_tried_again() {
        let registrations = Registrations::default();
        registrations.begin("k".into(), wanted("1", 1));
        let work = due(&registrations, Duration::ZERO).unwrap();
        registrations.done(&work, Outcome::Refused(WorkerEpoch(2)), Instant::now());
        assert!(due(&registrations, REFUSED_RETRY / 2).is_none());
        let work = due(&registrations, REFUSED_RETRY).unwrap();
        registrations.done(&work, Outcome::Settled, Instant::now());
        assert!(due(&registrations, VERIFY_INTERVAL / 2).is_none());
        assert!(due(&registrations, VERIFY_INTERVAL).is_some());
        registrations.lease_lost(Instant::now());
        assert!(due(&registrations, Duration::ZERO).is_some());
    }

    #[test]
    fn keys_are_written_in_the_order_of_registration() {
        let registrations = Registrations::default();
        for key in ["b", "c", "a"] {
            registrations.begin(key.into(), wanted("1", 1));
        }
        let mut order = Vec::new();
        while let Some(work) = due(&registrations, Duration::ZERO) {
            registrations.done(&work, Outcome::Settled, Instant::now());
            order.push(work.key);
        }
        assert_eq!(order, ["b", "c", "a"]);
    }
}
