//! What this process wants to be in etcd, and what has to be done about it.
//!
//! It is a set of keys, each with the card that should be under it or nothing, and the time something is due there.
//! Whoever registers changes what is wanted and rings; the [`Registrar`](super::registrar::Registrar) does what is
//! due, and once more whatever was changed meanwhile. So nothing queues up, however often somebody registers and
//! however long etcd is away.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use signalbox_protocol::{WorkerCard, WorkerEpoch, WorkerId};
use tokio::sync::watch;

use crate::StaleEpoch;

/// A key is looked after this often: one that somebody deleted by hand comes back.
const VERIFY_INTERVAL: Duration = Duration::from_secs(30);

/// A key that a later incarnation holds is tried again this often: that incarnation may end.
const REFUSED_RETRY: Duration = Duration::from_secs(5);

/// Shared by those who register and the one who does the work.
#[derive(Debug, Default)]
pub(crate) struct Registrations {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    slots: BTreeMap<String, Slot>,
    /// Numbers the next registration or withdrawal.
    next: u64,
    /// Everything wanted is to be withdrawn at once.
    withdrawing: bool,
}

#[derive(Debug)]
struct Slot {
    /// What the key should hold; `None`: it should go.
    wanted: Option<Wanted>,
    /// Tells registrations of one key apart, and puts what is due at one time in order.
    number: u64,
    due: Instant,
    /// A refusal was logged.
    refused: bool,
}

/// What should be under a key.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Whose incarnation it is; none for a router, whose id is a new one in each incarnation.
    pub(crate) incarnation: Option<(WorkerId, WorkerEpoch)>,
    /// The card, as JSON.
    pub(crate) value: Arc<[u8]>,
}

/// Something to do.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) key: String,
    /// What the key should hold; `None`: it should go.
    pub(crate) wanted: Option<Wanted>,
    number: u64,
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// etcd has what is wanted.
    Settled,
    /// A later incarnation of the worker holds the key.
    Refused(WorkerEpoch),
    /// Others wrote the key again and again: at the next turn.
    Contended,
}

impl Registrations {
    /// Whether a later epoch of this worker is registered here.
    pub(crate) fn check(&self, card: &WorkerCard) -> Result<(), StaleEpoch> {
        let state = self.state.lock();
        let mut incarnations = state
            .slots
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

    /// Wants this under the key. The number to [`end`](Self::end) it with.
    pub(crate) fn begin(&self, key: String, wanted: Wanted) -> u64 {
        let mut state = self.state.lock();
        let number = state.next();
        let slot = Slot {
            wanted: Some(wanted),
            number,
            due: Instant::now(),
            refused: false,
        };
        state.slots.insert(key, slot);
        drop(state);
        self.ring();
        number
    }

    /// Wants it no more, unless another registration replaced it.
    pub(crate) fn end(&self, key: &str, number: u64) {
        let mut state = self.state.lock();
        let next = state.next();
        if let Some(slot) = state.slots.get_mut(key).filter(|slot| slot.number == number) {
            slot.wanted = None;
            slot.number = next;
            slot.due = Instant::now();
            drop(state);
            self.ring();
        }
    }

    /// Wants nothing of what is registered so far any more; waits until that is done.
    pub(crate) async fn withdraw_all(&self) {
        let mut changed = self.changed.subscribe();
        {
            let mut state = self.state.lock();
            if state.slots.is_empty() {
                return;
            }
            state.slots.values_mut().for_each(|slot| slot.wanted = None);
            state.withdrawing = true;
        }
        self.ring();
        while self.is_withdrawing() {
            // The sender is in self, so this only ever waits.
            _ = changed.changed().await;
        }
    }

    pub(crate) fn is_withdrawing(&self) -> bool {
        self.state.lock().withdrawing
    }

    /// The first thing to do now.
    pub(crate) fn next_work(&self, now: Instant) -> Option<Work> {
        let state = self.state.lock();
        let due = state.slots.iter().filter(|(_, slot)| slot.due <= now);
        due.min_by_key(|(_, slot)| slot.number).map(|(key, slot)| Work {
            key: key.clone(),
            wanted: slot.wanted.clone(),
            number: slot.number,
        })
    }

    /// When there is something to do, if nothing changes.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.state.lock().slots.values().map(|slot| slot.due).min()
    }

    /// Says how the work went; if something else is wanted by now, that is due still.
    pub(crate) fn done(&self, work: &Work, outcome: Outcome, now: Instant) {
        let mut state = self.state.lock();
        let Some(slot) = state
            .slots
            .get_mut(&work.key)
            .filter(|slot| slot.number == work.number)
        else {
            return;
        };
        match (outcome, &slot.wanted) {
            (Outcome::Settled, None) => _ = state.slots.remove(&work.key),
            (Outcome::Settled, Some(_)) => {
                slot.refused = false;
                slot.due = now + VERIFY_INTERVAL;
            }
            (Outcome::Refused(known), _) => {
                if !slot.refused {
                    let key = &work.key;
                    tracing::warn!(
                        %key, %known,
                        "this worker is not registered: a later epoch of it is; it waits for that one to end"
                    );
                }
                slot.refused = true;
                slot.due = now + REFUSED_RETRY;
            }
            (Outcome::Contended, _) => slot.due = now + REFUSED_RETRY,
        }
    }

    /// The lease is gone, and every key under it: what is wanted is due again, what is not is done.
    pub(crate) fn lease_lost(&self, now: Instant) {
        let mut state = self.state.lock();
        state.slots.retain(|_, slot| slot.wanted.is_some());
        state.slots.values_mut().for_each(|slot| slot.due = now);
    }

    /// [`lease_lost`](Self::lease_lost) on purpose.
    pub(crate) fn withdrawn(&self, now: Instant) {
        self.lease_lost(now);
        self.state.lock().withdrawing = false;
        self.ring();
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn ring(&self) {
        self.changed.send_modify(|()| {});
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
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
    fn what_changes_during_the_work_is_due_still() {
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
    fn keys_are_looked_after_and_refused_ones_tried_again() {
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
    fn what_was_registered_first_is_done_first() {
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
