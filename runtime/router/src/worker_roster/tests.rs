use signalbox_discovery::{MemoryDiscovery, Registration};
use signalbox_event_plane::MemoryPlane;
use signalbox_kv_index::SharedKvIndex;
use signalbox_protocol::{CacheTier, Call, KvEvent, LoraAdapter, SequenceHash, StreamSummary, WorkerReport};
use signalbox_request_plane::{LinkConfig, Responder};
use signalbox_tokenize::ModelArtifacts;
use tokio::sync::watch;

use super::*;
use crate::{
    roster_listeners::RosterChanged,
    supervisor::{ActorHandle, Panic},
    test_support::{TestWorker, card, soon},
};

/// Counts the changes of the view that it is notified of.
struct Listener(watch::Sender<u64>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<RosterChanged> for Listener {
    type Result = ();

    fn handle(&mut self, _: RosterChanged, _: &mut Self::Context) {
        self.0.send_modify(|changes| *changes += 1);
    }
}

/// A supervised roster of workers that cannot be reached.
struct Fleet {
    discovery: Arc<MemoryDiscovery>,
    context: SessionContext,
    view: Arc<ArcSwap<RosterView>>,
    changes: watch::Receiver<u64>,
    actor: ActorHandle<WorkerRoster>,
    _listener: Addr<Listener>,
}

impl Fleet {
    fn start() -> Self {
        let discovery = Arc::new(MemoryDiscovery::default());
        let context = SessionContext {
            plane: MemoryPlane::new(),
            feeds_plane: true,
            index: SharedKvIndex::new(1 << 20),
            load: LoadTable::default(),
            parity: Default::default(),
            latency: Default::default(),
            affinity: Default::default(),
            links: LinkConfig::default(),
            present: Arc::default(),
        };
        let (view, listeners) = (Arc::<ArcSwap<RosterView>>::default(), RosterListeners::default());
        let (sender, changes) = watch::channel(0);
        let listener = Listener(sender).start();
        listeners.register(listener.clone().recipient());
        let actor = {
            let (context, discovery, view) = (context.clone(), discovery.clone(), view.clone());
            ActorHandle::start("worker_roster", move || {
                let discovery: Vec<Arc<dyn Discovery>> = vec![discovery.clone()];
                WorkerRoster::new(context.clone(), discovery, view.clone(), listeners.clone())
            })
        };
        Self {
            discovery,
            context,
            view,
            changes,
            actor,
            _listener: listener,
        }
    }

    /// Registers a worker at an address that no link can dial.
    fn register(&self, name: &str, epoch: u64) -> Registration {
        let card = WorkerCard {
            address: format!("nats:{name}"),
            ..(*card(name, epoch)).clone()
        };
        self.discovery.register(Arc::new(card)).unwrap()
    }

    /// Registers the worker of an engine next door. The test answers its calls.
    async fn next_door(&self) -> (TestWorker, ModelArtifacts, Registration) {
        let worker = TestWorker::start().await;
        let artifacts = ModelArtifacts::byte_level();
        let card = WorkerCard {
            address: worker.address.clone(),
            artifacts_digest: artifacts.digest(),
            reads_body: true,
            kv_events: false,
            ..(*card("worker-0", 1)).clone()
        };
        let registration = self.discovery.register(Arc::new(card)).unwrap();
        (worker, artifacts, registration)
    }

    /// Waits until the published view has these workers: id, epoch, and whether discovery lists it.
    async fn has(&mut self, expected: &[(&str, u64, bool)]) {
        loop {
            let view = self.view.load_full();
            let workers = view.workers.iter();
            if workers
                .map(|worker| (worker.card.id.as_str(), worker.card.epoch.0, worker.listed))
                .eq(expected.iter().copied())
            {
                return;
            }
            soon(self.changes.changed()).await.unwrap();
        }
    }

    async fn panic(&self) {
        assert!(self.actor.address().send(Panic).await.is_err());
    }

    fn slot(&self, name: &str) -> WorkerSlot {
        let view = self.view.load();
        let mut workers = view.workers.iter();
        workers
            .find(|worker| worker.card.id.as_str() == name)
            .unwrap()
            .slot
    }

    /// Credits a worker with one KV block. Returns its number of blocks.
    fn credit(&self, slot: WorkerSlot, block: u64) -> usize {
        let stored = KvEvent::Stored {
            tier: CacheTier::Device,
            parent: None,
            blocks: vec![SequenceHash(block)],
        };
        self.context.index.apply_all(slot, &[stored]);
        self.blocks(slot)
    }

    fn blocks(&self, slot: WorkerSlot) -> usize {
        self.context.index.read(|index| index.blocks_of(slot))
    }
}

#[actix_rt::test]
async fn workers_join_leave_and_restart_as_discovery_reports() {
    let mut fleet = Fleet::start();
    let a = fleet.register("a", 1);
    let _b = fleet.register("b", 1);
    fleet.has(&[("a", 1, true), ("b", 1, true)]).await;
    assert_eq!(fleet.context.present.load(Relaxed), 2);
    let slot = fleet.slot("a");
    assert_eq!(fleet.credit(slot, 1), 1);
    let restarted = fleet.register("a", 2);
    fleet.has(&[("a", 2, true), ("b", 1, true)]).await;
    assert_eq!(fleet.blocks(slot), 0, "K-1: no block of an earlier epoch");
    drop(a);
    drop(restarted);
    fleet.has(&[("b", 1, true)]).await;
}

#[actix_rt::test]
async fn after_a_panic_workers_join_and_leave_again() {
    let mut fleet = Fleet::start();
    let a = fleet.register("a", 1);
    let b = fleet.register("b", 1);
    fleet.has(&[("a", 1, true), ("b", 1, true)]).await;
    let slots = ["a", "b"].map(|name| fleet.slot(name));
    assert_eq!(fleet.credit(slots[0], 1), 1);
    let published = fleet.view.load_full();

    fleet.panic().await;
    assert!(
        Arc::ptr_eq(&published, &fleet.view.load()),
        "the view stays until another one replaces it"
    );
    assert_eq!(fleet.blocks(slots[0]), 0, "K-1: the credit ends with the session");
    let _c = fleet.register("c", 1);
    fleet.has(&[("a", 1, true), ("b", 1, true), ("c", 1, true)]).await;
    assert_eq!(["a", "b"].map(|name| fleet.slot(name)), slots);
    drop((a, b));
    fleet.has(&[("c", 1, true)]).await;
}

#[actix_rt::test]
async fn a_worker_that_left_while_the_actor_was_down_is_removed() {
    let mut fleet = Fleet::start();
    let a = fleet.register("a", 1);
    let _b = fleet.register("b", 1);
    fleet.has(&[("a", 1, true), ("b", 1, true)]).await;
    fleet.panic().await;
    drop(a);
    fleet.has(&[("b", 1, true)]).await;
}

#[actix_rt::test]
async fn requests_in_flight_hold_their_slot_over_a_panic() {
    let mut fleet = Fleet::start();
    let a = fleet.register("a", 1);
    fleet.has(&[("a", 1, true)]).await;
    let slot = fleet.slot("a");
    let request = fleet.context.load.reserve(slot, 1, 1);
    drop(a);
    fleet.has(&[]).await;
    fleet.panic().await;
    let _b = fleet.register("b", 1);
    fleet.has(&[("b", 1, true)]).await;
    assert_ne!(fleet.slot("b"), slot);
    drop(request);
    let _c = fleet.register("c", 1);
    fleet.has(&[("b", 1, true), ("c", 1, true)]).await;
    assert_eq!(fleet.slot("c"), slot);
}

/// Sends a load report.
async fn report(watch: &Responder, adapters: Option<&[&str]>) {
    let adapter = |name: &&str| LoraAdapter {
        name: (*name).into(),
        root: None,
    };
    let report = WorkerReport {
        adapters: adapters.map(|names| names.iter().map(adapter).collect()),
        ..WorkerReport::default()
    };
    watch.send(&serde_json::to_vec(&report).unwrap()).await.unwrap();
}

#[actix_rt::test]
async fn a_worker_of_an_engine_next_door_is_ready_when_its_adapters_are_known() {
    let mut fleet = Fleet::start();
    let (mut worker, artifacts, _registration) = fleet.next_door().await;
    let (parts, watch) = worker.call().await;
    assert!(matches!(parts.call, Call::WatchLoad { .. }), "{:?}", parts.call);
    assert!(worker.has_no_call(), "its tokenizer is not asked for yet");
    report(&watch, Some(&["sql"])).await;
    let (parts, fetch) = worker.call().await;
    assert!(
        matches!(parts.call, Call::FetchArtifacts { .. }),
        "{:?}",
        parts.call
    );
    assert!(fleet.view.load().requested("m").is_none());
    fetch.send(&artifacts.to_bytes()).await.unwrap();
    fetch.end(StreamSummary::default());
    let served = |view: &RosterView, name| view.requested(name).map_or(0, |model| model.workers.len());
    while served(&fleet.view.load(), "m") == 0 {
        soon(fleet.changes.changed()).await.unwrap();
    }
    assert_eq!(served(&fleet.view.load(), "sql"), 1, "both are served at once");

    // A report without adapters changes none, and one with an empty list ends them.
    report(&watch, None).await;
    report(&watch, Some(&["sql", "chat"])).await;
    while served(&fleet.view.load(), "chat") == 0 {
        soon(fleet.changes.changed()).await.unwrap();
    }
    assert_eq!(served(&fleet.view.load(), "sql"), 1);
    report(&watch, Some(&[])).await;
    while fleet.view.load().requested("sql").is_some() {
        soon(fleet.changes.changed()).await.unwrap();
    }
    assert_eq!(served(&fleet.view.load(), "m"), 1);
}

#[actix_rt::test]
async fn an_older_worker_that_reports_no_adapters_becomes_ready_too() {
    let mut fleet = Fleet::start();
    let (mut worker, artifacts, _registration) = fleet.next_door().await;
    let (_, watch) = worker.call().await;
    report(&watch, None).await;
    let (_, fetch) = worker.call().await;
    fetch.send(&artifacts.to_bytes()).await.unwrap();
    fetch.end(StreamSummary::default());
    while fleet.view.load().requested("m").is_none() {
        soon(fleet.changes.changed()).await.unwrap();
    }
}

impl Fleet {
    /// Reports a change as etcd does.
    async fn discovered(&self, change: WorkerChange) {
        self.actor.address().send(Discovered(change)).await.unwrap();
    }

    /// etcd lists an incarnation of the worker `worker-0` at this address.
    async fn lists(&self, epoch: u64, address: &str) {
        let card = WorkerCard {
            address: address.into(),
            ..(*card("worker-0", epoch)).clone()
        };
        self.discovered(WorkerChange::Joined(Arc::new(card))).await;
    }

    /// etcd no longer lists an incarnation of the worker `worker-0`.
    async fn lists_no_more(&self, epoch: u64) {
        let left = WorkerChange::Left {
            id: "worker-0".parse().unwrap(),
            epoch: WorkerEpoch(epoch),
            departure: Departure::LeaseEnded,
        };
        self.discovered(left).await;
    }

    /// Waits until these addresses conflict with the worker that serves.
    async fn has_conflicts(&mut self, expected: &[&str]) {
        loop {
            let view = self.view.load_full();
            let displaced = view.conflicts.iter();
            if displaced
                .map(|conflict| conflict.displaced.as_str())
                .eq(expected.iter().copied())
            {
                return;
            }
            soon(self.changes.changed()).await.unwrap();
        }
    }

    /// A worker that answers, listed in this epoch.
    async fn answering(&mut self, epoch: u64) -> TestWorker {
        let mut worker = TestWorker::start_as(card("worker-0", epoch)).await;
        self.lists(epoch, &worker.address).await;
        // Its link is up when it gets a call.
        worker.call().await;
        worker
    }
}

#[actix_rt::test]
async fn a_later_incarnation_that_does_not_answer_leaves_the_earlier_one_in_service() {
    const DEAD: &str = "127.0.0.1:1";
    let mut fleet = Fleet::start();
    let worker = fleet.answering(1).await;
    fleet.has(&[("worker-0", 1, true)]).await;
    let slot = fleet.slot("worker-0");
    fleet.lists_no_more(1).await;
    fleet.lists(2, DEAD).await;
    fleet.has(&[("worker-0", 1, false)]).await;
    assert_eq!(
        fleet.slot("worker-0"),
        slot,
        "its session goes on, and its credit with it"
    );
    // The card is withdrawn and comes again.
    fleet.lists_no_more(2).await;
    fleet.lists(1, &worker.address).await;
    fleet.has(&[("worker-0", 1, true)]).await;
    fleet.lists_no_more(1).await;
    fleet.lists(3, DEAD).await;
    fleet.has(&[("worker-0", 1, false)]).await;
    // Only when the earlier one no longer answers is the later one all there is.
    worker.stop().await;
    fleet.has(&[("worker-0", 3, true)]).await;
}

#[actix_rt::test]
async fn a_later_incarnation_takes_over_when_it_answers_and_two_that_answer_conflict() {
    let mut fleet = Fleet::start();
    let earlier = fleet.answering(1).await;
    fleet.has(&[("worker-0", 1, true)]).await;
    fleet.lists_no_more(1).await;
    let later = fleet.answering(2).await;
    fleet.has(&[("worker-0", 2, true)]).await;
    fleet.has_conflicts(&[&earlier.address]).await;
    assert!(fleet.view.load().conflicts[0].displaced != later.address);
    earlier.stop().await;
    fleet.has_conflicts(&[]).await;
    fleet.has(&[("worker-0", 2, true)]).await;
}

#[actix_rt::test]
async fn two_workers_with_one_id_conflict_without_etcd_too() {
    let mut fleet = Fleet::start();
    let mut workers = Vec::new();
    let mut registrations = Vec::new();
    for epoch in [1, 2] {
        let mut worker = TestWorker::start_as(card("worker-0", epoch)).await;
        let card = WorkerCard {
            address: worker.address.clone(),
            ..(*card("worker-0", epoch)).clone()
        };
        registrations.push(fleet.discovery.register(Arc::new(card)).unwrap());
        worker.call().await;
        workers.push(worker);
    }
    fleet.has_conflicts(&[&workers[0].address]).await;
    fleet.has(&[("worker-0", 2, true)]).await;
    drop(registrations);
    fleet.has(&[]).await;
}

#[actix_rt::test]
async fn workers_that_join_together_are_published_together_and_one_too_many_waits() {
    let most = MAX_WORKERS as usize;
    let mut fleet = Fleet::start();
    let register = |number: usize| {
        let card = WorkerCard {
            address: format!("nats:w{number}"),
            model: format!("m{}", number % 1_000),
            ..(*card(&format!("w{number:04}"), 1)).clone()
        };
        fleet.discovery.register(Arc::new(card)).unwrap()
    };
    let mut registrations: Vec<_> = (0..=most).map(register).collect();
    let number = |view: &RosterView| view.workers.len();
    while number(&fleet.view.load()) < most {
        soon(fleet.changes.changed()).await.unwrap();
    }
    let published = *fleet.changes.borrow();
    assert!(
        published < most as u64 / 20,
        "{published} views of {most} workers"
    );
    let is_present = |name: &str| {
        let view = fleet.view.load();
        view.workers.iter().any(|worker| worker.card.id.as_str() == name)
    };
    let waiting = format!("w{most:04}");
    assert!(!is_present(&waiting));
    drop(registrations.remove(7));
    while !is_present(&waiting) {
        soon(fleet.changes.changed()).await.unwrap();
    }
    assert!(!is_present("w0007"));
}
