//! Tests of etcd's own failures: lost leases, servers and data.

use std::{collections::BTreeSet, time::Instant};

use etcd_client::{Client, GetOptions};
use signalbox_protocol::{PlaneState, WorkerEpoch};
use signalbox_test_servers::EtcdServer;

use super::*;
use crate::{
    WorkerChange,
    tests::{
        PATIENCE, becomes, card, etcd_config, expect, id, joined, next, router_card, routers_become,
        shared_etcd,
    },
};

mod access;
mod outages;
mod scale;
mod three_members;

/// A short lease, for tests that wait until it expires.
const BRIEF: Duration = Duration::from_secs(2);

async fn start(config: &EtcdConfig) -> Arc<EtcdDiscovery> {
    EtcdDiscovery::start(config.clone()).await.unwrap()
}

/// A plain client of the server.
async fn raw(server: &EtcdServer) -> Client {
    Client::connect([server.address()], None).await.unwrap()
}

fn left(name: &str, epoch: u64) -> WorkerChange {
    WorkerChange::Left {
        id: id(name),
        epoch: WorkerEpoch(epoch),
        departure: Departure::LeaseEnded,
    }
}

/// Takes changes until exactly these workers are present.
async fn becomes_present(watch: &mut Watch, present: &mut BTreeSet<String>, names: &[&str]) {
    while !present.iter().map(String::as_str).eq(names.iter().copied()) {
        match next(watch).await {
            WorkerChange::Joined(card) => assert!(present.insert(card.id.to_string()), "joined twice"),
            WorkerChange::Left { id, .. } => {
                assert!(present.remove(id.as_str()), "left without having joined")
            }
        }
    }
}

/// The lease of a key; `None` without the key.
async fn lease_of(client: &mut Client, key: &str) -> Option<i64> {
    let found = client.get(key, None).await.unwrap();
    found.kvs().first().map(etcd_client::KeyValue::lease)
}

#[tokio::test]
async fn a_lost_lease_is_replaced_and_everything_registered_again() {
    let server = shared_etcd();
    let config = etcd_config(&server);
    let discovery = start(&config).await;
    let mut watch = discovery.watch();
    let _a = discovery.register(card("a", 1)).unwrap();
    let _router = discovery.register_router(router_card("r"));
    expect(&mut watch, [joined("a", 1)]).await;
    routers_become(&*discovery, &["r"]).await;
    let mut raw = raw(&server).await;
    let key = discovery.keys.worker(&card("a", 1));
    let lease = lease_of(&mut raw, &key).await.unwrap();
    raw.lease_revoke(lease).await.unwrap();
    expect(&mut watch, [left("a", 1), joined("a", 1)]).await;
    routers_become(&*discovery, &["r"]).await;
    assert_ne!(lease_of(&mut raw, &key).await, Some(lease));
}

/// A process that starts asks before it has registered or watched anything.
#[tokio::test]
async fn the_epochs_of_earlier_incarnations_are_known() {
    let server = shared_etcd();
    let mut config = etcd_config(&server);
    let earlier = start(&config).await;
    let mut watch = earlier.watch();
    let _a = earlier.register(card("a", 7)).unwrap();
    let _b = earlier.register(card("b", 9)).unwrap();
    expect(&mut watch, [joined("a", 7), joined("b", 9)]).await;
    // The first server does not answer.
    config.endpoints.insert(0, "127.0.0.1:1".into());
    let starting = start(&config).await;
    let ids = ["a", "b", "c"].map(id);
    let known = starting.known_epochs("m", &ids).await;
    let expected = [(id("a"), WorkerEpoch(7)), (id("b"), WorkerEpoch(9))];
    assert_eq!(known, expected.into());
    assert!(starting.known_epochs("another-model", &ids).await.is_empty());
}

#[tokio::test]
async fn an_earlier_incarnation_elsewhere_is_refused_until_the_later_one_leaves() {
    let server = shared_etcd();
    let config = etcd_config(&server);
    let (new, old) = (start(&config).await, start(&config).await);
    let mut watch = new.watch();
    let later = new.register(card("a", 2)).unwrap();
    expect(&mut watch, [joined("a", 2)]).await;
    // This process does not watch, so that it does not know of the later epoch.
    let _earlier = old.register(card("a", 1)).unwrap();
    // The refused key is tried before this one.
    let _after = old.register(card("b", 1)).unwrap();
    expect(&mut watch, [joined("b", 1)]).await;
    // The watching process knows of the later epoch.
    assert_eq!(new.register(card("a", 1)).unwrap_err().known, WorkerEpoch(2));
    drop(later);
    expect(&mut watch, [left("a", 2), joined("a", 1)]).await;
}

#[tokio::test]
async fn a_later_incarnation_elsewhere_outlasts_the_registration_of_the_earlier_one() {
    let server = shared_etcd();
    let config = etcd_config(&server);
    let (old, new) = (start(&config).await, start(&config).await);
    let mut watch = old.watch();
    let earlier = old.register(card("a", 1)).unwrap();
    expect(&mut watch, [joined("a", 1)]).await;
    let _later = new.register(card("a", 2)).unwrap();
    expect(&mut watch, [left("a", 1), joined("a", 2)]).await;
    drop(earlier);
    let _after = old.register(card("b", 1)).unwrap();
    expect(&mut watch, [joined("b", 1)]).await;
}

/// Waits until the key holds this epoch, for less time than passes between two verifications.
async fn holds_soon(client: &mut Client, key: &str, epoch: u64) {
    let soon = registrations::REFUSED_RETRY / 2;
    let holds = async {
        loop {
            let found = client.get(key, None).await.unwrap();
            let value = found.kvs().first().map(|found| found.value().to_vec());
            let card = value.and_then(|value| serde_json::from_slice::<WorkerCard>(&value).ok());
            if card.is_some_and(|card| card.epoch == WorkerEpoch(epoch)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(soon, holds)
        .await
        .expect("before the next verification");
}

#[tokio::test]
async fn a_key_that_another_process_deletes_or_overwrites_is_written_again_at_once() {
    let server = shared_etcd();
    let config = etcd_config(&server);
    let discovery = start(&config).await;
    let _two = ["b", "a"].map(|name| discovery.register(card(name, 5)).unwrap());
    let mut raw = raw(&server).await;
    let key = discovery.keys.worker(&card("a", 5));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while lease_of(&mut raw, &key).await.is_none() {
        assert!(tokio::time::Instant::now() < deadline, "the key is written");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    raw.delete(key.as_str(), None).await.unwrap();
    holds_soon(&mut raw, &key, 5).await;
    let earlier = serde_json::to_vec(&*card("a", 4)).unwrap();
    raw.put(key.as_str(), earlier, None).await.unwrap();
    holds_soon(&mut raw, &key, 5).await;
    // A later epoch stays, for as long as its key does.
    let later = serde_json::to_vec(&*card("a", 6)).unwrap();
    raw.put(key.as_str(), later, None).await.unwrap();
    let refused = async {
        while !discovery.registrations.is_refused(&key) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(registrations::REFUSED_RETRY / 2, refused)
        .await
        .expect("the worker learns of it before the next verification");
    holds_soon(&mut raw, &key, 6).await;
    raw.delete(key.as_str(), None).await.unwrap();
    holds_soon(&mut raw, &key, 5).await;
}

#[tokio::test]
async fn an_unreadable_card_is_skipped() {
    let server = shared_etcd();
    let config = etcd_config(&server);
    let discovery = start(&config).await;
    let mut raw = raw(&server).await;
    let key = |name: &str| format!("{}workers/m/{name}", discovery.keys.prefix());
    raw.put(key("listed"), "{\"id\": 7}", None).await.unwrap();
    raw.put(key("huge"), vec![b' '; 1_000_000], None).await.unwrap();
    let _a = discovery.register(card("a", 1)).unwrap();
    let mut watch = discovery.watch();
    expect(&mut watch, [joined("a", 1)]).await;
    raw.put(key("watched"), vec![0xff; 3], None).await.unwrap();
    raw.put(
        key("elsewhere"),
        serde_json::to_vec(&*card("x", 1)).unwrap(),
        None,
    )
    .await
    .unwrap();
    let _b = discovery.register(card("b", 1)).unwrap();
    expect(&mut watch, [joined("b", 1)]).await;
}

#[tokio::test]
async fn a_withdrawal_ends_keys_and_lease_before_it_returns() {
    let server = shared_etcd();
    let config = etcd_config(&server);
    let (discovery, other) = (start(&config).await, start(&config).await);
    let mut watch = other.watch();
    let worker = discovery.register(card("a", 1)).unwrap();
    let router = discovery.register_router(router_card("r"));
    expect(&mut watch, [joined("a", 1)]).await;
    routers_become(&*other, &["r"]).await;
    let mut raw = raw(&server).await;
    let lease = lease_of(&mut raw, &discovery.keys.worker(&card("a", 1)))
        .await
        .unwrap();
    assert!(discovery.withdraw().await);
    let all = Some(GetOptions::new().with_prefix().with_count_only());
    assert_eq!(raw.get(discovery.keys.prefix(), all).await.unwrap().count(), 0);
    let ttl = raw.lease_time_to_live(lease, None).await.unwrap().ttl();
    assert_eq!(ttl, -1, "the lease does not exist");
    expect(&mut watch, [left("a", 1)]).await;
    // The membership stays usable, and withdrawn registrations stay withdrawn.
    let _b = discovery.register(card("b", 1)).unwrap();
    drop((worker, router));
    expect(&mut watch, [joined("b", 1)]).await;
}

#[tokio::test]
async fn a_watch_from_a_compacted_revision_lists_again() {
    let server = shared_etcd();
    let config = etcd_config(&server);
    let discovery = start(&config).await;
    let _a = discovery.register(card("a", 1)).unwrap();
    expect(&mut discovery.watch(), [joined("a", 1)]).await;
    let mut raw = raw(&server).await;
    let put = raw.put("/elsewhere", "", None).await.unwrap();
    raw.compact(put.header().unwrap().revision(), None).await.unwrap();
    let membership = Arc::new(Membership::new(Departure::LeaseEnded));
    let (_watching, wanted) = watch::channel(true);
    let mut watcher = Watcher::new(discovery.keys.clone(), membership.clone(), Arc::default(), wanted);
    let watcher::Compacted = watcher.follow(&mut raw, 1).await.unwrap();
    watcher.list(&mut raw).await.unwrap();
    expect(&mut membership.watch(), [joined("a", 1)]).await;
}

#[tokio::test]
async fn long_lists_come_in_pages_of_one_revision() {
    let server = shared_etcd();
    let config = etcd_config(&server);
    let discovery = start(&config).await;
    let mut raw = raw(&server).await;
    let names: Vec<String> = (0..1_200).map(|n| format!("w{n:04}")).collect();
    for name in &names {
        let card = card(name, 1);
        raw.put(
            discovery.keys.worker(&card),
            serde_json::to_vec(&*card).unwrap(),
            None,
        )
        .await
        .unwrap();
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    becomes_present(&mut discovery.watch(), &mut BTreeSet::new(), &names).await;
}
