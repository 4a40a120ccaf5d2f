//! Exchanges with the other routers what each has in flight.
//!
//! A process has one [`ReplicaSync`] actor. It is advisory: nothing waits for it, and a lost message makes decisions worse
//! for a moment, never wrong. Changes are sent in batches, a few milliseconds after the first. Every second a digest
//! lets the other routers find out whether they lost a message. A router that joins requests the state of all others. A
//! router that left discovery, or sent nothing for ten seconds, is forgotten whole.
//!
//! When the actor fails, the next one requests the state of all others. What this router has published outlasts the
//! failure: the others compare sequence numbers with it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use actix::prelude::*;
use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{Stream, stream};
use parking_lot::Mutex;
use signalbox_discovery::Discovery;
use signalbox_event_plane::Broadcast;
use signalbox_protocol::{ReplicaMessage, ReplicaUpdate, RouterCard, RouterId};
use tokio::sync::watch;
use tracing::{debug, info};

use crate::{
    load::LoadTable,
    roster::RosterView,
    roster_listeners::{RosterChanged, RosterListeners},
};
use peers::{Peers, PublishedLoad, WorkerIncarnation};

mod peers;

/// Changes within this time are sent together: at most 200 messages a second, and far less than the 100 ms within which
/// the other routers should have a change.
const BATCH_WINDOW: Duration = Duration::from_millis(5);

/// How often the others can find out whether they lost a message.
const DIGEST_INTERVAL: Duration = Duration::from_secs(1);

/// How a router exchanges with the other routers the load that each has in flight.
#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    /// This incarnation of this router: the id that it registers.
    pub id: RouterId,
    /// Carries the messages.
    pub broadcast: Arc<dyn Broadcast>,
}

/// The actor.
#[derive(Debug)]
pub(crate) struct ReplicaSync {
    config: ReplicaConfig,
    load: LoadTable,
    view: Arc<ArcSwap<RosterView>>,
    listeners: RosterListeners,
    /// The sources of the registered routers.
    discovery: Vec<Arc<dyn Discovery>>,
    published: PublishedLoads,
    /// The load of the other routers, by model.
    peers: HashMap<String, Peers>,
}

/// What this router has published, by model. Kept apart from the actor, so that it outlasts its failure. Clone = handle.
pub(crate) type PublishedLoads = Arc<Mutex<HashMap<String, PublishedLoad>>>;

/// A message arrived on a model's topic.
struct ReceivedMessage {
    model: Arc<str>,
    bytes: Bytes,
}

/// This router's load changed.
struct LoadChanged;

/// The routers that were registered, and those that are now.
struct RoutersChange {
    before: Arc<BTreeMap<RouterId, RouterCard>>,
    now: Arc<BTreeMap<RouterId, RouterCard>>,
}

impl ReplicaSync {
    pub(crate) fn new(
        config: ReplicaConfig,
        load: LoadTable,
        view: Arc<ArcSwap<RosterView>>,
        listeners: RosterListeners,
        discovery: Vec<Arc<dyn Discovery>>,
        published: PublishedLoads,
    ) -> Self {
        Self {
            config,
            load,
            view,
            listeners,
            discovery,
            published,
            peers: HashMap::new(),
        }
    }

    /// Starts to listen on the topics of new models, and requests what the other routers have in flight for them.
    fn follow_models(&mut self, ctx: &mut Context<Self>) {
        let view = self.view.load_full();
        for name in view.models.keys() {
            if self.peers.contains_key(name) {
                continue;
            }
            self.peers.insert(name.clone(), Peers::default());
            self.published.lock().entry(name.clone()).or_default();
            let listener = self.config.broadcast.listen(name);
            let model: Arc<str> = name.as_str().into();
            ctx.add_stream(stream::unfold(
                (listener, model),
                async |(mut listener, model)| {
                    let bytes = listener.next().await;
                    let received = ReceivedMessage {
                        model: model.clone(),
                        bytes,
                    };
                    Some((received, (listener, model)))
                },
            ));
            self.send(name, ReplicaUpdate::Ask { of: None });
        }
    }

    /// Sends what has changed in this router's load since the last call.
    fn publish_changes(&self) {
        let view = self.view.load_full();
        let mut updates = Vec::new();
        for (model, published) in &mut *self.published.lock() {
            let now = view
                .workers
                .iter()
                .filter(|worker| worker.card.model == *model)
                .map(|worker| {
                    (
                        (worker.card.id.clone(), worker.card.epoch),
                        self.load.get(worker.slot).own(),
                    )
                });
            updates.extend(published.changes(now).map(|changes| (model.clone(), changes)));
        }
        for (model, changes) in updates {
            self.send(&model, changes);
        }
    }

    fn send(&self, model: &str, update: ReplicaUpdate) {
        let message = ReplicaMessage {
            origin: self.config.id.clone(),
            update,
        };
        match serde_json::to_vec(&message) {
            Ok(json) => self.config.broadcast.send(model, json.into()),
            Err(error) => debug!(%error, "a message to other routers cannot be encoded"),
        }
    }

    /// Counts anew what the other routers have in flight on these workers.
    fn recount(&self, model: &str, workers: impl IntoIterator<Item = WorkerIncarnation>) {
        let Some(peers) = self.peers.get(model) else {
            return;
        };
        let view = self.view.load();
        for incarnation in workers {
            let place = view
                .workers
                .binary_search_by(|worker| worker.card.id.cmp(&incarnation.0));
            if let Some(worker) = place.ok().and_then(|place| view.workers.get(place))
                && worker.card.epoch == incarnation.1
            {
                self.load.set_others(worker.slot, peers.load(&incarnation));
            }
        }
    }

    /// Counts anew what the other routers have in flight on every present worker.
    fn recount_all(&self) {
        for worker in &self.view.load().workers {
            self.recount(&worker.card.model, [(worker.card.id.clone(), worker.card.epoch)]);
        }
    }

    fn receive(&mut self, model: &str, message: ReplicaMessage) {
        let Some(peers) = self.peers.get_mut(model) else {
            return;
        };
        let ReplicaMessage { origin, update } = message;
        if origin == self.config.id {
            return;
        }
        if let ReplicaUpdate::Ask { of } = &update {
            if of.as_ref().is_none_or(|of| *of == self.config.id) {
                self.send_published(model, PublishedLoad::state);
            }
            return;
        }
        let effect = peers.receive(&origin, update, Instant::now());
        self.recount(model, effect.changed);
        if let Some(of) = effect.ask {
            metrics::counter!("signalbox_replica_resyncs_total").increment(1);
            self.send(model, ReplicaUpdate::Ask { of: Some(of) });
        }
    }

    fn send_published(&self, model: &str, update: impl Fn(&PublishedLoad) -> ReplicaUpdate) {
        let update = self.published.lock().get(model).map(update);
        if let Some(update) = update {
            self.send(model, update);
        }
    }

    /// Lets the others check their copy of this router's load, and forgets those that have become silent.
    fn exchange_digests(&mut self) {
        let models: Vec<String> = self.peers.keys().cloned().collect();
        let mut counted = HashSet::new();
        for model in models {
            let Some(peers) = self.peers.get_mut(&model) else {
                continue;
            };
            let changed = peers.expire(Instant::now());
            counted.extend(peers.origins().cloned());
            self.recount(&model, changed);
            self.send_published(&model, PublishedLoad::digest);
        }
        metrics::gauge!("signalbox_replicas").set(counted.len() as f64);
        self.load
            .set_other_routers(counted.len().max(self.registered_others()));
    }

    /// The other routers that discovery lists. They count before they first report a load.
    fn registered_others(&self) -> usize {
        let registered = self.discovery.iter().map(|discovery| discovery.routers());
        let others = registered.map(|routers| {
            let routers = routers.borrow();
            routers.len() - usize::from(routers.contains_key(&self.config.id))
        });
        others.max().unwrap_or(0)
    }

    fn forget(&mut self, origin: &RouterId) {
        let forgotten: Vec<_> = self
            .peers
            .iter_mut()
            .map(|(model, peers)| (model.clone(), peers.forget(origin)))
            .collect();
        for (model, workers) in forgotten {
            self.recount(&model, workers);
        }
    }
}

impl Actor for ReplicaSync {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.listeners.register(ctx.address().recipient());
        self.follow_models(ctx);
        self.load.set_other_routers(self.registered_others());
        // After a failure: the counts are those of the failed actor, and it may have missed a change of this router's load.
        self.recount_all();
        self.publish_changes();
        ctx.add_stream(stream::unfold(self.load.clone(), async |load| {
            load.changed().await;
            tokio::time::sleep(BATCH_WINDOW).await;
            Some((LoadChanged, load))
        }));
        for discovery in &self.discovery {
            ctx.add_stream(registrations(discovery.routers()));
        }
        ctx.run_interval(DIGEST_INTERVAL, |actor, _| actor.exchange_digests());
    }
}

/// The registered routers, at every change. The stream ends with discovery.
fn registrations(
    mut routers: watch::Receiver<Arc<BTreeMap<RouterId, RouterCard>>>,
) -> impl Stream<Item = RoutersChange> {
    let present = routers.borrow_and_update().clone();
    stream::unfold((routers, present), async |(mut routers, before)| {
        routers.changed().await.ok()?;
        let now = routers.borrow_and_update().clone();
        let change = RoutersChange {
            before,
            now: now.clone(),
        };
        Some((change, (routers, now)))
    })
}

impl StreamHandler<RoutersChange> for ReplicaSync {
    fn handle(&mut self, change: RoutersChange, _: &mut Self::Context) {
        for id in change.before.keys().filter(|id| !change.now.contains_key(*id)) {
            info!(router.id = %id, "router left; its load no longer counts");
            self.forget(id);
        }
        self.exchange_digests();
    }

    fn finished(&mut self, _: &mut Self::Context) {}
}

impl StreamHandler<LoadChanged> for ReplicaSync {
    fn handle(&mut self, _: LoadChanged, _: &mut Self::Context) {
        self.publish_changes();
    }

    fn finished(&mut self, _: &mut Self::Context) {}
}

impl StreamHandler<ReceivedMessage> for ReplicaSync {
    fn handle(&mut self, received: ReceivedMessage, _: &mut Self::Context) {
        match serde_json::from_slice(&received.bytes) {
            Ok(message) => self.receive(&received.model, message),
            Err(error) => {
                debug!(model = %received.model, %error, "a message of another router cannot be read")
            }
        }
    }

    fn finished(&mut self, _: &mut Self::Context) {}
}

impl Handler<RosterChanged> for ReplicaSync {
    type Result = ();

    fn handle(&mut self, _: RosterChanged, ctx: &mut Self::Context) {
        self.follow_models(ctx);
        self.recount_all();
    }
}

#[cfg(test)]
impl Handler<crate::supervisor::Panic> for ReplicaSync {
    type Result = ();

    fn handle(&mut self, _: crate::supervisor::Panic, _: &mut Self::Context) {
        panic!("this panic is part of the test");
    }
}

#[cfg(test)]
mod tests;
