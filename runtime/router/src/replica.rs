//! The router replica of one HTTP thread.
//!
//! [`RouterReplica`] is an actor on the thread's arbiter: the roster tells it of changes, and it keeps one link to
//! every worker. Requests do not queue in its mailbox: [`ReplicaHandle::route`] works on the replica's state
//! directly, on the same thread, so that deciding costs no hop.

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use actix::prelude::*;
use bytes::Bytes;
use futures_util::StreamExt;
use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{Call, ErrorKind, GenerateRequest, SequenceHash, WireError, name_hash};
use signalbox_request_plane::{CallParts, LinkError, ResponseEvent, ResponseStream};
use tracing::debug;

use crate::{
    answer::{AnswerStream, RoutedAnswer, lost},
    candidates::NoCandidate,
    decide::{Decider, Demand, Placement},
    links::Links,
    load::Reservation,
    roster::{ModelEntry, WorkerEntry},
    router::Router,
    worker_roster::{RegisterReplica, RosterChanged},
};

/// Most workers one request is tried on. More would turn a request that kills workers into an outage.
const MAX_ATTEMPTS: usize = 4;

/// One request to route.
#[derive(Debug)]
pub struct RouteRequest {
    /// What to generate; `deadline_ms` counts from now.
    pub generate: GenerateRequest,
    /// The prompt.
    pub tokens: Vec<u32>,
    /// The client's body, for engines that read it themselves.
    pub body: Bytes,
    /// Greater is more urgent; 0 is usual.
    pub priority: i32,
    /// Hash of the client's session or user; 0 for none.
    pub session: u64,
}

/// Handle of this thread's replica; not `Send`.
#[derive(Debug, Clone)]
pub struct ReplicaHandle {
    state: Rc<ReplicaState>,
    _actor: Addr<RouterReplica>,
}

#[derive(Debug)]
struct ReplicaState {
    router: Router,
    decider: RefCell<Decider>,
    links: RefCell<Links>,
}

#[derive(Debug)]
struct RouterReplica {
    state: Rc<ReplicaState>,
}

impl Actor for RouterReplica {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let changes = ctx.address().recipient();
        #[expect(
            clippy::disallowed_methods,
            reason = "a control message, once in the thread's life"
        )]
        self.state.router.roster.do_send(RegisterReplica(changes));
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
        let decider = RefCell::new(Decider::new(index, load, router.policies().clone()));
        let state = Rc::new(ReplicaState {
            router,
            decider,
            links: RefCell::default(),
        });
        Self {
            _actor: RouterReplica { state: state.clone() }.start(),
            state,
        }
    }

    /// Decides, sends, and answers when the worker's first bytes are here. Until then a worker that fails or refuses
    /// for want of room is replaced by another one.
    pub async fn route(&self, request: RouteRequest) -> Result<RoutedAnswer, WireError> {
        let deadline = Instant::now() + Duration::from_millis(request.generate.deadline_ms);
        match tokio::time::timeout_at(deadline.into(), self.try_workers(request, deadline)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(WireError::new(
                ErrorKind::DeadlineExceeded,
                "no worker answered within the request's deadline",
            )),
        }
    }

    async fn try_workers(
        &self,
        mut request: RouteRequest,
        deadline: Instant,
    ) -> Result<RoutedAnswer, WireError> {
        let view = self.state.router.view.load_full();
        let model = view
            .models
            .get(&request.generate.model)
            .ok_or_else(|| no_model(&request.generate.model))?;
        let blocks = model
            .hasher(&request.generate.lora, &request.generate.cache_salt)
            .hash(&request.tokens);
        let mut failed: Vec<WorkerSlot> = Vec::new();
        let mut last_error = None;
        for _ in 0..MAX_ATTEMPTS {
            // Workers may have come or gone since the last attempt.
            let view = self.state.router.view.load_full();
            let Some(model) = view.models.get(&model.name) else {
                break;
            };
            let placement = match self.state.decide(model, &request, &blocks, &failed) {
                Ok(placement) => placement,
                Err(reason) => return Err(last_error.unwrap_or_else(|| no_candidate(reason, &model.name))),
            };
            request.generate.deadline_ms =
                u64::try_from(deadline.saturating_duration_since(Instant::now()).as_millis())
                    .unwrap_or(u64::MAX);
            let worker = placement.worker.clone();
            match self.state.attempt(placement, &mut request, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(error) if may_move(&error) => {
                    debug!(request.id = %request.generate.id, worker.id = %worker.card.id, %error, "trying another worker");
                    metrics::counter!("signalbox_requests_moved_total").increment(1);
                    failed.push(worker.slot);
                    last_error = Some(lost(error));
                }
                Err(error) => return Err(lost(error)),
            }
        }
        Err(last_error.unwrap_or_else(|| no_candidate(NoCandidate::Unavailable, &model.name)))
    }
}

impl ReplicaState {
    /// Opens links to newcomers and closes those to workers that left.
    fn update_links(&self) {
        self.links
            .borrow_mut()
            .follow(&self.router.view.load(), &self.router);
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
            prompt_tokens: u32::try_from(request.tokens.len()).unwrap_or(u32::MAX),
            blocks,
            expected_output_tokens: sampling.max_tokens.saturating_mul(sampling.n),
            priority: request.priority,
            session: request.session,
            lora: name_hash(&request.generate.lora),
        };
        let links = self.links.borrow();
        let may_use = |worker: &WorkerEntry| !failed.contains(&worker.slot) && links.is_usable(worker);
        let may_use = (!failed.is_empty() || !links.are_all_usable()).then_some(may_use);
        self.decider.borrow_mut().decide(model, demand, may_use)
    }

    /// Sends the request to the chosen worker and waits for its first bytes.
    async fn attempt(
        &self,
        placement: Placement,
        request: &mut RouteRequest,
        deadline: Instant,
    ) -> Result<RoutedAnswer, LinkError> {
        let link = self.links.borrow_mut().get(&placement.worker, &self.router);
        let parts = CallParts {
            call: Call::Generate(request.generate.clone()),
            tokens: std::mem::take(&mut request.tokens),
            body: request.body.clone(),
        };
        let opened = link.open(&parts);
        // For another worker, should this one fail.
        request.tokens = parts.tokens;
        let mut response = opened?;
        let mut reservation = placement.reservation;
        let stream = match first_bytes(&mut response, &mut reservation).await? {
            ResponseEvent::Data { bytes, .. } => AnswerStream::new(bytes, response, reservation, deadline),
            ResponseEvent::End(summary) => AnswerStream::ended(summary),
        };
        Ok(RoutedAnswer {
            worker: placement.worker.card.id.clone(),
            policy: placement.policy,
            overlap_blocks: placement.overlap_blocks,
            stream,
        })
    }
}

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

/// Whether another worker may do better.
fn may_move(error: &LinkError) -> bool {
    match error {
        LinkError::Refused(error) => matches!(error.kind, ErrorKind::Overloaded | ErrorKind::Unavailable),
        _ => true,
    }
}

fn no_model(name: &str) -> WireError {
    WireError {
        kind: ErrorKind::NotFound,
        message: format!("no worker serves the model {name:?}; GET /v1/models lists those that are served"),
        param: Some("model".into()),
    }
}

fn no_candidate(reason: NoCandidate, model: &str) -> WireError {
    match reason {
        NoCandidate::Unavailable => WireError::new(
            ErrorKind::Unavailable,
            format!("no worker for the model {model:?} can be reached right now"),
        ),
        NoCandidate::Busy => WireError::new(
            ErrorKind::Overloaded,
            format!("every worker for the model {model:?} has as many requests as it takes; try again"),
        ),
    }
}
