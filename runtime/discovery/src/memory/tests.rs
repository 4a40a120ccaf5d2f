//! Tests that need changes to take effect at once. The others are in `crate::tests`.

use std::{
    collections::BTreeMap,
    pin::pin,
    task::{Context, Poll, Waker},
};

use proptest::prelude::*;
use signalbox_protocol::{WorkerEpoch, WorkerId};

use super::*;
use crate::{
    WorkerChange,
    tests::{card, expect, id, joined, next},
};

fn left(name: &str, epoch: u64) -> WorkerChange {
    WorkerChange::Left {
        id: id(name),
        epoch: WorkerEpoch(epoch),
        departure: Departure::Withdrawn,
    }
}

#[tokio::test]
async fn a_slow_watch_delivers_the_present_state() {
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
        // The earlier registration is dropped after the new one has replaced it.
        last = discovery.register(card("a", epoch)).unwrap();
    }
    expect(&mut watch, [left("a", 1), left("gone", 1), joined("a", 99)]).await;
    drop(last);
    expect(&mut watch, [left("a", 99)]).await;
}

proptest! {
    /// The changes of a watch alternate between joined and left, and their sum is the present state.
    #[test]
    fn changes_add_up_to_the_present_workers(steps in prop::collection::vec((0usize..4, 0u64..6, 0usize..5), 0..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let discovery = MemoryDiscovery::default();
        let mut watch = discovery.watch();
        let mut registered: BTreeMap<String, (u64, Registration)> = BTreeMap::new();
        let mut delivered: BTreeMap<WorkerId, WorkerEpoch> = BTreeMap::new();
        let mut take = |change: WorkerChange| match change {
            WorkerChange::Joined(card) => assert_eq!(delivered.insert(card.id.clone(), card.epoch), None, "joined twice"),
            WorkerChange::Left { id, epoch, .. } => assert_eq!(delivered.remove(&id), Some(epoch), "left as it had joined"),
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
                let polled = pin!(watch.next()).poll(&mut Context::from_waker(Waker::noop()));
                if let Poll::Ready(change) = polled {
                    take(change);
                }
            }
        }
        // The worker that joins last is delivered last.
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
        prop_assert_eq!(delivered, present);
    }
}
