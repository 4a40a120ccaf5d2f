//! Takes workers in and lets them go: the actor around [`Roster`].
//!
//! It reads discovery, prepares each newcomer (a control link, its tokenizer, its KV events), and publishes the new
//! view; replicas are told, so that they open links ahead of the first request. One a process, on an arbiter of its
//! own, away from the HTTP threads.
//!
//! A worker whose lease ended is kept for as long as its connection answers: an etcd that is unwell must not take away
//! workers that are well.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actix::prelude::*;
use arc_swap::ArcSwap;
use futures_util::stream;
use signalbox_discovery::{Departure, Discovery, WorkerChange};
use signalbox_protocol::{Call, WorkerCard, WorkerEpoch, WorkerId};
use signalbox_request_plane::{LinkEvent, LinkHandle, LinkState};
use signalbox_tokenize::{ModelArtifacts, ModelText};
use tracing::{info, warn};

use crate::{
    fetch::fetch,
    roster::{Roster, RosterView, WorkerPhase},
    tokenizer_loads::TokenizerLoads,
    worker_session::{SessionContext, WorkerSession},
};

/// Largest tokenizer and template taken from a worker.
const MAX_ARTIFACT_BYTES: usize = 128 << 20;

/// Wait before a tokenizer is asked for again, doubled up to the longest after each failure.
const ARTIFACT_RETRY: Duration = Duration::from_millis(100);
const ARTIFACT_RETRY_MAX: Duration = Duration::from_secs(5);

/// How often the actors of sessions are looked after.
const SUPERVISION_INTERVAL: Duration = Duration::from_secs(1);

/// Messages that may wait: link events come from as many links as there are workers.
const MAILBOX: usize = 4_096;

/// The actor.
#[derive(Debug)]
pub(crate) struct WorkerRoster {
    roster: Roster,
    sessions: HashMap<WorkerId, WorkerSession>,
    texts: TokenizerLoads,
    shared: SessionContext,
    discovery: Vec<Arc<dyn Discovery>>,
    view: Arc<ArcSwap<RosterView>>,
    replicas: Vec<Recipient<RosterChanged>>,
}

/// Tells a replica that the view changed. A hint: the view itself is read at every decision.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct RosterChanged;

/// A replica wants to be told of changes.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct RegisterReplica(pub(crate) Recipient<RosterChanged>);

impl WorkerRoster {
    pub(crate) fn new(
        shared: SessionContext,
        discovery: Vec<Arc<dyn Discovery>>,
        view: Arc<ArcSwap<RosterView>>,
    ) -> Self {
        Self {
            roster: Roster::default(),
            sessions: HashMap::new(),
            texts: TokenizerLoads::default(),
            shared,
            discovery,
            view,
            replicas: Vec::new(),
        }
    }

    fn joined(&mut self, ctx: &mut Context<Self>, card: Arc<WorkerCard>) {
        if self.roster.set_listed(&card.id, true)
            && let Some(session) = self.sessions.get(&card.id)
        {
            if session.card == card {
                info!(worker.id = %card.id, "worker is listed again");
                return self.publish();
            }
            let (id, epoch) = (session.card.id.clone(), session.card.epoch);
            self.drop_worker(&id, epoch, "another card took its place");
        }
        let load = self.shared.load.clone();
        let slot = match self
            .roster
            .join(card.clone(), |slot| load.get(slot).requests == 0)
        {
            Ok(slot) => slot,
            Err(error) => return warn!(%error, "worker not taken in"),
        };
        // An earlier life's session ends before the new one begins, and its blocks with it.
        self.sessions.remove(&card.id);
        let session =
            WorkerSession::start(card.clone(), slot, self.shared.clone(), ctx.address().recipient());
        self.sessions.insert(card.id.clone(), session);
        info!(worker.id = %card.id, model = %card.model, address = %card.address, engine = %card.engine, "worker joined");
        match self.roster.known_text(&card) {
            Some(text) => self.prepared(&card, text),
            None if self.texts.wait(card.clone()) => {
                self.load_text(ctx, &card.artifacts_digest, ARTIFACT_RETRY)
            }
            None => {}
        }
        self.publish();
    }

    /// Has one of the workers that wait for a tokenizer give it; where that fails, the next one, and so on until one
    /// could or none is left.
    fn load_text(&mut self, ctx: &mut Context<Self>, digest: &str, retry: Duration) {
        let sessions = &self.sessions;
        let is_present = |card: &WorkerCard| {
            sessions
                .get(&card.id)
                .is_some_and(|session| session.card.epoch == card.epoch)
        };
        let Some(card) = self.texts.next(digest, is_present) else {
            return;
        };
        let Some(link) = self.sessions.get(&card.id).map(|session| session.link.clone()) else {
            return;
        };
        let loaded = load_text(link, card.artifacts_digest.clone()).into_actor(self);
        ctx.spawn(loaded.map(move |text, actor, ctx| match text {
            Ok(text) => actor.loaded(&card.artifacts_digest, &text),
            Err(reason) => {
                warn!(worker.id = %card.id, reason, "a worker's tokenizer could not be loaded; trying again");
                ctx.run_later(retry, move |actor, ctx| {
                    actor.load_text(ctx, &card.artifacts_digest, (retry * 2).min(ARTIFACT_RETRY_MAX));
                });
            }
        }));
    }

    /// A tokenizer is here, for everyone who waited for it.
    fn loaded(&mut self, digest: &str, text: &Arc<ModelText>) {
        for card in self.texts.loaded(digest) {
            self.prepared(&card, text.clone());
        }
        self.publish();
    }

    /// The newcomer's tokenizer is here.
    fn prepared(&mut self, card: &WorkerCard, text: Arc<ModelText>) {
        let now_unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        match self.roster.ready(card, text, now_unix) {
            Some(WorkerPhase::Refused) => warn!(
                worker.id = %card.id, model = %card.model,
                "worker refused: its block size or tokenizer differs from that of the model's other workers",
            ),
            Some(_) => info!(worker.id = %card.id, model = %card.model, "worker ready"),
            None => {}
        }
    }

    fn left(&mut self, id: &WorkerId, epoch: WorkerEpoch, departure: Departure) {
        let answers = |session: &WorkerSession| {
            session.link.state() == LinkState::Up
                && session.link.card().is_some_and(|card| card.epoch == epoch)
        };
        if departure == Departure::LeaseEnded && self.sessions.get(id).is_some_and(answers) {
            // Also what a worker looks like that leaves politely: its answers under way end first.
            info!(worker.id = %id, "worker is listed no more, but answers: kept until it does not");
            self.roster.set_listed(id, false);
            self.publish();
        } else {
            self.drop_worker(id, epoch, "discovery lists it no more");
        }
    }

    fn drop_worker(&mut self, id: &WorkerId, epoch: WorkerEpoch, reason: &str) {
        if self.roster.leave(id, epoch).is_some() {
            self.sessions.remove(id);
            info!(worker.id = %id, reason, "worker left");
            self.publish();
        }
    }

    /// The worker that is dialled at this address.
    fn card_at(&self, address: &str) -> Option<Arc<WorkerCard>> {
        let session = self
            .sessions
            .values()
            .find(|session| session.card.address == address)?;
        Some(session.card.clone())
    }

    fn publish(&mut self) {
        let view = self.roster.view();
        self.shared.present.store(view.workers.len() as u64, Relaxed);
        metrics::gauge!("signalbox_workers").set(view.workers.len() as f64);
        self.view.store(Arc::new(view));
        // A full mailbox needs no second hint; a closed one belongs to a thread that ended.
        self.replicas.retain(|replica| replica.connected());
        for replica in &self.replicas {
            let _ = replica.try_send(RosterChanged);
        }
    }
}

impl Actor for WorkerRoster {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        for discovery in &self.discovery {
            ctx.add_stream(stream::unfold(discovery.watch(), async |mut watch| {
                let change = watch.next().await;
                Some((change, watch))
            }));
        }
        ctx.run_interval(SUPERVISION_INTERVAL, |actor, _| {
            actor.sessions.values_mut().for_each(WorkerSession::follow_events);
        });
    }
}

impl StreamHandler<WorkerChange> for WorkerRoster {
    fn handle(&mut self, change: WorkerChange, ctx: &mut Self::Context) {
        match change {
            WorkerChange::Joined(card) => self.joined(ctx, card),
            WorkerChange::Left { id, epoch, departure } => self.left(&id, epoch, departure),
        }
    }
}

impl Handler<LinkEvent> for WorkerRoster {
    type Result = ();

    fn handle(&mut self, event: LinkEvent, _: &mut Self::Context) {
        match event {
            LinkEvent::Draining { address } => {
                if let Some(card) = self.card_at(&address)
                    && self.roster.drain(&card.id, card.epoch)
                {
                    info!(worker.id = %card.id, "worker drains");
                    self.publish();
                }
            }
            LinkEvent::Down { address, reason } => {
                if let Some(card) = self.card_at(&address)
                    && !self.roster.is_listed(&card.id)
                {
                    self.drop_worker(&card.id, card.epoch, &reason);
                }
            }
            LinkEvent::Up { address, card: now } => {
                // Another life of it may listen there by now, which discovery has yet to tell of.
                if let Some(card) = self.card_at(&address)
                    && !self.roster.is_listed(&card.id)
                    && card.epoch != now.epoch
                {
                    self.drop_worker(&card.id, card.epoch, "another life of it answers");
                }
            }
        }
    }
}

impl Handler<RegisterReplica> for WorkerRoster {
    type Result = ();

    fn handle(&mut self, replica: RegisterReplica, _: &mut Self::Context) {
        self.replicas.push(replica.0);
    }
}

/// Fetches and loads a worker's tokenizer and template.
async fn load_text(link: LinkHandle, expected: String) -> Result<Arc<ModelText>, String> {
    let call = Call::FetchArtifacts {
        digest: expected.clone(),
    };
    let bytes = fetch(&link, call, MAX_ARTIFACT_BYTES)
        .await
        .map_err(|error| error.to_string())?;
    // Parsing a large vocabulary takes a second: not on an arbiter.
    let loaded = tokio::task::spawn_blocking(move || {
        let artifacts = ModelArtifacts::from_bytes(&bytes).map_err(|error| error.to_string())?;
        if artifacts.digest() != expected {
            return Err(format!(
                "its digest is {}, the card says {expected}",
                artifacts.digest()
            ));
        }
        ModelText::load(&artifacts)
            .map(Arc::new)
            .map_err(|error| error.to_string())
    });
    loaded.await.map_err(|error| error.to_string())?
}
