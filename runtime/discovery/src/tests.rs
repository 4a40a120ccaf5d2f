//! The conformance tests of membership, run on the in-process one and on a real etcd.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use signalbox_protocol::{
    PlaneState, RouterCard, WorkerCapacity, WorkerCard, WorkerEpoch, WorkerId, WorkerRole,
};
use signalbox_test_servers::EtcdServer;

use crate::{Departure, Discovery, EtcdConfig, EtcdDiscovery, MemoryDiscovery, Watch, WorkerChange};

/// Fails a test that hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn id(name: &str) -> WorkerId {
    name.parse().unwrap()
}

pub(crate) fn card(name: &str, epoch: u64) -> Arc<WorkerCard> {
    card_at(name, epoch, "127.0.0.1:7000")
}

pub(crate) fn card_at(name: &str, epoch: u64, address: &str) -> Arc<WorkerCard> {
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
        engine_version: String::new(),
        reads_body: false,
        continues_answers: false,
        abilities: Vec::new(),
        kv_events: true,
        labels: BTreeMap::new(),
    })
}

pub(crate) fn router_card(name: &str) -> RouterCard {
    RouterCard {
        id: id(name),
        http: "127.0.0.1:8000".into(),
        admin: "127.0.0.1:9090".into(),
        version: "0.1.0".into(),
    }
}

pub(crate) fn joined(name: &str, epoch: u64) -> WorkerChange {
    WorkerChange::Joined(card(name, epoch))
}

pub(crate) async fn next(watch: &mut Watch) -> WorkerChange {
    tokio::time::timeout(PATIENCE, watch.next())
        .await
        .expect("a change")
}

pub(crate) async fn expect<const N: usize>(watch: &mut Watch, changes: [WorkerChange; N]) {
    for change in changes {
        assert_eq!(next(watch).await, change);
    }
}

/// Waits until exactly these routers are present.
pub(crate) async fn routers_become(discovery: &dyn Discovery, names: &[&str]) {
    let mut routers = discovery.routers();
    let are = |present: &Arc<BTreeMap<WorkerId, RouterCard>>| {
        present.keys().map(WorkerId::as_str).eq(names.iter().copied())
    };
    tokio::time::timeout(PATIENCE, routers.wait_for(are))
        .await
        .expect("in time")
        .expect("the sender exists");
}

pub(crate) async fn becomes(discovery: &dyn Discovery, state: PlaneState) {
    let mut status = discovery.status();
    tokio::time::timeout(PATIENCE, status.wait_for(|status| status.state == state))
        .await
        .expect("in time")
        .expect("the sender exists");
}

/// One etcd for all tests that run at the same time. The last test stops it.
pub(crate) fn shared_etcd() -> Arc<EtcdServer> {
    static SHARED: Mutex<Weak<EtcdServer>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock();
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(EtcdServer::started());
        *shared = Arc::downgrade(&server);
        server
    })
}

/// Settings with a namespace that no other test has.
pub(crate) fn etcd_config(server: &EtcdServer) -> EtcdConfig {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    EtcdConfig {
        endpoints: vec![server.address()],
        namespace: format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        ..EtcdConfig::default()
    }
}

/// One kind of membership.
struct Case {
    discovery: Arc<dyn Discovery>,
    departure: Departure,
}

impl Case {
    fn left(&self, name: &str, epoch: u64) -> WorkerChange {
        WorkerChange::Left {
            id: id(name),
            epoch: WorkerEpoch(epoch),
            departure: self.departure,
        }
    }
}

async fn on_both(test: impl AsyncFn(&Case)) {
    let memory = Case {
        discovery: Arc::new(MemoryDiscovery::default()),
        departure: Departure::Withdrawn,
    };
    test(&memory).await;
    let server = shared_etcd();
    let etcd = Case {
        discovery: EtcdDiscovery::start(etcd_config(&server)).await.unwrap(),
        departure: Departure::LeaseEnded,
    };
    test(&etcd).await;
}

#[tokio::test]
async fn a_watch_delivers_the_present_workers_and_then_the_changes() {
    on_both(async |case| {
        let discovery = &case.discovery;
        let b = discovery.register(card("b", 1)).unwrap();
        let _a = discovery.register(card("a", 1)).unwrap();
        let mut watch = discovery.watch();
        expect(&mut watch, [joined("b", 1), joined("a", 1)]).await;
        let _c = discovery.register(card("c", 1)).unwrap();
        expect(&mut watch, [joined("c", 1)]).await;
        drop(b);
        expect(&mut watch, [case.left("b", 1)]).await;
        let mut later = discovery.watch();
        expect(&mut later, [joined("a", 1), joined("c", 1)]).await;
    })
    .await;
}

#[tokio::test]
async fn a_change_wakes_a_waiting_watch() {
    on_both(async |case| {
        let mut watch = case.discovery.watch();
        let waiting = tokio::spawn(async move { next(&mut watch).await });
        tokio::task::yield_now().await;
        let _a = case.discovery.register(card("a", 1)).unwrap();
        assert_eq!(waiting.await.unwrap(), joined("a", 1));
    })
    .await;
}

#[tokio::test]
async fn a_later_incarnation_replaces_the_earlier_one_and_outlasts_its_registration() {
    on_both(async |case| {
        let discovery = &case.discovery;
        let mut watch = discovery.watch();
        let old = discovery.register(card("a", 1)).unwrap();
        expect(&mut watch, [joined("a", 1)]).await;
        let _new = discovery.register(card("a", 2)).unwrap();
        drop(old);
        let _b = discovery.register(card("b", 1)).unwrap();
        expect(&mut watch, [case.left("a", 1), joined("a", 2), joined("b", 1)]).await;
    })
    .await;
}

#[tokio::test]
async fn an_earlier_incarnation_is_refused() {
    on_both(async |case| {
        let _new = case.discovery.register(card("a", 2)).unwrap();
        let refused = case.discovery.register(card("a", 1)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "worker a is registered with epoch 2; the older epoch 1 cannot register"
        );
    })
    .await;
}

#[tokio::test]
async fn another_card_of_the_same_incarnation_replaces_the_first() {
    on_both(async |case| {
        let discovery = &case.discovery;
        let mut watch = discovery.watch();
        let first = discovery.register(card("a", 1)).unwrap();
        expect(&mut watch, [joined("a", 1)]).await;
        let moved = card_at("a", 1, "127.0.0.1:7001");
        let second = discovery.register(moved.clone()).unwrap();
        drop(first);
        expect(&mut watch, [case.left("a", 1), WorkerChange::Joined(moved)]).await;
        drop(second);
        expect(&mut watch, [case.left("a", 1)]).await;
    })
    .await;
}

#[tokio::test]
async fn the_same_card_again_is_no_change() {
    on_both(async |case| {
        let discovery = &case.discovery;
        let mut watch = discovery.watch();
        let first = discovery.register(card("a", 1)).unwrap();
        expect(&mut watch, [joined("a", 1)]).await;
        let second = discovery.register(card("a", 1)).unwrap();
        drop(first);
        let _b = discovery.register(card("b", 1)).unwrap();
        expect(&mut watch, [joined("b", 1)]).await;
        drop(second);
        expect(&mut watch, [case.left("a", 1)]).await;
    })
    .await;
}

#[tokio::test]
async fn an_id_under_two_models_is_its_later_incarnation() {
    on_both(async |case| {
        let discovery = &case.discovery;
        let mut watch = discovery.watch();
        let old = discovery.register(card("a", 1)).unwrap();
        expect(&mut watch, [joined("a", 1)]).await;
        let mut card = (*card("a", 2)).clone();
        card.model = "other/model".into();
        let new = discovery.register(Arc::new(card.clone())).unwrap();
        expect(
            &mut watch,
            [case.left("a", 1), WorkerChange::Joined(Arc::new(card))],
        )
        .await;
        drop(old);
        drop(new);
        expect(&mut watch, [case.left("a", 2)]).await;
    })
    .await;
}

#[tokio::test]
async fn routers_see_each_other() {
    on_both(async |case| {
        let discovery = &*case.discovery;
        let a = discovery.register_router(router_card("a"));
        let b = discovery.register_router(router_card("b"));
        routers_become(discovery, &["a", "b"]).await;
        let moved = RouterCard {
            http: "127.0.0.1:8001".into(),
            ..router_card("a")
        };
        let again = discovery.register_router(moved.clone());
        drop((a, b));
        routers_become(discovery, &["a"]).await;
        assert_eq!(discovery.routers().borrow().get(&moved.id), Some(&moved));
        drop(again);
        routers_become(discovery, &[]).await;
    })
    .await;
}

#[tokio::test]
async fn its_status_is_reported() {
    on_both(async |case| becomes(&*case.discovery, PlaneState::Up).await).await;
}
