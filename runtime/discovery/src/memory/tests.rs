use std::{
    collections::BTreeMap,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use proptest::prelude::*;
use signalbox_protocol::{WorkerCapacity, WorkerEpoch, WorkerId, WorkerRole};

use super::*;
use crate::WorkerChange;

/// Only ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(30);

fn id(name: &str) -> WorkerId {
    name.parse().unwrap()
}

fn card(name: &str, epoch: u64) -> Arc<WorkerCard> {
    card_at(name, epoch, "127.0.0.1:7000")
}

fn card_at(name: &str, epoch: u64, address: &str) -> Arc<WorkerCard> {
    Arc::new(WorkerCard {
        id: id(name),
        epoch: WorkerEpoch(epoch),
        model: "m".into(),
        address: address.into(),
        engine: "sim".into(),
        block_size: 16,
        context_length: 4096,
        artifacts_digest: String::new(),
        role: WorkerRole::Aggregated,
        capacity: WorkerCapacity::default(),
        kv_events: true,
        labels: BTreeMap::new(),
    })
}

fn joined(name: &str, epoch: u64) -> WorkerChange {
    WorkerChange::Joined(card(name, epoch))
}

fn left(name: &str, epoch: u64) -> WorkerChange {
    WorkerChange::Left {
        id: id(name),
        epoch: WorkerEpoch(epoch),
    }
}

async fn next(watch: &mut Watch) -> WorkerChange {
    tokio::time::timeout(PATIENCE, watch.next())
        .await
        .expect("a change")
}

async fn expect<const N: usize>(watch: &mut Watch, changes: [WorkerChange; N]) {
    for change in changes {
        assert_eq!(next(watch).await, change);
    }
}

#[tokio::test]
async fn a_watcher_learns_who_is_there_and_then_who_comes_and_goes() {
    let discovery = MemoryDiscovery::default();
    let b = discovery.register(card("b", 1)).unwrap();
    let _a = discovery.register(card("a", 1)).unwrap();
    let mut watch = discovery.watch();
    expect(&mut watch, [joined("b", 1), joined("a", 1)]).await;
    let _c = discovery.register(card("c", 1)).unwrap();
    expect(&mut watch, [joined("c", 1)]).await;
    drop(b);
    expect(&mut watch, [left("b", 1)]).await;
}

#[tokio::test]
async fn a_change_wakes_a_waiting_watcher() {
    let discovery = MemoryDiscovery::default();
    let mut watch = discovery.watch();
    let waiting = tokio::spawn(async move { next(&mut watch).await });
    tokio::task::yield_now().await;
    let _a = discovery.register(card("a", 1)).unwrap();
    assert_eq!(waiting.await.unwrap(), joined("a", 1));
}

#[tokio::test]
async fn a_new_life_replaces_the_old_one_and_outlives_its_registration() {
    let discovery = MemoryDiscovery::default();
    let mut watch = discovery.watch();
    let old = discovery.register(card("a", 1)).unwrap();
    expect(&mut watch, [joined("a", 1)]).await;
    let _new = discovery.register(card("a", 2)).unwrap();
    drop(old);
    let _b = discovery.register(card("b", 1)).unwrap();
    expect(&mut watch, [left("a", 1), joined("a", 2), joined("b", 1)]).await;
}

#[test]
fn an_old_life_is_refused() {
    let discovery = MemoryDiscovery::default();
    let _new = discovery.register(card("a", 2)).unwrap();
    let refused = discovery.register(card("a", 1)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "worker a registered epoch 2 already; epoch 1 is older"
    );
}

#[tokio::test]
async fn another_card_of_the_same_life_replaces_the_first() {
    let discovery = MemoryDiscovery::default();
    let mut watch = discovery.watch();
    let first = discovery.register(card("a", 1)).unwrap();
    expect(&mut watch, [joined("a", 1)]).await;
    let moved = card_at("a", 1, "127.0.0.1:7001");
    let second = discovery.register(moved.clone()).unwrap();
    drop(first);
    expect(&mut watch, [left("a", 1), WorkerChange::Joined(moved)]).await;
    drop(second);
    expect(&mut watch, [left("a", 1)]).await;
}

#[tokio::test]
async fn the_same_card_again_is_no_change() {
    let discovery = MemoryDiscovery::default();
    let mut watch = discovery.watch();
    let first = discovery.register(card("a", 1)).unwrap();
    expect(&mut watch, [joined("a", 1)]).await;
    let second = discovery.register(card("a", 1)).unwrap();
    drop(first);
    let _b = discovery.register(card("b", 1)).unwrap();
    expect(&mut watch, [joined("b", 1)]).await;
    drop(second);
    expect(&mut watch, [left("a", 1)]).await;
}

#[tokio::test]
async fn a_slow_watcher_sees_where_things_stand() {
    let discovery = MemoryDiscovery::default();
    let mut watch = discovery.watch();
    let first = discovery.register(card("a", 1)).unwrap();
    let gone = discovery.register(card("gone", 1)).unwrap();
    expect(&mut watch, [joined("a", 1), joined("gone", 1)]).await;
    drop(gone);
    for epoch in 2..100 {
        drop(discovery.register(card("brief", epoch)).unwrap());
    }
    let mut last = first;
    for epoch in 2..100 {
        // The former registration is dropped after the new one replaced it.
        last = discovery.register(card("a", epoch)).unwrap();
    }
    expect(&mut watch, [left("a", 1), left("gone", 1), joined("a", 99)]).await;
    drop(last);
    expect(&mut watch, [left("a", 99)]).await;
}

proptest! {
    /// Whatever happens between its looks: a watcher's changes make sense one by one and lead to who is present.
    #[test]
    fn changes_add_up_to_who_is_present(steps in prop::collection::vec((0usize..4, 0u64..6, 0usize..5), 0..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let discovery = MemoryDiscovery::default();
        let mut watch = discovery.watch();
        let mut registered: BTreeMap<String, (u64, Registration)> = BTreeMap::new();
        let mut told: BTreeMap<WorkerId, WorkerEpoch> = BTreeMap::new();
        let mut take = |change: WorkerChange| match change {
            WorkerChange::Joined(card) => assert_eq!(told.insert(card.id.clone(), card.epoch), None, "joined twice"),
            WorkerChange::Left { id, epoch } => assert_eq!(told.remove(&id), Some(epoch), "left as it had joined"),
        };
        for (worker, epoch, looks) in steps {
            let name = format!("w{worker}");
            let known = registered.get(&name).map(|(epoch, _)| *epoch);
            if epoch == 0 {
                registered.remove(&name);
            } else {
                match discovery.register(card(&name, epoch)) {
                    Ok(registration) => {
                        assert!(known.is_none_or(|known| known <= epoch));
                        registered.insert(name, (epoch, registration));
                    }
                    Err(stale) => assert_eq!(Some(stale.known.0), known),
                }
            }
            for _ in 0..looks {
                let looked = pin!(watch.next()).poll(&mut Context::from_waker(Waker::noop()));
                if let Poll::Ready(change) = looked {
                    take(change);
                }
            }
        }
        // Whoever joins last is told last.
        let _end = discovery.register(card("end", 1)).unwrap();
        loop {
            let change = runtime.block_on(next(&mut watch));
            let is_end = change == joined("end", 1);
            take(change);
            if is_end { break }
        }
        let mut present: BTreeMap<WorkerId, WorkerEpoch> =
            registered.iter().map(|(name, (epoch, _))| (id(name), WorkerEpoch(*epoch))).collect();
        present.insert(id("end"), WorkerEpoch(1));
        prop_assert_eq!(told, present);
    }
}
