//! What a watcher saw in etcd, key by key, and who is present by it.
//!
//! Membership knows ids and etcd knows keys. One id may be under two keys, when a worker came back with another model
//! before its former key ended: then the later epoch is present, and the other one again once that is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use signalbox_protocol::{RouterCard, RouterId, WorkerCard, WorkerId};

use super::keyspace::{Card, Keyspace};

/// Keys and what they hold.
#[derive(Debug)]
pub(crate) struct Picture {
    keys: Keyspace,
    held: BTreeMap<Vec<u8>, Held>,
    /// The keys of each worker, for when one of them goes.
    workers: BTreeMap<WorkerId, BTreeSet<Vec<u8>>>,
    routers: BTreeMap<RouterId, RouterCard>,
    /// Whose presence may have changed, in that order.
    touched: Vec<WorkerId>,
}

#[derive(Debug)]
enum Held {
    Worker(Arc<WorkerCard>),
    Router(RouterId),
    /// Kept so that it is complained about once.
    Unreadable,
}

impl Picture {
    pub(crate) fn new(keys: Keyspace) -> Self {
        Self {
            keys,
            held: BTreeMap::new(),
            workers: BTreeMap::new(),
            routers: BTreeMap::new(),
            touched: Vec::new(),
        }
    }

    /// A key was written, or is there.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) {
        let read = self.keys.read(key, value);
        let former = self.forget(key);
        let held = match read {
            Ok(Some(Card::Worker(card))) => {
                self.workers
                    .entry(card.id.clone())
                    .or_default()
                    .insert(key.into());
                self.touched.push(card.id.clone());
                Held::Worker(Arc::new(card))
            }
            Ok(Some(Card::Router(card))) => {
                let id = card.id.clone();
                self.routers.insert(id.clone(), card);
                Held::Router(id)
            }
            Ok(None) => return,
            Err(reason) => {
                if !matches!(former, Some(Held::Unreadable)) {
                    let key = String::from_utf8_lossy(key);
                    tracing::warn!(%key, reason, "a key in etcd is skipped");
                }
                Held::Unreadable
            }
        };
        self.held.insert(key.into(), held);
    }

    /// A key is gone.
    pub(crate) fn delete(&mut self, key: &[u8]) {
        self.forget(key);
    }

    /// These keys are there, in the order they were written, and no others.
    pub(crate) fn replace<'a>(&mut self, listed: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone) {
        let there: BTreeSet<&[u8]> = listed.clone().map(|(key, _)| key).collect();
        let gone: Vec<Vec<u8>> = self
            .held
            .keys()
            .filter(|key| !there.contains(key.as_slice()))
            .cloned()
            .collect();
        for key in gone {
            self.delete(&key);
        }
        for (key, value) in listed {
            self.put(key, value);
        }
    }

    /// Who is or is not present now, of those who may have changed since this was last asked.
    pub(crate) fn take_changes(&mut self) -> Vec<(WorkerId, Option<Arc<WorkerCard>>)> {
        let touched = std::mem::take(&mut self.touched);
        touched
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
            .filter_map(|key| match self.held.get(key) {
                Some(Held::Worker(card)) => Some(card),
                _ => None,
            });
        cards.max_by_key(|card| card.epoch).cloned()
    }

    fn forget(&mut self, key: &[u8]) -> Option<Held> {
        let former = self.held.remove(key);
        match &former {
            Some(Held::Worker(card)) => {
                if let Some(keys) = self.workers.get_mut(&card.id) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.workers.remove(&card.id);
                    }
                }
                self.touched.push(card.id.clone());
            }
            Some(Held::Router(id)) => _ = self.routers.remove(id),
            Some(Held::Unreadable) | None => {}
        }
        former
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

    fn told(picture: &mut Picture) -> BTreeMap<WorkerId, Option<(String, u64)>> {
        let changes = picture.take_changes().into_iter();
        changes
            .map(|(id, card)| (id, card.map(|card| (card.model.clone(), card.epoch.0))))
            .collect()
    }

    #[test]
    fn the_later_epoch_of_an_id_under_two_models_is_present() {
        let mut picture = Picture::new(keys());
        let (old, new) = (worker("x", "a", 1), worker("b", "a", 2));
        for (key, value) in [&old, &new] {
            picture.put(key, value);
        }
        let is = |model: &str, epoch| BTreeMap::from([(id("a"), Some((model.to_owned(), epoch)))]);
        assert_eq!(told(&mut picture), is("b", 2));
        picture.delete(&old.0);
        assert_eq!(told(&mut picture), is("b", 2));
        picture.put(&old.0, &old.1);
        picture.delete(&new.0);
        assert_eq!(told(&mut picture), is("x", 1));
        picture.delete(&old.0);
        assert_eq!(told(&mut picture), BTreeMap::from([(id("a"), None)]));
    }

    #[test]
    fn a_card_that_cannot_be_read_is_nobody() {
        let mut picture = Picture::new(keys());
        let (key, value) = worker("m", "a", 1);
        picture.put(&key, b"{");
        assert_eq!(told(&mut picture), BTreeMap::new());
        picture.put(&key, &value);
        assert_eq!(told(&mut picture).len(), 1);
        picture.put(&key, b"{");
        assert_eq!(told(&mut picture), BTreeMap::from([(id("a"), None)]));
    }

    #[test]
    fn routers_come_and_go() {
        let mut picture = Picture::new(keys());
        let router = router_card("r");
        let (key, value) = (keys().router(&router.id), serde_json::to_vec(&router).unwrap());
        picture.put(key.as_bytes(), &value);
        assert_eq!(picture.routers().get(&router.id), Some(&router));
        picture.replace([].into_iter());
        assert!(picture.routers().is_empty());
    }

    proptest! {
        /// Changes told one by one lead to the same as a list of what is there in the end.
        #[test]
        fn a_list_and_the_changes_that_lead_to_it_agree(
            steps in prop::collection::vec((0u8..3, 0u8..3, 0u64..4), 0..40),
            listed_before in 0usize..40,
        ) {
            let (mut by_changes, mut by_lists) = (Picture::new(keys()), Picture::new(keys()));
            let mut there: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
            let (mut present_by_changes, mut present_by_lists) = (BTreeMap::new(), BTreeMap::new());
            let list = |picture: &mut Picture, there: &BTreeMap<Vec<u8>, Vec<u8>>| {
                picture.replace(there.iter().map(|(key, value)| (key.as_slice(), value.as_slice())));
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
                present_by_changes.extend(told(&mut by_changes));
                if step == listed_before {
                    list(&mut by_lists, &there);
                    present_by_lists.extend(told(&mut by_lists));
                }
            }
            list(&mut by_lists, &there);
            present_by_lists.extend(told(&mut by_lists));
            let present = |told: BTreeMap<WorkerId, Option<(String, u64)>>| -> BTreeMap<WorkerId, u64> {
                told.into_iter().filter_map(|(id, card)| Some((id, card?.1))).collect()
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
