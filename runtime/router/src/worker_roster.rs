//! Lets workers join and leave: the actor around [`Roster`].
//!
//! It follows discovery, prepares each new worker (a control link, its tokenizer, its KV events), and publishes the new
//! view. Replicas get a `RosterChanged` then ([`RosterListeners`]), so that they open links ahead of the first request. A
//! process has one, on an arbiter apart from the HTTP threads.
//!
//! A worker whose lease ended is kept for as long as its connection answers: an etcd that fails must not remove workers
//! that work. Nor must the card of a later incarnation that does not answer ([`Rivals`]).
//!
//! Changes that come together are published together ([`PublishPace`]).
//!
//! When the actor fails, the view stays published. The next one continues from that view and follows discovery anew; the
//! sessions of the failed one end with it, and their credit in the KV index with them (K-1).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use actix::prelude::*;
use arc_swap::ArcSwap;
use futures_util::stream;
use signalbox_discovery::{Departure, Discovery, WorkerChange};
use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{WorkerCard, WorkerEpoch, WorkerId};
use signalbox_request_plane::{LinkEvent, LinkHandle, LinkState};
use signalbox_tokenize::ModelText;
use tracing::{error, info, warn};

use crate::{
    health::TEND_INTERVAL,
    index_figures::{EXPORT_INTERVAL, IndexFigures},
    load::{LoadTable, MAX_WORKERS},
    probe::probe,
    publish_pace::PublishPace,
    rivals::{Answered, Rivals, Silenced},
    roster::{AdapterReport, Departed, Joined, Judged, Roster, RosterError, RosterView, WorkerPhase},
    roster_listeners::RosterListeners,
    tokenizer_loads::{TokenizerLoads, load_text},
    unix_time::unix_ms,
    worker_session::{AdaptersReported, SessionContext, WorkerSession},
};

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
    rivals: Rivals<LinkHandle>,
    /// Workers that found the roster full. They join when others leave.
    waiting: BTreeMap<WorkerId, Arc<WorkerCard>>,
    /// The workers that were withdrawn since the last view.
    withdrawn: HashMap<WorkerId, Arc<WorkerCard>>,
    /// The slots of the workers in the published view.
    published_slots: HashSet<WorkerSlot>,
    pace: PublishPace,
    index_figures: IndexFigures,
    discovery: Vec<Arc<dyn Discovery>>,
    view: Arc<ArcSwap<RosterView>>,
    listeners: RosterListeners,
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
            rivals: Rivals::default(),
            waiting: BTreeMap::new(),
            withdrawn: HashMap::new(),
            published_slots: slots_of(&view.load()),
            pace: PublishPace::default(),
            index_figures: IndexFigures::default(),
            discovery,
            view,
            listeners,
        }
    }

    /// Discovery lists a worker.
    fn joined(&mut self, ctx: &mut Context<Self>, card: Arc<WorkerCard>) {
        if !self.answers_in_earlier_epoch(&card) {
            return self.admit(ctx, &card);
        }
        info!(
            worker.id = %card.id, address = %card.address,
            "a later incarnation of a worker is listed; the earlier one serves until that one answers"
        );
        let link = self.link_to(ctx, &card.address);
        self.rivals.contend(card, link);
    }

    /// Whether an earlier incarnation of this worker serves, does not drain, and answers.
    fn answers_in_earlier_epoch(&self, card: &WorkerCard) -> bool {
        let is_earlier = self.roster.worker(&card.id).is_some_and(|present| {
            present.card.epoch < card.epoch
                && matches!(present.phase, WorkerPhase::Ready | WorkerPhase::Preparing)
        });
        is_earlier && self.sessions.get(&card.id).is_some_and(answers)
    }

    /// A link that is only watched.
    fn link_to(&self, ctx: &Context<Self>, address: &str) -> LinkHandle {
        let watcher = ctx.address().recipient();
        LinkHandle::start(address.to_owned(), self.context.links.clone(), Some(watcher))
    }

    /// Makes a worker present, in the place of an earlier incarnation.
    fn admit(&mut self, ctx: &mut Context<Self>, card: &Arc<WorkerCard>) {
        self.rivals.settle(&card.id);
        let earlier = self.sessions.get(&card.id).map(|session| session.card.clone());
        let earlier = earlier.or_else(|| self.withdrawn.remove(&card.id));
        let own_slot = self.roster.worker(&card.id).map(|worker| worker.slot);
        let is_unused = unused(&self.context.load, &self.published_slots, own_slot);
        match self.roster.join(card.clone(), is_unused) {
            Ok(Joined::New(slot)) => {
                self.begin(ctx, card, slot, "worker joined");
                let displaced = earlier.filter(|earlier| earlier.address != card.address);
                if let Some(earlier) = displaced {
                    let link = self.link_to(ctx, &earlier.address);
                    self.rivals.displace(earlier, link);
                }
            }
            Ok(Joined::Relisted) => info!(worker.id = %card.id, "worker is listed again"),
            Err(error @ RosterError::Full(_)) => {
                let is_known = self.waiting.contains_key(&card.id);
                if !is_known {
                    warn!(%error, "worker not accepted; it joins when another one leaves");
                }
                // As many wait at most as may be present: discovery may list any number.
                if is_known || self.waiting.len() < MAX_WORKERS as usize {
                    self.waiting.insert(card.id.clone(), card.clone());
                }
                return;
            }
            Err(error) => return warn!(%error, "worker not accepted"),
        }
        self.changed(ctx);
    }

    /// The contender of this worker takes over, if there is one.
    fn promote(&mut self, ctx: &mut Context<Self>, id: &WorkerId) {
        if let Some(card) = self.rivals.settle(id) {
            self.admit(ctx, &card);
        }
    }

    /// This worker answers at the address of a session. If it is not the one that the session was started for, that one is
    /// gone, and the session of the worker that answers begins.
    fn reached(&mut self, ctx: &mut Context<Self>, address: String, card: &WorkerCard) {
        let Some(earlier) = self.roster.reach(&address, card) else {
            return;
        };
        self.end_session(
            ctx,
            &earlier.card.id,
            "another incarnation answers at its address",
        );
        // Routers dial the address that reached the worker; its own may be that of every interface.
        let card = Arc::new(WorkerCard {
            address,
            ..card.clone()
        });
        let is_unused = unused(&self.context.load, &self.published_slots, Some(earlier.slot));
        match self.roster.adopt(card.clone(), is_unused) {
            Ok(slot) => {
                self.begin(ctx, &card, slot, "worker joined by its connection");
            }
            Err(error) => warn!(%error, "worker not accepted"),
        }
        self.changed(ctx);
    }

    /// The session of a worker that is present now begins.
    fn begin(&mut self, ctx: &mut Context<Self>, card: &Arc<WorkerCard>, slot: WorkerSlot, what: &str) {
        info!(worker.id = %card.id, model = %card.model, address = %card.address, engine = %card.engine, "{what}");
        self.start_session(ctx, card, slot);
        self.prepare(ctx, card);
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
        let session_of = |card: &WorkerCard| {
            let session = sessions.get(&card.id);
            session.filter(|session| session.card.epoch == card.epoch)
        };
        let supplier = self.tokenizer_loads.next(
            digest,
            |card| session_of(card).is_some(),
            |card| session_of(card).is_some_and(answers),
        );
        let Some(card) = supplier else {
            return;
        };
        let Some(link) = self.sessions.get(&card.id).map(|session| session.link.clone()) else {
            return;
        };
        let loaded = load_text(link, card.artifacts_digest.clone()).into_actor(self);
        ctx.spawn(loaded.map(move |text, actor, ctx| match text {
            Ok(text) => actor.loaded(ctx, &card.artifacts_digest, &text),
            Err(reason) => {
                warn!(worker.id = %card.id, reason, retry_in = ?retry, "a worker's tokenizer was not loaded");
                ctx.run_later(retry, move |actor, ctx| {
                    actor.load_text(ctx, &card.artifacts_digest, (retry * 2).min(ARTIFACT_RETRY_MAX));
                });
            }
        }));
    }

    /// A tokenizer is loaded: every worker that waited for it is prepared.
    fn loaded(&mut self, ctx: &mut Context<Self>, digest: &str, text: &Arc<ModelText>) {
        for card in self.tokenizer_loads.loaded(digest) {
            self.roster.loaded(&card, text.clone());
        }
        self.changed(ctx);
    }

    fn departed(&mut self, ctx: &mut Context<Self>, id: &WorkerId, epoch: WorkerEpoch, departure: Departure) {
        if self.waiting.get(id).is_some_and(|card| card.epoch == epoch) {
            self.waiting.remove(id);
        }
        if self.rivals.withdraw(id, epoch) {
            return info!(worker.id = %id, "the later incarnation of a worker is no longer listed");
        }
        // Of the incarnation that is present: it may have taken the place of the one that discovery no longer lists.
        let session = self.sessions.get(id);
        let answers = session.is_some_and(answers);
        let card = session
            .filter(|session| session.card.epoch == epoch)
            .map(|session| session.card.clone());
        match self.roster.depart(id, epoch, departure, answers) {
            Departed::Left => {
                self.withdrawn.extend(card.map(|card| (id.clone(), card)));
                self.end_session(ctx, id, "discovery no longer lists it");
            }
            Departed::Kept => {
                // A worker that drains looks like this too: its answers under way end first.
                info!(worker.id = %id, "discovery no longer lists the worker; it is kept while its connection answers");
                self.changed(ctx);
            }
            Departed::Unknown => {}
        }
    }

    /// A worker left the roster.
    fn end_session(&mut self, ctx: &mut Context<Self>, id: &WorkerId, reason: &str) {
        self.sessions.remove(id);
        info!(worker.id = %id, reason, "worker left");
        self.promote(ctx, id);
        self.changed(ctx);
    }

    /// Nobody answers at an address any more, or the worker there drains.
    fn silenced(&mut self, ctx: &mut Context<Self>, address: &str) {
        for silenced in self.rivals.silenced(address) {
            match silenced {
                Silenced::Contender(card) => warn!(
                    worker.id = %card.id, address, epoch = %card.epoch,
                    "discovery lists a later incarnation of this worker, which does not answer; requests go on to the \
                     earlier one, which does",
                ),
                Silenced::ConflictOver(card) => {
                    info!(worker.id = %card.id, address, "the worker's id answers at one address again");
                    self.changed(ctx);
                }
            }
        }
    }

    /// Probes the ejected workers that are due.
    fn tend(&mut self, ctx: &mut Context<Self>) {
        let health = self.context.load.health();
        for due in health.tend() {
            let slot = WorkerSlot(due.slot);
            let session = self.sessions.values().find(|session| session.slot == slot);
            let Some(session) = session else {
                health.probed(due, false);
                continue;
            };
            let usual = self.context.latency.get(slot);
            let probing = probe(session.link.clone(), session.card.clone(), usual);
            ctx.spawn(probing.into_actor(self).map(move |has_answered, actor, _| {
                actor.context.load.health().probed(due, has_answered);
            }));
        }
    }

    /// Publishes the view soon.
    fn changed(&mut self, ctx: &mut Context<Self>) {
        if let Some(wait) = self.pace.changed() {
            ctx.run_later(wait, |actor, ctx| {
                let began = Instant::now();
                actor.publish();
                actor.pace.published(began.elapsed());
                actor.admit_waiting(ctx);
            });
        }
    }

    /// Workers that found the roster full join, as many as there is room for.
    fn admit_waiting(&mut self, ctx: &mut Context<Self>) {
        while self.roster.has_room()
            && let Some((_, card)) = self.waiting.pop_first()
        {
            self.admit(ctx, &card);
            if self.waiting.contains_key(&card.id) {
                // Requests to its previous worker are still under way in the slot that is vacant.
                return;
            }
        }
    }

    fn publish(&mut self) {
        for Judged { card, phase } in self.roster.judge(unix_ms() / 1_000) {
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
        let mut view = self.roster.view();
        view.conflicts = self.rivals.conflicts();
        metrics::gauge!("signalbox_worker_id_conflicts").set(view.conflicts.len() as f64);
        self.published_slots = slots_of(&view);
        self.withdrawn.clear();
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
        ctx.run_interval(EXPORT_INTERVAL, |actor, _| {
            actor.index_figures.export(&actor.context.index);
        });
        ctx.run_interval(TEND_INTERVAL, Self::tend);
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
            WorkerChange::Joined(card) => self.joined(ctx, card),
            WorkerChange::Left { id, epoch, departure } => self.departed(ctx, &id, epoch, departure),
        }
    }
}

impl Handler<LinkEvent> for WorkerRoster {
    type Result = ();

    fn handle(&mut self, event: LinkEvent, ctx: &mut Self::Context) {
        match event {
            LinkEvent::Draining { address } => {
                if let Some(card) = self.roster.drain(&address) {
                    info!(worker.id = %card.id, "worker drains");
                    self.promote(ctx, &card.id);
                    self.changed(ctx);
                }
                self.silenced(ctx, &address);
            }
            LinkEvent::Down { address, reason } => {
                let is_lost = |session: &&WorkerSession| {
                    session.card.address == address && session.link.state() != LinkState::Up
                };
                let lost: Vec<_> = self.sessions.values().filter(is_lost).collect();
                let contended = lost.iter().map(|session| session.card.id.clone());
                let contended = contended.filter(|id| self.rivals.has_contender(id));
                for id in contended.collect::<Vec<_>>() {
                    self.promote(ctx, &id);
                }
                if let Some(card) = self.roster.lose(&address) {
                    self.end_session(ctx, &card.id, &reason);
                }
                self.silenced(ctx, &address);
            }
            LinkEvent::Up { address, card } => {
                match self.rivals.answered(&address, &card) {
                    Some(Answered::TakesOver(card)) => self.admit(ctx, &card),
                    Some(Answered::Conflicts(displaced)) => {
                        let serving = self.roster.worker(&displaced.id);
                        let serving = serving.map_or("", |serving| &*serving.card.address);
                        error!(
                            worker.id = %displaced.id, serving, displaced = %displaced.address,
                            "two workers have this id and answer at different addresses; only the later one gets \
                             requests: give each worker an id of its own with --id",
                        );
                        self.changed(ctx);
                    }
                    None => {}
                }
                // Another incarnation may listen at the address before discovery reports it, or while discovery is away.
                self.reached(ctx, address, &card);
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
                let preparing = self.roster.worker(&id);
                let preparing = preparing.filter(|worker| worker.phase == WorkerPhase::Preparing);
                if let Some(card) = preparing
                    .map(|worker| worker.card.clone())
                    .filter(|card| card.reads_body)
                {
                    self.prepare(ctx, &card);
                }
            }
        }
        self.changed(ctx);
    }
}

/// Whether the worker answers in the epoch of its card.
fn answers(session: &WorkerSession) -> bool {
    session.link.state() == LinkState::Up
        && session
            .link
            .card()
            .is_some_and(|card| card.epoch == session.card.epoch)
}

/// Whether a vacant slot may be given to a worker. No request is under way there, and no decision by the published view can
/// choose the worker that had it, except where that is the earlier incarnation of the same worker, in the slot `own`.
fn unused(
    load: &LoadTable,
    published: &HashSet<WorkerSlot>,
    own: Option<WorkerSlot>,
) -> impl Fn(WorkerSlot) -> bool {
    move |slot| load.get(slot).requests == 0 && (own == Some(slot) || !published.contains(&slot))
}

fn slots_of(view: &RosterView) -> HashSet<WorkerSlot> {
    view.workers.iter().map(|worker| worker.slot).collect()
}

/// Reports a change as discovery does.
#[cfg(test)]
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Discovered(WorkerChange);

#[cfg(test)]
impl Handler<Discovered> for WorkerRoster {
    type Result = ();

    fn handle(&mut self, Discovered(change): Discovered, ctx: &mut Self::Context) {
        StreamHandler::handle(self, change, ctx);
    }
}

#[cfg(test)]
impl Handler<crate::supervisor::Panic> for WorkerRoster {
    type Result = ();

    fn handle(&mut self, _: crate::supervisor::Panic, _: &mut Self::Context) {
        panic!("this panic is part of the test");
    }
}

#[cfg(test)]
mod tests;
