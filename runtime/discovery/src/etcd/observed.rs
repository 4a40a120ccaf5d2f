//! The keys that the watcher has read from etcd, and which workers and routers they make present.
//!
//! Membership is by id, etcd is by key. One id may have two keys, when a worker restarted with another model before its
//! earlier key expired. Then the later epoch is present; if its key goes first, the earlier one is present again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use signalbox_protocol::{RouterCard, RouterId, WorkerCard, WorkerId};

use super::keyspace::{Card, Keyspace};

/// The keys and their cards.
#[derive(Debug)]
pub(crate) struct ObservedKeys {
    keys: Keyspace,
    values: BTreeMap<Vec<u8>, Value>,
    /// The keys of each worker.
    workers: BTreeMap<WorkerId, BTreeSet<Vec<u8>>>,
    routers: BTreeMap<RouterId, RouterCard>,
    /// The workers whose presence may have changed, in order.
    changed_ids: Vec<WorkerId>,
}

#[derive(Debug)]
enum Value {
    Worker(Arc<WorkerCard>),
    Router(RouterId),
    /// Kept so that the warning is logged once.
    Unreadable,
}

impl ObservedKeys {
    pub(crate) fn new(keys: Keyspace) -> Self {
        Self {
            keys,
            values: BTreeMap::new(),
            workers: BTreeMap::new(),
            routers: BTreeMap::new(),
            changed_ids: Vec::new(),
        }
    }

    /// Records the value of a key.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) {
        let read = self.keys.read(key, value);
        let previous = self.forget(key);
        let value = match read {
            Ok(Some(Card::Worker(card))) => {
                self.workers
                    .entry(card.id.clone())
                    .or_default()
                    .insert(key.into());
                self.changed_ids.push(card.id.clone());
                Value::Worker(Arc::new(card))
            }
            Ok(Some(Card::Router(card))) => {
                let id = card.id.clone();
                self.routers.insert(id.clone(), card);
                Value::Router(id)
            }
            Ok(None) => return,
            Err(reason) => {
                if !matches!(previous, Some(Value::Unreadable)) {
                    let key = String::from_utf8_lossy(key);
                    tracing::warn!(%key, reason, "an invalid key in etcd is skipped");
                }
                Value::Unreadable
            }
        };
        self.values.insert(key.into(), value);
    }

    /// Records that a key was deleted.
    pub(crate) fn delete(&mut self, key: &[u8]) {
        self.forget(key);
    }

    /// Replaces all keys by those listed, in the order in which they were written.
    pub(crate) fn replace<'a>(&mut self, listed: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone) {
        let present: BTreeSet<&[u8]> = listed.clone().map(|(key, _)| key).collect();
        let gone: Vec<Vec<u8>> = self
            .values
            .keys()
            .filter(|key| !present.contains(key.as_slice()))
            .cloned()
            .collect();
        for key in gone {
            self.delete(&key);
        }
        for (key, value) in listed {
            self.put(key, value);
        }
    }

    /// The present card of each worker that may have changed since the last call; `None` if it is not present.
    pub(crate) fn take_changes(&mut self) -> Vec<(WorkerId, Option<Arc<WorkerCard>>)> {
        let changed_ids = std::mem::take(&mut self.changed_ids);
        changed_ids
            .into_iter()
            .map(|id| {
                let present = self.present(&id);
                (id, present)
            })
            .collect()
    }

    /// All routers present.
    pub(crate) fn routers(&self) -> &BTreeMap<RouterId, RouterCard> {
        &self.routers
    }

    fn present(&self, id: &WorkerId) -> Option<Arc<WorkerCard>> {
        let cards = self
            .workers
            .get(id)?
            .iter()
            .filter_map(|key| match self.values.get(key) {
                Some(Value::Worker(card)) => Some(card),
                _ => None,
            });
        cards.max_by_key(|card| card.epoch).cloned()
    }

    fn forget(&mut self, key: &[u8]) -> Option<Value> {
        let previous = self.values.remove(key);
        match &previous {
            Some(Value::Worker(card)) => {
                if let Some(keys) = self.workers.get_mut(&card.id) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.workers.remove(&card.id);
                    }
                }
                self.changed_ids.push(card.id.clone());
            }
            Some(Value::Router(id)) => _ = self.routers.remove(id),
            Some(Value::Unreadable) | None => {}
        }
        previous
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::{card, id, router_card};

    fn keys() -> Keyspace {
        Keyspace::new("n").unwrap()
    }

    fn worker(model: &str, name: &str, epoch: u64) -> (Vec<u8>, Vec<u8>) {
        let mut worker = (*card(name, epoch)).clone();
        worker.model = model.into();
        (
            keys().worker(&worker).into(),
            serde_json::to_vec(&worker).unwrap(),
        )
    }

    fn changes(observed: &mut ObservedKeys) -> BTreeMap<WorkerId, Option<(String, u64)>> {
        let changes = observed.take_changes().into_iter();
        changes
            .map(|(id, card)| (id, card.map(|card| (card.model.clone(), card.epoch.0))))
            .collect()
    }

    #[test]
    fn the_later_epoch_of_an_id_under_two_models_is_present() {
        let mut observed = ObservedKeys::new(keys());
        let (old, new) = (worker("x", "a", 1), worker("b", "a", 2));
        for (key, value) in [&old, &new] {
            observed.put(key, value);
        }
        let is = |model: &str, epoch| BTreeMap::from([(id("a"), Some((model.to_owned(), epoch)))]);
        assert_eq!(changes(&mut observed), is("b", 2));
        observed.delete(&old.0);
        assert_eq!(changes(&mut observed), is("b", 2));
        observed.put(&old.0, &old.1);
        observed.delete(&new.0);
        assert_eq!(changes(&mut observed), is("x", 1));
        observed.delete(&old.0);
        assert_eq!(changes(&mut observed), BTreeMap::from([(id("a"), None)]));
    }

    #[test]
    fn an_unreadable_card_makes_no_worker_present() {
        let mut observed = ObservedKeys::new(keys());
        let (key, value) = worker("m", "a", 1);
        observed.put(&key, b"{");
        assert_eq!(changes(&mut observed), BTreeMap::new());
        observed.put(&key, &value);
        assert_eq!(changes(&mut observed).len(), 1);
        observed.put(&key, b"{");
        assert_eq!(changes(&mut observed), BTreeMap::from([(id("a"), None)]));
    }

    #[test]
    fn routers_come_and_go() {
        let mut observed = ObservedKeys::new(keys());
        let router = router_card("r");
        let (key, value) = (keys().router(&router.id), serde_json::to_vec(&router).unwrap());
        observed.put(key.as_bytes(), &value);
        assert_eq!(observed.routers().get(&router.id), Some(&router));
        observed.replace([].into_iter());
        assert!(observed.routers().is_empty());
    }

    proptest! {
        /// All changes one by one have the same result as one list at the end.
        #[test]
        fn a_list_and_the_changes_that_lead_to_it_agree(
            steps in prop::collection::vec((0u8..3, 0u8..3, 0u64..4), 0..40),
            listed_before in 0usize..40,
        ) {
            let (mut by_changes, mut by_lists) = (ObservedKeys::new(keys()), ObservedKeys::new(keys()));
            let mut there: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
            let (mut present_by_changes, mut present_by_lists) = (BTreeMap::new(), BTreeMap::new());
            let list = |observed: &mut ObservedKeys, there: &BTreeMap<Vec<u8>, Vec<u8>>| {
                observed.replace(there.iter().map(|(key, value)| (key.as_slice(), value.as_slice())));
            };
            for (step, (model, name, epoch)) in steps.into_iter().enumerate() {
                let (key, value) = worker(&format!("m{model}"), &format!("w{name}"), epoch);
                if epoch == 0 {
                    there.remove(&key);
                    by_changes.delete(&key);
                } else {
                    by_changes.put(&key, &value);
                    there.insert(key, value);
                }
                present_by_changes.extend(changes(&mut by_changes));
                if step == listed_before {
                    list(&mut by_lists, &there);
                    present_by_lists.extend(changes(&mut by_lists));
                }
            }
            list(&mut by_lists, &there);
            present_by_lists.extend(changes(&mut by_lists));
            let present = |changes: BTreeMap<WorkerId, Option<(String, u64)>>| -> BTreeMap<WorkerId, u64> {
                changes.into_iter().filter_map(|(id, card)| Some((id, card?.1))).collect()
            };
            let latest = there.values().fold(BTreeMap::new(), |mut latest: BTreeMap<WorkerId, u64>, value| {
                let card: WorkerCard = serde_json::from_slice(value).unwrap();
                let epoch = latest.entry(card.id).or_default();
                *epoch = card.epoch.0.max(*epoch);
                latest
            });
            prop_assert_eq!(present(present_by_changes), latest.clone());
            prop_assert_eq!(present(present_by_lists), latest);
        }
    }
}
