//! Workers known by address: those of `static://`, and the children of `up`.
//!
//! The connection is the lease: a worker is present from its hello until its connection ends, and comes back with
//! the next hello. The card is what the hello said, so nothing else has to be written down.

use std::{collections::HashMap, sync::Arc};

use actix::prelude::*;
use signalbox_discovery::{Discovery, MemoryDiscovery, Registration};
use signalbox_protocol::WorkerCard;
use signalbox_request_plane::{LinkConfig, LinkEvent, LinkHandle};
use tracing::{info, warn};

/// Keeps a link to every address and registers who answers there.
#[derive(Debug)]
pub(crate) struct StaticWorkers {
    discovery: Arc<MemoryDiscovery>,
    links: LinkConfig,
    workers: HashMap<String, StaticWorker>,
}

#[derive(Debug)]
struct StaticWorker {
    link: LinkHandle,
    registration: Option<Registration>,
}

/// There is a worker at this address, now or later.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct AddWorker(pub(crate) String);

/// There is none any more.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct RemoveWorker(pub(crate) String);

impl StaticWorkers {
    pub(crate) fn new(discovery: Arc<MemoryDiscovery>, links: LinkConfig) -> Self {
        Self {
            discovery,
            links,
            workers: HashMap::new(),
        }
    }

    fn register(&mut self, address: &str, card: &WorkerCard) {
        let Some(worker) = self.workers.get_mut(address) else {
            return;
        };
        // A worker that listens on every interface does not know under which address it was reached.
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
}

impl Handler<AddWorker> for StaticWorkers {
    type Result = ();

    fn handle(&mut self, AddWorker(address): AddWorker, ctx: &mut Self::Context) {
        let (links, watcher) = (self.links.clone(), ctx.address().recipient());
        self.workers
            .entry(address)
            .or_insert_with_key(|address| StaticWorker {
                link: LinkHandle::start(address.clone(), links, Some(watcher)),
                registration: None,
            });
    }
}

impl Handler<RemoveWorker> for StaticWorkers {
    type Result = ();

    fn handle(&mut self, RemoveWorker(address): RemoveWorker, _: &mut Self::Context) {
        if let Some(worker) = self.workers.remove(&address) {
            worker.link.close();
        }
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
                    info!(address, reason, "worker's connection ended");
                }
            }
            // The roster hears of it on its own link.
            LinkEvent::Draining { .. } => {}
        }
    }
}
