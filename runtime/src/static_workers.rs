//! Workers known by address: those of `static://`, and the children of `up`.
//!
//! The connection is the lease: a worker is present from its hello until its connection ends, and again after its next
//! hello. Its card comes with the hello, so the address is all that has to be configured.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use actix::prelude::*;
use signalbox_discovery::{Discovery, MemoryDiscovery, Registration};
use signalbox_protocol::WorkerCard;
use signalbox_request_plane::{LinkConfig, LinkEvent, LinkHandle};
use signalbox_router::ActorHandle;
use tracing::{info, warn};

/// Handle of the addresses, and of the actor that dials them. Clone = handle; dropping the last one ends the actor.
#[derive(Debug, Clone)]
pub(crate) struct StaticAddresses {
    addresses: Addresses,
    actor: ActorHandle<StaticWorkers>,
}

/// The addresses to dial. They are kept apart from the actor, and so outlast its failure. Clone = handle.
#[derive(Debug, Clone, Default)]
struct Addresses(Arc<Mutex<BTreeSet<String>>>);

/// The actor: keeps a link to every address, and registers the worker that answers there.
#[derive(Debug)]
struct StaticWorkers {
    addresses: Addresses,
    discovery: Arc<MemoryDiscovery>,
    links: LinkConfig,
    workers: HashMap<String, StaticWorker>,
}

#[derive(Debug)]
struct StaticWorker {
    link: LinkHandle,
    registration: Option<Registration>,
}

/// An address was added or removed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct AddressesChanged;

impl StaticAddresses {
    /// No address yet. Workers that answer are registered in `discovery`.
    pub(crate) fn new(discovery: Arc<MemoryDiscovery>, links: LinkConfig) -> Self {
        let addresses = Addresses::default();
        let known = addresses.clone();
        let actor = ActorHandle::start("static_workers", move || StaticWorkers {
            addresses: known.clone(),
            discovery: discovery.clone(),
            links: links.clone(),
            workers: HashMap::new(),
        });
        Self { addresses, actor }
    }

    /// Dials the worker at this address, until the address is removed. Returns when the actor dials.
    pub(crate) async fn add(&self, address: String) {
        self.addresses.lock().insert(address);
        self.report_change().await;
    }

    /// Closes the link to this address. Returns when it is closed.
    pub(crate) async fn remove(&self, address: &str) {
        self.addresses.lock().remove(address);
        self.report_change().await;
    }

    async fn report_change(&self) {
        // An error means that the actor failed: the next one reads the addresses when it starts.
        let _ = self.actor.address().send(AddressesChanged).await;
    }
}

impl Addresses {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StaticWorkers {
    /// Closes links to addresses that were removed, and dials those that are new.
    fn update_links(&mut self, ctx: &mut Context<Self>) {
        let addresses = self.addresses.lock().clone();
        self.workers.retain(|address, worker| {
            let is_kept = addresses.contains(address);
            if !is_kept {
                worker.link.close();
            }
            is_kept
        });
        for address in addresses {
            let (links, watcher) = (&self.links, ctx.address().recipient());
            self.workers
                .entry(address)
                .or_insert_with_key(|address| StaticWorker {
                    link: LinkHandle::start(address.clone(), links.clone(), Some(watcher)),
                    registration: None,
                });
        }
    }

    fn register(&mut self, address: &str, card: &WorkerCard) {
        let Some(worker) = self.workers.get_mut(address) else {
            return;
        };
        // The address in the hello may be that of every interface: routers dial the address that reached the worker.
        let card = Arc::new(WorkerCard {
            address: address.into(),
            ..card.clone()
        });
        worker.registration = None;
        match self.discovery.register(card) {
            Ok(registration) => worker.registration = Some(registration),
            Err(error) => warn!(address, %error, "worker not registered"),
        }
    }
}

impl Actor for StaticWorkers {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.update_links(ctx);
    }
}

impl Handler<AddressesChanged> for StaticWorkers {
    type Result = ();

    fn handle(&mut self, _: AddressesChanged, ctx: &mut Self::Context) {
        self.update_links(ctx);
    }
}

impl Handler<LinkEvent> for StaticWorkers {
    type Result = ();

    fn handle(&mut self, event: LinkEvent, _: &mut Self::Context) {
        match event {
            LinkEvent::Up { address, card } => self.register(&address, &card),
            LinkEvent::Down { address, reason } => {
                if let Some(worker) = self.workers.get_mut(&address)
                    && worker.registration.take().is_some()
                {
                    info!(address, reason, "the worker's connection ended");
                }
            }
            // The roster receives this event from its own link.
            LinkEvent::Draining { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use signalbox_discovery::{Watch, WorkerChange};
    use signalbox_protocol::{WorkerCapacity, WorkerEpoch, WorkerRole};
    use signalbox_request_plane::{CallHandler, CallParts, Responder, Server, ServerConfig, ServerHandle};

    use super::*;

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Panic;

    impl Handler<Panic> for StaticWorkers {
        type Result = ();

        fn handle(&mut self, _: Panic, _: &mut Self::Context) {
            panic!("this panic is part of the test");
        }
    }

    /// A worker that answers the hello, and no call.
    struct HelloOnly;

    impl CallHandler for HelloOnly {
        fn call(&self, _: CallParts, _: Responder) {}
    }

    async fn worker(id: &str) -> (ServerHandle, String) {
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), ServerConfig::default())
            .await
            .unwrap();
        let address = server.address();
        let card = WorkerCard {
            id: id.parse().unwrap(),
            epoch: WorkerEpoch(1),
            model: "m".into(),
            address: "0.0.0.0:1".into(),
            engine: "sim".into(),
            block_size: 16,
            context_length: 1_024,
            artifacts_digest: "d".into(),
            role: WorkerRole::Aggregated,
            capacity: WorkerCapacity {
                kv_blocks: 64,
                max_sequences: 1,
                max_waiting: 1,
            },
            engine_version: String::new(),
            reads_body: false,
            continues_answers: false,
            abilities: Vec::new(),
            kv_events: false,
            labels: Default::default(),
        };
        (server.serve(Arc::new(card), Arc::new(HelloOnly)), address)
    }

    /// The next change: whether the worker joined, and its id.
    async fn next(watch: &mut Watch) -> (bool, String) {
        match watch.next().await {
            WorkerChange::Joined(card) => (true, card.id.to_string()),
            WorkerChange::Left { id, .. } => (false, id.to_string()),
        }
    }

    #[actix_rt::test]
    async fn a_worker_is_registered_while_its_address_is_known() {
        let (_server, address) = worker("a").await;
        let discovery = Arc::new(MemoryDiscovery::default());
        let mut watch = discovery.watch();
        let workers = StaticAddresses::new(discovery, LinkConfig::default());
        workers.add(address.clone()).await;
        assert_eq!(next(&mut watch).await, (true, "a".into()));
        workers.remove(&address).await;
        assert_eq!(next(&mut watch).await, (false, "a".into()));
    }

    #[actix_rt::test]
    async fn after_a_panic_the_known_workers_join_again_and_others_can_be_added() {
        let (_a, first) = worker("a").await;
        let (_b, second) = worker("b").await;
        let discovery = Arc::new(MemoryDiscovery::default());
        let mut watch = discovery.watch();
        let workers = StaticAddresses::new(discovery, LinkConfig::default());
        workers.add(first).await;
        assert_eq!(next(&mut watch).await, (true, "a".into()));
        assert!(workers.actor.address().send(Panic).await.is_err());
        assert_eq!(next(&mut watch).await, (false, "a".into()));
        assert_eq!(next(&mut watch).await, (true, "a".into()));
        workers.add(second).await;
        assert_eq!(next(&mut watch).await, (true, "b".into()));
    }
}
