//! The router replica of one HTTP thread.
//!
//! [`RouterReplica`] is an actor on the thread's arbiter: the roster notifies it of changes, and it keeps one link to
//! every worker. Requests do not queue in its mailbox: [`ReplicaHandle::route`] works on the replica's state
//! directly, on the same thread, so that a decision costs no hop.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use actix::prelude::*;
use arc_swap::ArcSwap;
use futures_util::StreamExt;
use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{Call, ParityState, SequenceHash, WireError, WorkerId, name_hash};
use signalbox_request_plane::{CallParts, LinkError, ResponseEvent, ResponseStream};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use crate::{
    answer::{AnswerObservers, AnswerStream, Reroute, Resumed, RoutedAnswer},
    attempts::{Attempts, NextStep, Setback, may_move},
    block_learner::BlockLearnerHandle,
    candidates::NoCandidate,
    client_errors,
    continuation::{Continuation, Interrupted, KeptBytes, is_continuable},
    decide::{Decider, Demand, Placement},
    latency::LatencyTable,
    links::Links,
    load::Reservation,
    parity::ParityTable,
    roster::{ModelEntry, RosterView, WorkerEntry},
    route_request::RouteRequest,
    router::Router,
    worker_roster::RosterChanged,
};

#[cfg(test)]
mod tests;

/// Handle of this thread's replica; not `Send`.
#[derive(Debug, Clone)]
pub struct ReplicaHandle {
    state: Rc<ReplicaState>,
    _actor: Addr<RouterReplica>,
}

/// What the requests of one thread work on.
#[derive(Debug)]
struct ReplicaState {
    view: Arc<ArcSwap<RosterView>>,
    decider: RefCell<Decider>,
    links: RefCell<Links>,
    learner: BlockLearnerHandle,
    parity: ParityTable,
    latency: LatencyTable,
    kept_bytes: KeptBytes,
}

/// An answer whose first event has arrived.
struct Begun {
    worker: WorkerSlot,
    worker_id: WorkerId,
    policy: Arc<str>,
    overlap_blocks: u32,
    kv: ParityState,
    first: ResponseEvent,
    response: ResponseStream,
    reservation: Reservation,
    observers: AnswerObservers,
}

#[derive(Debug)]
struct RouterReplica {
    state: Rc<ReplicaState>,
    /// Held so that the roster runs for as long as the replica does.
    router: Router,
}

impl Actor for RouterReplica {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let changes = ctx.address().recipient();
        self.router.roster_listeners.register(changes);
        self.state.update_links();
    }
}

impl Handler<RosterChanged> for RouterReplica {
    type Result = ();

    fn handle(&mut self, _: RosterChanged, _: &mut Self::Context) {
        self.state.update_links();
    }
}

impl ReplicaHandle {
    /// Starts this thread's replica. Call it on an arbiter.
    pub fn start(router: Router) -> Self {
        let (index, load) = (router.index.clone(), router.load.clone());
        let state = Rc::new(ReplicaState {
            view: router.view.clone(),
            decider: RefCell::new(Decider::new(index, load, router.policies().clone())),
            links: RefCell::new(Links::new(router.links.clone())),
            learner: router.learner.clone(),
            parity: router.parity.clone(),
            latency: router.latency.clone(),
            kept_bytes: router.kept_bytes.clone(),
        });
        let actor = RouterReplica {
            state: state.clone(),
            router,
        };
        Self {
            state,
            _actor: actor.start(),
        }
    }

    /// Chooses a worker, sends the request there, and returns when the worker's first bytes have arrived. Until then a
    /// worker that fails, or that refuses the request for lack of room, is replaced by another one.
    ///
    /// # Errors
    /// No worker serves the model, none can take the request, the worker refused it, or the deadline passed: each as
    /// the client is to receive it.
    pub async fn route(&self, request: RouteRequest) -> Result<RoutedAnswer, WireError> {
        self.state.clone().route(request).await
    }
}

impl ReplicaState {
    /// Opens links to workers that joined, and closes links to workers that left.
    fn update_links(&self) {
        self.links.borrow_mut().follow(&self.view.load().workers);
    }

    async fn route(self: Rc<Self>, request: RouteRequest) -> Result<RoutedAnswer, WireError> {
        let deadline = Instant::now() + Duration::from_millis(request.generate.deadline_ms);
        self.route_by(request, Attempts::default(), deadline).await
    }

    /// Routes a request, or the rest of one, after these attempts.
    async fn route_by(
        self: Rc<Self>,
        mut request: RouteRequest,
        mut attempts: Attempts,
        deadline: Instant,
    ) -> Result<RoutedAnswer, WireError> {
        let view = self.view.load_full();
        let model = view
            .requested(&request.generate.model)
            .ok_or_else(|| client_errors::no_model(&request.generate.model))?;
        let blocks = model
            .hasher(&request.generate.lora, &request.generate.cache_salt)
            .hash(&request.tokens);
        loop {
            let attempt = self.attempt(&mut request, &blocks, attempts.failed(), deadline);
            let setback = match timeout_at(deadline, attempt).await {
                Ok(Ok(begun)) => return Ok(self.answer(begun, request, attempts, deadline)),
                Ok(Err(setback)) => setback,
                Err(_) => Setback::DeadlinePassed,
            };
            match attempts.after(setback, model.requested_name()) {
                NextStep::DecideAgain => {}
                NextStep::GiveUp(error) => return Err(error),
            }
        }
    }

    /// The answer to a request, from its first event on.
    fn answer(
        self: Rc<Self>,
        begun: Begun,
        request: RouteRequest,
        attempts: Attempts,
        deadline: Instant,
    ) -> RoutedAnswer {
        let stream = match begun.first {
            ResponseEvent::Data { tokens, ids, bytes } => {
                let failed = attempts.into_failed();
                let continuation =
                    Continuation::new(request, &bytes, begun.worker, failed, deadline, &self.kept_bytes)
                        .and_then(|mut continuation| {
                            continuation.delivered(tokens, &ids).then_some(continuation)
                        })
                        .map(|continuation| (continuation, self as Rc<dyn Reroute>));
                let (response, reservation) = (begun.response, begun.reservation);
                AnswerStream::new(bytes, response, reservation, begun.observers, deadline)
                    .continued_by(continuation)
            }
            ResponseEvent::End(summary) => {
                begun.observers.ended(summary);
                AnswerStream::ended(summary)
            }
        };
        RoutedAnswer {
            worker: begun.worker_id,
            policy: begun.policy,
            overlap_blocks: begun.overlap_blocks,
            kv: begun.kv,
            stream,
        }
    }

    /// Decides on a worker, sends the request there, and waits for its first bytes.
    async fn attempt(
        &self,
        request: &mut RouteRequest,
        blocks: &[SequenceHash],
        failed: &[WorkerSlot],
        deadline: Instant,
    ) -> Result<Begun, Setback> {
        // Loaded for each attempt, because workers may have joined or left since the last one.
        let view = self.view.load_full();
        let model = view
            .requested(&request.generate.model)
            .ok_or(Setback::ModelGone)?;
        let placement = self
            .decide(model, request, blocks, failed)
            .map_err(Setback::NoCandidate)?;
        if !failed.is_empty() && request.generate.continuation.is_none() {
            metrics::counter!("signalbox_requests_moved_total").increment(1);
        }
        request.generate.deadline_ms =
            u64::try_from(deadline.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX);
        let worker = placement.worker.clone();
        let sent = self.send(placement, request, model.block_size, blocks);
        sent.await.map_err(|error| {
            if may_move(&error) {
                debug!(request.id = %request.generate.id, worker.id = %worker.card.id, %error, "the worker failed before its first bytes");
            }
            Setback::WorkerFailed { worker: worker.slot, error }
        })
    }

    fn decide(
        &self,
        model: &ModelEntry,
        request: &RouteRequest,
        blocks: &[SequenceHash],
        failed: &[WorkerSlot],
    ) -> Result<Placement, NoCandidate> {
        let sampling = &request.generate.sampling;
        let demand = Demand {
            prompt_tokens: u32::try_from(request.tokens.len())
                .unwrap_or(u32::MAX)
                .saturating_add(request.unhashed_tokens),
            blocks,
            expected_output_tokens: sampling.max_tokens.saturating_mul(sampling.n),
            priority: request.generate.priority,
            session: request.session,
            lora: name_hash(&request.generate.lora),
        };
        let links = self.links.borrow();
        let continues = request.generate.continuation.is_some();
        let may_use = |worker: &WorkerEntry| {
            !failed.contains(&worker.slot)
                && links.is_usable(worker)
                && (!continues || worker.card.continues_answers)
        };
        let may_use = (!failed.is_empty() || !links.are_all_usable()).then_some(may_use);
        self.decider.borrow_mut().decide(model, demand, may_use)
    }

    /// Sends the request to the chosen worker and waits for its first bytes.
    async fn send(
        &self,
        placement: Placement,
        request: &mut RouteRequest,
        block_size: u32,
        blocks: &[SequenceHash],
    ) -> Result<Begun, LinkError> {
        let Placement {
            worker,
            policy,
            overlap_blocks,
            uncached_tokens,
            mut reservation,
        } = placement;
        let learned = self.learner.decided(&worker, block_size, overlap_blocks);
        let kv = self.parity.state(worker.slot);
        request.generate.overlap_blocks = overlap_blocks;
        request.generate.wants_token_ids = is_continuable(request, &worker.card);
        let link = self.links.borrow_mut().get(&worker);
        let parts = CallParts {
            call: Call::Generate(request.generate.clone()),
            tokens: std::mem::take(&mut request.tokens),
            body: request.body.clone(),
        };
        let opened = link.open(&parts);
        // The tokens go back into the request, for another worker if this one fails.
        request.tokens = parts.tokens;
        let (mut response, sent) = (opened?, Instant::now());
        let first = first_bytes(&mut response, &mut reservation).await?;
        let generate = &request.generate;
        let timer = generate.format.stream.then(|| {
            let choices = generate.sampling.n;
            self.latency
                .first_bytes(worker.slot, sent, uncached_tokens, choices)
        });
        let learned = learned.and_then(|learned| self.learner.begun(learned, blocks));
        Ok(Begun {
            worker: worker.slot,
            worker_id: worker.card.id.clone(),
            policy,
            overlap_blocks,
            kv,
            first,
            response,
            reservation,
            observers: AnswerObservers { timer, learned },
        })
    }
}

impl Reroute for ReplicaState {
    fn reroute(self: Rc<Self>, interrupted: Interrupted) -> Resumed {
        Box::pin(async move {
            let Interrupted {
                request,
                failed,
                error,
                deadline,
            } = interrupted;
            tracing::info!(
                request.id = %request.generate.id, %error,
                "a worker failed in the middle of an answer; another worker is asked for the rest"
            );
            let attempts = Attempts::resumed(failed, error);
            let continued = self.route_by(request, attempts, deadline).await?;
            metrics::counter!("signalbox_requests_continued_total").increment(1);
            Ok(continued)
        })
    }
}

/// The first event of an answer. When it arrives, successful or not, the reserved prefill load is released.
async fn first_bytes(
    response: &mut ResponseStream,
    reservation: &mut Reservation,
) -> Result<ResponseEvent, LinkError> {
    let event = response
        .next()
        .await
        .unwrap_or(Ok(ResponseEvent::End(Default::default())));
    reservation.first_token();
    event
}
