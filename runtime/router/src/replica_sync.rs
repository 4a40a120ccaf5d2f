//! Tells the other routers what this one has in flight, and counts what they have.
//!
//! One [`ReplicaSync`] actor a process. It is advisory: nothing waits for it, and what it misses makes decisions worse
//! for a moment, never wrong. Changes go out in batches, a few milliseconds after the first; every second a digest lets
//! the others see whether they missed any; a router that joins asks everybody for all they have. A router that left
//! discovery, or said nothing for ten seconds, is forgotten whole.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use actix::prelude::*;
use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::{Stream, stream};
use signalbox_discovery::Discovery;
use signalbox_event_plane::Broadcast;
use signalbox_protocol::{ReplicaMessage, ReplicaUpdate, RouterCard, RouterId};
use tokio::sync::watch;
use tracing::{debug, info};

use crate::{
    load::LoadTable,
    roster::RosterView,
    worker_roster::{RegisterReplica, RosterChanged, WorkerRoster},
};
use peers::{Peers, PublishedLoad, WorkerIncarnation};

mod peers;

/// What changes within this time goes out together: far less than the 100 ms after which another router should know,
/// and at most 200 messages a second.
const BATCH_WINDOW: Duration = Duration::from_millis(5);

/// How often the others can see whether they missed something.
const DIGEST_INTERVAL: Duration = Duration::from_secs(1);

/// How a router takes part.
#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    /// This incarnation of this router; the name it registers under.
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
    roster: Addr<WorkerRoster>,
    /// Tells which routers are registered.
    discovery: Vec<Arc<dyn Discovery>>,
    models: HashMap<String, ModelSync>,
}

/// What is said of one model.
#[derive(Debug, Default)]
struct ModelSync {
    own: PublishedLoad,
    peers: Peers,
}

/// A message came in on a model's topic.
struct ReceivedMessage {
    model: Arc<str>,
    bytes: Bytes,
}

/// This router's load changed.
struct LoadChanged;

/// Who was registered and who is now.
struct RoutersChange {
    before: Arc<BTreeMap<RouterId, RouterCard>>,
    now: Arc<BTreeMap<RouterId, RouterCard>>,
}

impl ReplicaSync {
    pub(crate) fn new(
        config: ReplicaConfig,
        load: LoadTable,
        view: Arc<ArcSwap<RosterView>>,
        roster: Addr<WorkerRoster>,
        discovery: Vec<Arc<dyn Discovery>>,
    ) -> Self {
        Self {
            config,
            load,
            view,
            roster,
            discovery,
            models: HashMap::new(),
        }
    }

    /// Begins to speak and listen of models that are new.
    fn follow_models(&mut self, ctx: &mut Context<Self>) {
        let view = self.view.load_full();
        for name in view.models.keys() {
            if self.models.contains_key(name) {
                continue;
            }
            self.models.insert(name.clone(), ModelSync::default());
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

    fn publish_changes(&mut self) {
        let view = self.view.load_full();
        let mut update = Vec::new();
        for (model, sync) in &mut self.models {
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
            update.extend(sync.own.changes(now).map(|changes| (model.clone(), changes)));
        }
        for (model, changes) in update {
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
            Err(error) => debug!(%error, "a message to other routers could not be written"),
        }
    }

    /// Counts anew what other routers have on these workers.
    fn recount(&self, model: &str, workers: impl IntoIterator<Item = WorkerIncarnation>) {
        let Some(sync) = self.models.get(model) else {
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
                self.load.set_others(worker.slot, sync.peers.load(&incarnation));
            }
        }
    }

    fn receive(&mut self, model: &str, message: ReplicaMessage) {
        let Some(sync) = self.models.get_mut(model) else {
            return;
        };
        let ReplicaMessage { origin, update } = message;
        if origin == self.config.id {
            return;
        }
        if let ReplicaUpdate::Ask { of } = &update {
            if of.as_ref().is_none_or(|of| *of == self.config.id) {
                let state = sync.own.state();
                self.send(model, state);
            }
            return;
        }
        let effect = sync.peers.receive(&origin, update, Instant::now());
        self.recount(model, effect.changed);
        if let Some(of) = effect.ask {
            metrics::counter!("signalbox_replica_resyncs_total").increment(1);
            self.send(model, ReplicaUpdate::Ask { of: Some(of) });
        }
    }

    /// Lets others check what they know, and forgets those that are silent.
    fn exchange_digests(&mut self) {
        let models: Vec<String> = self.models.keys().cloned().collect();
        let mut counted = HashSet::new();
        for model in models {
            let Some(sync) = self.models.get_mut(&model) else {
                continue;
            };
            let digest = sync.own.digest();
            let changed = sync.peers.expire(Instant::now());
            counted.extend(sync.peers.origins().cloned());
            self.recount(&model, changed);
            self.send(&model, digest);
        }
        metrics::gauge!("signalbox_replicas").set(counted.len() as f64);
    }

    fn forget(&mut self, origin: &RouterId) {
        let forgotten: Vec<_> = self
            .models
            .iter_mut()
            .map(|(model, sync)| (model.clone(), sync.peers.forget(origin)))
            .collect();
        for (model, workers) in forgotten {
            self.recount(&model, workers);
        }
    }
}

impl Actor for ReplicaSync {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        #[expect(
            clippy::disallowed_methods,
            reason = "a control message, once in the actor's incarnation"
        )]
        self.roster.do_send(RegisterReplica(ctx.address().recipient()));
        self.follow_models(ctx);
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

/// Who is registered, at every change; the sender lives as long as discovery.
fn registrations(
    routers: watch::Receiver<Arc<BTreeMap<RouterId, RouterCard>>>,
) -> impl Stream<Item = RoutersChange> {
    stream::unfold((routers, Arc::default()), async |(mut routers, before)| {
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
            info!(router.id = %id, "router left; its load counts no more");
            self.forget(id);
        }
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
                debug!(model = %received.model, %error, "a message of another router could not be read")
            }
        }
    }

    fn finished(&mut self, _: &mut Self::Context) {}
}

impl Handler<RosterChanged> for ReplicaSync {
    type Result = ();

    fn handle(&mut self, _: RosterChanged, ctx: &mut Self::Context) {
        self.follow_models(ctx);
        let view = self.view.load_full();
        for worker in &view.workers {
            self.recount(&worker.card.model, [(worker.card.id.clone(), worker.card.epoch)]);
        }
    }
}
