//! The router replica of one HTTP thread.
//!
//! [`RouterReplica`] is an actor on the thread's arbiter: the roster notifies it of changes, and it keeps one link to
//! every worker. Requests do not queue in its mailbox: [`ReplicaHandle::route`] works on the replica's state
//! directly, on the same thread, so that a decision costs no hop.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use actix::prelude::*;
use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::StreamExt;
use signalbox_kv_index::WorkerSlot;
use signalbox_policy_host::RequestKeys;
use signalbox_protocol::{
    Ability, Call, GenerateRequest, ParityState, WireError, WorkerCard, WorkerId, name_hash,
};
use signalbox_request_plane::{CallParts, LinkError, ResponseEvent, ResponseStream, TokenIds};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::debug;

use crate::{
    answer::{AnswerObservers, AnswerStream, Reroute, Resumed, RoutedAnswer},
    attempt_report::AttemptReport,
    attempts::{Attempts, MAX_ATTEMPTS, NextStep, Setback, may_move},
    block_learner::BlockLearnerHandle,
    breaker::Fault,
    candidates::NoCandidate,
    client_errors,
    context_need::answer_limit,
    continuation::{Continuation, Interrupted, KeptBytes, is_continuable},
    decide::{Decider, Demand, Placement},
    latency::LatencyTable,
    links::Links,
    load::{LoadTable, Reservation},
    outcome::{OutcomeQueue, OutcomeReporter},
    parity::ParityTable,
    patience::{Expected, Patience, Silence},
    prepared_request::{FormedRequest, PreparedRequest},
    retries::{PromptId, Retries},
    roster::{ModelEntry, PromptForm, RosterView, WorkerEntry},
    roster_listeners::RosterChanged,
    route_request::RouteRequest,
    router::Router,
    versioned_prompt::VersionedPrompt,
};

#[cfg(test)]
mod tests;

/// How often policy instances that are not used any more are looked for. They may stay for minutes, so this need not be
/// often.
const UNUSED_RUNNERS_INTERVAL: Duration = Duration::from_secs(60);

/// How often policies that learn receive the outcomes of requests: often enough to follow a worker that slows down, and
/// seldom enough that a call has many outcomes.
const OBSERVE_INTERVAL: Duration = Duration::from_millis(250);

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
    outcomes: OutcomeQueue,
    load: LoadTable,
    retries: Retries,
    patience: Rc<Patience>,
}

/// An answer whose first event has arrived.
struct Begun {
    worker: WorkerSlot,
    /// The form of the prompt that the worker got.
    form: PromptForm,
    worker_id: WorkerId,
    policy: Arc<str>,
    overlap_blocks: u32,
    kv: ParityState,
    explanation: Option<String>,
    first: FirstPiece,
    response: ResponseStream,
    reservation: Reservation,
    observers: AnswerObservers,
}

/// An attempt without a first piece.
struct FailedAttempt {
    error: LinkError,
    /// Whether the connection was lost, and the request has lost a worker before.
    is_lost_twice: bool,
}

impl From<LinkError> for FailedAttempt {
    fn from(error: LinkError) -> Self {
        Self {
            error,
            is_lost_twice: false,
        }
    }
}

/// Why an attempt has no first piece.
enum NoFirst {
    /// The worker refused the request, or was lost.
    Failed(LinkError),
    /// The worker sends nothing.
    Stuck(LinkError),
}

impl NoFirst {
    fn link(&self) -> &LinkError {
        let (Self::Failed(error) | Self::Stuck(error)) = self;
        error
    }
}

/// What bounds the wait for a first piece.
struct FirstWait<'a> {
    /// How many workers failed the request before.
    attempt: usize,
    /// Whether another worker may take the request now.
    has_other: &'a dyn Fn() -> bool,
}

/// The first piece of an answer.
struct FirstPiece {
    tokens: u32,
    ids: TokenIds,
    bytes: Bytes,
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
        ctx.run_interval(OBSERVE_INTERVAL, |replica, _| replica.state.observe());
        ctx.run_interval(UNUSED_RUNNERS_INTERVAL, |replica, _| {
            let state = &replica.state;
            state.decider.borrow_mut().drop_unused_runners(&state.view.load());
        });
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
        let (retries, own_load) = (router.retries.clone(), load.clone());
        let patience = Patience::new(router.token_timeouts, load.clone(), router.latency.clone());
        let state = Rc::new(ReplicaState {
            view: router.view.clone(),
            decider: RefCell::new(
                Decider::new(index, load, router.policies().clone())
                    .with_tables(router.latency.clone(), router.affinity.clone())
                    .with_log(router.decisions.add()),
            ),
            links: RefCell::new(Links::new(router.links.clone())),
            learner: router.learner.clone(),
            parity: router.parity.clone(),
            latency: router.latency.clone(),
            kept_bytes: router.kept_bytes.clone(),
            outcomes: OutcomeQueue::default(),
            load: own_load,
            retries,
            patience: Rc::new(patience),
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
    /// Gives policies the outcomes of the requests that have ended.
    fn observe(&self) {
        for (model, outcomes) in self.outcomes.take() {
            self.decider.borrow_mut().observe(&model, &outcomes);
        }
    }

    /// Opens links to workers that joined, and closes links to workers that left.
    fn update_links(&self) {
        self.links.borrow_mut().follow(&self.view.load().workers);
    }

    async fn route(self: Rc<Self>, request: RouteRequest) -> Result<RoutedAnswer, WireError> {
        let deadline = Instant::now() + Duration::from_millis(request.generate.deadline_ms);
        self.retries.arrived();
        self.route_by(request, Attempts::default(), deadline).await
    }

    /// Routes a request, or the rest of one, after these attempts.
    async fn route_by(
        self: Rc<Self>,
        request: RouteRequest,
        mut attempts: Attempts,
        deadline: Instant,
    ) -> Result<RoutedAnswer, WireError> {
        let name = &request.generate.model;
        if self.view.load().requested(name).is_none() {
            return Err(client_errors::no_model(name));
        }
        let mut request = PreparedRequest::new(request);
        loop {
            let attempt = self.attempt(&mut request, &attempts, deadline);
            let setback = match timeout_at(deadline, attempt).await {
                Ok(Ok(begun)) => return self.answer(begun, request, attempts, deadline),
                Ok(Err(setback)) => setback,
                Err(_) => Setback::DeadlinePassed,
            };
            let model = &request.any().generate.model;
            match attempts.after(setback, model) {
                NextStep::DecideAgain => {}
                NextStep::Retry if self.retries.may_retry() => {}
                NextStep::Retry => return Err(attempts.out_of_budget(model)),
                NextStep::GiveUp(error) => return Err(error),
            }
        }
    }

    /// The answer to a request, from its first event on.
    fn answer(
        self: Rc<Self>,
        begun: Begun,
        request: PreparedRequest,
        attempts: Attempts,
        deadline: Instant,
    ) -> Result<RoutedAnswer, WireError> {
        // An answer is continued by workers that read prompts in the same form: its tokens are theirs.
        let request = request.into_form(begun.form).ok_or_else(client_errors::no_end)?;
        let FirstPiece { tokens, ids, bytes } = begun.first;
        let silence = Silence::of(begun.worker, self.patience.clone());
        let failed = attempts.into_failed();
        let continuation =
            Continuation::new(request, &bytes, begun.worker, failed, deadline, &self.kept_bytes)
                .and_then(|mut continuation| continuation.delivered(tokens, &ids).then_some(continuation))
                .map(|continuation| (continuation, self as Rc<dyn Reroute>));
        let (response, reservation) = (begun.response, begun.reservation);
        let stream = AnswerStream::new(bytes, response, reservation, begun.observers, deadline)
            .begun_with(tokens)
            .watched_by(silence)
            .continued_by(continuation);
        Ok(RoutedAnswer {
            worker: begun.worker_id,
            policy: begun.policy,
            overlap_blocks: begun.overlap_blocks,
            kv: begun.kv,
            explanation: begun.explanation,
            stream,
        })
    }

    /// Decides on a worker, sends the request there, and waits for its first bytes.
    async fn attempt(
        &self,
        request: &mut PreparedRequest,
        attempts: &Attempts,
        deadline: Instant,
    ) -> Result<Begun, Setback> {
        // Loaded for each attempt, because workers may have joined or left since the last one.
        let view = self.view.load_full();
        let model = view
            .requested(&request.any().generate.model)
            .ok_or(Setback::ModelGone)?;
        request.hash_for(model);
        let prompt_id = request.prompt_id();
        if self.retries.is_refused(prompt_id) {
            metrics::counter!("signalbox_requests_refused_after_losses_total").increment(1);
            return Err(Setback::LostTwice);
        }
        let placement = self
            .decide(model, request, attempts, deadline)
            .map_err(Setback::NoCandidate)?;
        let formed = request
            .in_form(placement.worker.version.form)
            .ok_or(Setback::NoCandidate(NoCandidate::Unavailable))?;
        let generate = &mut formed.request.generate;
        if !attempts.failed().is_empty() && generate.continuation.is_none() {
            metrics::counter!("signalbox_requests_moved_total").increment(1);
        }
        generate.deadline_ms =
            u64::try_from(deadline.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX);
        let (id, worker) = (generate.id.clone(), placement.worker.clone());
        let has_other = || self.has_other_among(model, attempts.failed(), worker.slot);
        let wait = FirstWait {
            attempt: attempts.failed().len(),
            has_other: &has_other,
        };
        self.send(placement, formed, prompt_id, wait).await.map_err(|failed| {
            let FailedAttempt { error, is_lost_twice } = failed;
            if may_move(&error) {
                debug!(request.id = %id, worker.id = %worker.card.id, %error, "the worker failed before its first bytes");
            }
            if is_lost_twice {
                return Setback::LostTwice;
            }
            Setback::WorkerFailed {
                worker: worker.slot,
                context_length: worker.card.context_length,
                error,
            }
        })
    }

    fn decide(
        &self,
        model: &ModelEntry,
        request: &PreparedRequest,
        attempts: &Attempts,
        deadline: Instant,
    ) -> Result<Placement, NoCandidate> {
        let prompt = |version| request.prompt(version, attempts.too_short());
        if let [only] = model.versions.as_slice() {
            let prompt = prompt(only).ok_or(NoCandidate::Unavailable)?;
            return self.decide_among(model, request.any(), &[prompt], attempts, deadline);
        }
        let prompts: Vec<_> = model.versions.iter().filter_map(prompt).collect();
        self.decide_among(model, request.any(), &prompts, attempts, deadline)
    }

    fn decide_among(
        &self,
        model: &ModelEntry,
        request: &RouteRequest,
        prompts: &[VersionedPrompt<'_>],
        attempts: &Attempts,
        deadline: Instant,
    ) -> Result<Placement, NoCandidate> {
        let generate = &request.generate;
        let sampling = &generate.sampling;
        let keys = RequestKeys {
            lora: name_hash(&generate.lora),
            cache_salt: name_hash(&generate.cache_salt),
            ..request.keys.clone()
        };
        let demand = Demand {
            request: Some(&generate.id),
            prompts,
            expected_output_tokens: sampling.max_tokens.saturating_mul(sampling.n),
            choices: sampling.n,
            max_output_tokens: request.max_output_tokens,
            priority: generate.priority,
            attempt: u32::try_from(attempts.failed().len()).unwrap_or(u32::MAX),
            deadline_ms: deadline.saturating_duration_since(Instant::now()).as_secs_f32() * 1e3,
            keys: &keys,
            explained: request.explained,
        };
        let (links, failed) = (self.links.borrow(), attempts.failed());
        let continues = generate.continuation.is_some();
        if let Some(ability) = generate.needs().find(|ability| !any_has(model, *ability)) {
            return Err(NoCandidate::Unable(ability));
        }
        let choices = sampling.n;
        if choices > 1
            && let Some(most) = most_choices(model).filter(|most| choices > *most)
        {
            return Err(NoCandidate::TooManyChoices { choices, most });
        }
        let is_choosy = choices > 1 || generate.needs().next().is_some();
        let may_take = |worker: &WorkerEntry| {
            !failed.contains(&worker.slot)
                && (!continues || worker.card.continues_answers)
                && choices_at(&worker.card) >= choices
                && worker.card.has_all(generate.needs())
        };
        let mut decider = self.decider.borrow_mut();
        if links.are_all_up() {
            let may_use = (!failed.is_empty() || continues || is_choosy).then_some(may_take);
            return decider.decide(model, demand, may_use);
        }
        let is_up = |worker: &WorkerEntry| may_take(worker) && links.is_up(worker);
        decider.decide(model, demand, Some(is_up)).or_else(|reason| {
            if matches!(reason, NoCandidate::Rejected(_)) {
                return Err(reason);
            }
            // The dial of a worker that just started takes a millisecond; that of one that is gone, as long as it may.
            let is_usable = |worker: &WorkerEntry| may_take(worker) && links.is_usable(worker);
            decider.decide(model, demand, Some(is_usable))
        })
    }

    /// Whether a worker of the model besides these may take the place of `worker` now.
    fn has_other_among(&self, model: &ModelEntry, failed: &[WorkerSlot], worker: WorkerSlot) -> bool {
        let links = self.links.borrow();
        let most_requests = &model.workers.columns().most_requests;
        let has_room = |other: &WorkerEntry, most: u32| self.load.get(other.slot).requests < most;
        let replaced = model.workers.iter().find(|entry| entry.slot == worker);
        failed.len() + 1 < MAX_ATTEMPTS
            && model.workers.iter().zip(most_requests).any(|(other, most)| {
                other.slot != worker
                    && !failed.contains(&other.slot)
                    && links.is_up(other)
                    && !self.load.health().mark(other.slot).is_ejected
                    && has_room(other, *most)
                    && replaced.is_none_or(|replaced| can_replace(other, replaced))
            })
    }

    /// Waits for the first bytes, unless the worker is stuck and another one may take the request.
    async fn in_time(
        &self,
        first: impl Future<Output = Result<FirstPiece, LinkError>>,
        worker: &WorkerEntry,
        expected: Expected,
        latest_piece: &Cell<Instant>,
        wait: FirstWait<'_>,
    ) -> Result<FirstPiece, NoFirst> {
        let Some(mut least) = self.patience.timeouts().first else {
            return first.await.map_err(NoFirst::Failed);
        };
        // Where one worker after another is given up, the cause is rarely theirs.
        least *= 1 << wait.attempt.min(MAX_ATTEMPTS);
        tokio::pin!(first);
        let mut look_at = latest_piece.get() + least;
        loop {
            tokio::select! {
                biased;
                first = &mut first => return first.map_err(NoFirst::Failed),
                () = sleep_until(look_at) => {}
            }
            let quiet = latest_piece.get().elapsed();
            if self.patience.is_stuck(worker.slot, quiet, least, expected) && (wait.has_other)() {
                return Err(NoFirst::Stuck(client_errors::no_token(quiet).into()));
            }
            look_at = Instant::now() + Silence::LOOK_EVERY;
        }
    }

    /// Sends the request to the chosen worker and waits for its first bytes.
    async fn send(
        &self,
        placement: Placement,
        formed: &mut FormedRequest,
        prompt: PromptId,
        wait: FirstWait<'_>,
    ) -> Result<Begun, FailedAttempt> {
        let Placement {
            worker,
            policy,
            overlap_blocks,
            uncached_tokens,
            mut reservation,
            awaited,
            explanation,
        } = placement;
        let mut outcome = OutcomeReporter::new(awaited, self.outcomes.clone());
        let learned = self
            .learner
            .decided(&worker, worker.version.block_size, overlap_blocks);
        let kv = self.parity.state(worker.slot);
        let request = &mut formed.request;
        request.generate.overlap_blocks = overlap_blocks;
        request.generate.wants_token_ids = is_continuable(request, &worker.card);
        let link = self.links.borrow_mut().get(&worker);
        let parts = CallParts {
            call: Call::Generate(generate_at(request, &worker)),
            tokens: std::mem::take(&mut request.tokens),
            body: request.body.clone(),
        };
        let opened = link.open(&parts);
        // The tokens go back into the request, for another worker if this one fails.
        request.tokens = parts.tokens;
        let (mut response, sent) = (opened?, Instant::now());
        let attempt = AttemptReport {
            health: self.load.health().attempt(worker.slot, uncached_tokens),
            retries: self.retries.clone(),
            prompt,
        };
        let latest_piece = Cell::new(sent);
        let whole_answer = Expected::of(&formed.request.generate, &worker.card);
        let first = first_bytes(&mut response, &mut reservation, &mut outcome, &latest_piece);
        let first = match self
            .in_time(first, &worker, whole_answer, &latest_piece, wait)
            .await
        {
            Ok(first) => first,
            Err(error) => {
                let fault = match error {
                    NoFirst::Failed(_) => Fault::of(error.link()),
                    NoFirst::Stuck(_) => Some(Fault::NoFirstToken),
                };
                let is_lost_twice = attempt.failed(fault, error.link());
                let (NoFirst::Failed(error) | NoFirst::Stuck(error)) = error;
                return Err(FailedAttempt { error, is_lost_twice });
            }
        };
        let generate = &formed.request.generate;
        let timer = generate.format.stream.then(|| {
            let choices = generate.sampling.n;
            self.latency
                .first_bytes(worker.slot, sent, uncached_tokens, choices)
        });
        let blocks = formed.blocks(worker.version);
        let learned = learned.and_then(|learned| self.learner.begun(learned, blocks));
        Ok(Begun {
            worker: worker.slot,
            form: worker.version.form,
            worker_id: worker.card.id.clone(),
            policy,
            overlap_blocks,
            kv,
            explanation,
            first,
            response,
            reservation,
            observers: AnswerObservers {
                timer,
                learned,
                outcome: Some(outcome),
                attempt: Some(attempt),
            },
        })
    }
}

/// The request as this worker gets it: its answer fits into the worker's context.
fn generate_at(request: &RouteRequest, worker: &WorkerEntry) -> GenerateRequest {
    let mut generate = request.generate.clone();
    generate.sampling.max_tokens = answer_limit(request, &worker.card);
    generate
}

impl Reroute for ReplicaState {
    fn has_other(&self, model: &str, failed: &[WorkerSlot], worker: WorkerSlot) -> bool {
        let view = self.view.load();
        let model = view.requested(model);
        model.is_some_and(|model| self.has_other_among(model, failed, worker))
    }

    fn may_retry(&self) -> bool {
        self.retries.may_retry()
    }

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

/// Whether what `replaced` takes fits the other worker too.
fn can_replace(other: &WorkerEntry, replaced: &WorkerEntry) -> bool {
    other.version == replaced.version
        && other.card.context_length >= replaced.card.context_length
        && other.card.continues_answers >= replaced.card.continues_answers
        && other.card.has_all(replaced.card.abilities.iter().copied())
}

/// Whether a worker of the model honours what needs the ability. Without workers, the lack of them is what to report.
fn any_has(model: &ModelEntry, ability: Ability) -> bool {
    let mut workers = model.workers.iter();
    workers.len() == 0 || workers.any(|worker| worker.card.has_all(std::iter::once(ability)))
}

/// The most choices of one request that any worker of the model takes; `None` without workers.
fn most_choices(model: &ModelEntry) -> Option<u32> {
    model.workers.iter().map(|worker| choices_at(&worker.card)).max()
}

/// The most choices of one request that a worker takes. Each is a sequence of its own at an engine of this repository. An
/// engine that reads bodies itself has its own limit, and its own error.
fn choices_at(card: &WorkerCard) -> u32 {
    if card.reads_body {
        return u32::MAX;
    }
    card.capacity.most_requests()
}

/// The first bytes of an answer, and the tokens up to them. Pieces without bytes come before those of a whole answer, and
/// report how many tokens were generated. With the first of all, or an error, the reserved prefill load is released. An
/// answer that ends without bytes is an error: to the client it would look like a success.
async fn first_bytes(
    response: &mut ResponseStream,
    reservation: &mut Reservation,
    outcome: &mut OutcomeReporter,
    latest_piece: &Cell<Instant>,
) -> Result<FirstPiece, LinkError> {
    let mut generated = 0_u32;
    loop {
        match response.next().await.transpose() {
            Ok(Some(ResponseEvent::Data { tokens, ids, bytes })) => {
                reservation.generated(tokens);
                outcome.generated(tokens);
                generated = generated.saturating_add(tokens);
                if bytes.is_empty() {
                    latest_piece.set(Instant::now());
                } else {
                    return Ok(FirstPiece {
                        tokens: generated,
                        ids,
                        bytes,
                    });
                }
            }
            ended => {
                reservation.first_token();
                return Err(match ended? {
                    None => client_errors::no_end().into(),
                    Some(_) => client_errors::no_data().into(),
                });
            }
        }
    }
}
