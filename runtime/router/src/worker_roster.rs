//! Lets workers join and leave: the actor around [`Roster`].
//!
//! It follows discovery, prepares each new worker (a control link, its tokenizer, its KV events), and publishes the new
//! view. Replicas get a [`RosterChanged`] then, so that they open links ahead of the first request. A process has one, on
//! an arbiter apart from the HTTP threads.
//!
//! A worker whose lease ended is kept for as long as its connection answers: an etcd that fails must not remove workers
//! that work.
//!
//! When the actor fails, the view stays published. The next one continues from that view and follows discovery anew; the
//! sessions of the failed one end with it, and their credit in the KV index with them (K-1).

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actix::{WeakRecipient, prelude::*};
use arc_swap::ArcSwap;
use futures_util::stream;
use parking_lot::Mutex;
use signalbox_discovery::{Departure, Discovery, WorkerChange};
use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{Call, WorkerCard, WorkerEpoch, WorkerId};
use signalbox_request_plane::{LinkEvent, LinkHandle, LinkState};
use signalbox_tokenize::{ModelArtifacts, ModelText};
use tracing::{info, warn};

use crate::{
    fetch::fetch,
    roster::{AdapterReport, Departed, Joined, Judged, Roster, RosterView, WorkerPhase},
    tokenizer_loads::TokenizerLoads,
    worker_session::{AdaptersReported, SessionContext, WorkerSession},
};

/// Largest tokenizer and template accepted from a worker.
const MAX_ARTIFACT_BYTES: usize = 128 << 20;

/// Wait before a tokenizer is requested again, doubled up to the longest after each failure.
const ARTIFACT_RETRY: Duration = Duration::from_millis(100);
const ARTIFACT_RETRY_MAX: Duration = Duration::from_secs(5);

/// Messages that may wait: link events come from as many links as there are workers.
const MAILBOX: usize = 4_096;

/// The actor.
#[derive(Debug)]
pub(crate) struct WorkerRoster {
    roster: Roster,
    sessions: HashMap<WorkerId, WorkerSession>,
    tokenizer_loads: TokenizerLoads,
    context: SessionContext,
    discovery: Vec<Arc<dyn Discovery>>,
    view: Arc<ArcSwap<RosterView>>,
    listeners: RosterListeners,
}

/// The view changed. Only a hint: every decision reads the view itself.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct RosterChanged;

/// The actors that receive [`RosterChanged`]. They are kept apart from the roster's actor, and so outlast its failure.
/// A listener may hold these listeners itself, so they do not keep it running. Clone = handle.
#[derive(Debug, Clone, Default)]
pub(crate) struct RosterListeners(Arc<Mutex<Vec<WeakRecipient<RosterChanged>>>>);

impl RosterListeners {
    /// From now on `listener` receives a [`RosterChanged`] after each change. Read the view after this call.
    pub(crate) fn register(&self, listener: Recipient<RosterChanged>) {
        self.0.lock().push(listener.downgrade());
    }

    fn notify(&self) {
        let mut listeners = self.0.lock();
        listeners.retain(|listener| {
            // A closed mailbox belongs to an actor that ended; a full one needs no second hint.
            let listener = listener.upgrade().filter(Recipient::connected);
            listener.is_some_and(|listener| {
                let _ = listener.try_send(RosterChanged);
                true
            })
        });
    }
}

impl WorkerRoster {
    /// An actor that continues from the published view, which is empty at first.
    pub(crate) fn new(
        context: SessionContext,
        discovery: Vec<Arc<dyn Discovery>>,
        view: Arc<ArcSwap<RosterView>>,
        listeners: RosterListeners,
    ) -> Self {
        Self {
            roster: Roster::restore(&view.load()),
            sessions: HashMap::new(),
            tokenizer_loads: TokenizerLoads::default(),
            context,
            discovery,
            view,
            listeners,
        }
    }

    fn joined(&mut self, ctx: &mut Context<Self>, card: &Arc<WorkerCard>) {
        let load = &self.context.load;
        let is_unused = |slot| load.get(slot).requests == 0;
        match self.roster.join(card.clone(), is_unused) {
            Ok(Joined::New(slot)) => {
                info!(worker.id = %card.id, model = %card.model, address = %card.address, engine = %card.engine, "worker joined");
                self.start_session(ctx, card, slot);
                self.prepare(ctx, card);
            }
            Ok(Joined::Relisted) => info!(worker.id = %card.id, "worker is listed again"),
            Err(error) => return warn!(%error, "worker not accepted"),
        }
        self.publish();
    }

    fn start_session(&mut self, ctx: &mut Context<Self>, card: &Arc<WorkerCard>, slot: WorkerSlot) {
        // The session of an earlier incarnation ends before the new one starts, and its credit with it.
        self.sessions.remove(&card.id);
        let session = WorkerSession::start(
            card.clone(),
            slot,
            self.context.clone(),
            ctx.address().recipient(),
            ctx.address().recipient(),
        );
        self.sessions.insert(card.id.clone(), session);
    }

    /// Makes a new worker ready, now or when its tokenizer is loaded and its LoRA adapters are known. Without those a
    /// request for an adapter would be answered "no such model" until the worker's first report.
    fn prepare(&mut self, ctx: &mut Context<Self>, card: &Arc<WorkerCard>) {
        // Only engines next door have adapters.
        if card.reads_body && !self.roster.has_reported_adapters(card) {
            return;
        }
        match self.roster.known_text(card) {
            Some(text) => _ = self.roster.loaded(card, text),
            None if self.tokenizer_loads.wait(card.clone()) => {
                self.load_text(ctx, &card.artifacts_digest, ARTIFACT_RETRY);
            }
            None => {}
        }
    }

    /// Loads a tokenizer from one of the workers that wait for it. If that fails, tries the next worker, until one
    /// supplies the tokenizer or none is left.
    fn load_text(&mut self, ctx: &mut Context<Self>, digest: &str, retry: Duration) {
        let sessions = &self.sessions;
        let is_present = |card: &WorkerCard| {
            sessions
                .get(&card.id)
                .is_some_and(|session| session.card.epoch == card.epoch)
        };
        let Some(card) = self.tokenizer_loads.next(digest, is_present) else {
            return;
        };
        let Some(link) = self.sessions.get(&card.id).map(|session| session.link.clone()) else {
            return;
        };
        let loaded = load_text(link, card.artifacts_digest.clone()).into_actor(self);
        ctx.spawn(loaded.map(move |text, actor, ctx| match text {
            Ok(text) => actor.loaded(&card.artifacts_digest, &text),
            Err(reason) => {
                warn!(worker.id = %card.id, reason, retry_in = ?retry, "a worker's tokenizer was not loaded");
                ctx.run_later(retry, move |actor, ctx| {
                    actor.load_text(ctx, &card.artifacts_digest, (retry * 2).min(ARTIFACT_RETRY_MAX));
                });
            }
        }));
    }

    /// A tokenizer is loaded: every worker that waited for it is prepared.
    fn loaded(&mut self, digest: &str, text: &Arc<ModelText>) {
        for card in self.tokenizer_loads.loaded(digest) {
            self.roster.loaded(&card, text.clone());
        }
        self.publish();
    }

    fn departed(&mut self, id: &WorkerId, epoch: WorkerEpoch, departure: Departure) {
        let answers = self.sessions.get(id).is_some_and(|session| {
            session.link.state() == LinkState::Up
                && session.link.card().is_some_and(|card| card.epoch == epoch)
        });
        match self.roster.depart(id, epoch, departure, answers) {
            Departed::Left => self.end_session(id, "discovery no longer lists it"),
            Departed::Kept => {
                // A worker that drains looks like this too: its answers under way end first.
                info!(worker.id = %id, "discovery no longer lists the worker; it is kept while its connection answers");
                self.publish();
            }
            Departed::Unknown => {}
        }
    }

    /// A worker left the roster.
    fn end_session(&mut self, id: &WorkerId, reason: &str) {
        self.sessions.remove(id);
        info!(worker.id = %id, reason, "worker left");
        self.publish();
    }

    fn publish(&mut self) {
        let now_unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        for Judged { card, phase } in self.roster.judge(now_unix) {
            let (id, model) = (&card.id, &card.model);
            if phase == WorkerPhase::Ready {
                info!(worker.id = %id, model, "worker ready");
            } else {
                warn!(
                    worker.id = %id, model, block_size = card.block_size, tokenizer = card.artifacts_digest,
                    "worker refused: this router serves as many models, or versions of its model, as it may; the worker \
                     is judged again at each change",
                );
            }
        }
        for unserved in self.roster.settle_adapters() {
            warn!(
                worker.id = %unserved.worker, adapter = unserved.name, reason = %unserved.reason,
                "a worker's LoRA adapter is not served",
            );
        }
        let view = self.roster.view();
        self.context.present.store(view.workers.len() as u64, Relaxed);
        metrics::gauge!("signalbox_workers").set(view.workers.len() as f64);
        metrics::gauge!("signalbox_workers_refused").set(self.roster.refused() as f64);
        self.view.store(Arc::new(view));
        self.listeners.notify();
    }
}

impl Actor for WorkerRoster {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let restored: Vec<_> = self.roster.workers().cloned().collect();
        for worker in restored {
            self.start_session(ctx, &worker.card, worker.slot);
            if worker.phase == WorkerPhase::Preparing {
                self.prepare(ctx, &worker.card);
            }
        }
        for discovery in &self.discovery {
            ctx.add_stream(stream::unfold(discovery.watch(), async |mut watch| {
                let change = watch.next().await;
                Some((change, watch))
            }));
        }
    }
}

impl StreamHandler<WorkerChange> for WorkerRoster {
    fn handle(&mut self, change: WorkerChange, ctx: &mut Self::Context) {
        match change {
            WorkerChange::Joined(card) => self.joined(ctx, &card),
            WorkerChange::Left { id, epoch, departure } => self.departed(&id, epoch, departure),
        }
    }
}

impl Handler<LinkEvent> for WorkerRoster {
    type Result = ();

    fn handle(&mut self, event: LinkEvent, _: &mut Self::Context) {
        match event {
            LinkEvent::Draining { address } => {
                if let Some(card) = self.roster.drain(&address) {
                    info!(worker.id = %card.id, "worker drains");
                    self.publish();
                }
            }
            LinkEvent::Down { address, reason } => {
                if let Some(card) = self.roster.lose(&address) {
                    self.end_session(&card.id, &reason);
                }
            }
            // Another incarnation may listen at the address before discovery reports it.
            LinkEvent::Up { address, card } => {
                if let Some(earlier) = self.roster.reach(&address, card.epoch) {
                    self.end_session(&earlier.id, "another incarnation answers at its address");
                }
            }
        }
    }
}

impl Handler<AdaptersReported> for WorkerRoster {
    type Result = ();

    fn handle(&mut self, report: AdaptersReported, ctx: &mut Self::Context) {
        let AdaptersReported { id, epoch, adapters } = report;
        match self.roster.report_adapters(&id, epoch, &adapters) {
            AdapterReport::Ignored => return,
            AdapterReport::Changed => {}
            AdapterReport::First => {
                let preparing = self.roster.workers().find(|worker| worker.card.id == id);
                let preparing = preparing.filter(|worker| worker.phase == WorkerPhase::Preparing);
                if let Some(card) = preparing
                    .map(|worker| worker.card.clone())
                    .filter(|card| card.reads_body)
                {
                    self.prepare(ctx, &card);
                }
            }
        }
        self.publish();
    }
}

#[cfg(test)]
impl Handler<crate::supervisor::Panic> for WorkerRoster {
    type Result = ();

    fn handle(&mut self, _: crate::supervisor::Panic, _: &mut Self::Context) {
        panic!("this panic is part of the test");
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
                "its digest is {}, the worker's card has {expected}",
                artifacts.digest()
            ));
        }
        ModelText::load(&artifacts)
            .map(Arc::new)
            .map_err(|error| error.to_string())
    });
    loaded.await.map_err(|error| error.to_string())?
}

#[cfg(test)]
mod tests;
