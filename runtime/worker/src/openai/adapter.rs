//! The backend of a worker whose engine runs next door: one data-parallel rank of that engine.
//!
//! Each request has a task of its own, which ends with the request. Two more tasks keep the worker's report current:
//! one computes the load when the engine reports it or a request begins or ends, the other judges parity twice a
//! second.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use signalbox_event_plane::EventLog;
use signalbox_protocol::{
    BlockHasher, Endpoint, ErrorKind, LoadReport, LoraAdapter, Parity, SequenceHash, StreamSummary,
    WireError, WorkerCard,
};
use signalbox_request_plane::Responder;
use tokio::{
    runtime::Handle,
    sync::watch,
    task::AbortHandle,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    continuation_body::body_of_rest,
    engine::{Engine, TokenFacts},
    engine_phase::EnginePhase,
    facts::EngineFlavour,
    forward::{Answered, Forward},
    in_flight::InFlight,
    kv_events::{DropCause, KvEventFacts, KvEventSource, Replay},
    load::RankLoad,
    parity::{EventFacts, ParityJudge, RequestFacts},
    patience::Failure,
    request_body::Additions,
};
use crate::backend::{Backend, BackendRequest};

/// How often the pieces of answers are reported that come between other changes of the load. Routers wait for a second and
/// more before they take an engine for stuck.
const REPORT_PIECES_EVERY: Duration = Duration::from_millis(250);

/// How often parity is judged.
const JUDGE_EVERY: Duration = Duration::from_millis(500);

/// Starts the backend of one rank's worker, which publishes the rank's KV events in `log`. Needs a tokio runtime.
pub fn start_adapter(
    engine: Arc<Engine>,
    rank: u32,
    tokens: TokenFacts,
    card: &WorkerCard,
    log: &EventLog,
) -> Arc<dyn Backend> {
    Arc::new(Adapter::start(engine, rank, tokens, card, log))
}

/// The backend of one rank.
#[derive(Debug)]
struct Adapter {
    shared: Arc<Shared>,
    load: watch::Receiver<LoadReport>,
    parity: watch::Receiver<Parity>,
    stopping: watch::Sender<bool>,
    runtime: Handle,
    tasks: [AbortHandle; 2],
}

/// What the tasks of an adapter share.
#[derive(Debug)]
struct Shared {
    engine: Arc<Engine>,
    rank: u32,
    /// The model's name on the card: part of the block hashes.
    model: String,
    /// Chats at this engine may carry the router's tokens.
    sends_input_ids: bool,
    in_flight: InFlight,
    /// The engine's KV events; `None` if it publishes none.
    events: Option<KvEventSource>,
    judge: Mutex<ParityJudge>,
}

impl Adapter {
    fn start(engine: Arc<Engine>, rank: u32, tokens: TokenFacts, card: &WorkerCard, log: &EventLog) -> Self {
        let sends_input_ids = engine.facts().flavour == EngineFlavour::Sglang && tokens.chat_is_equal;
        let setup = engine.parity_setup(tokens);
        let judge = ParityJudge::new(setup, Instant::now());
        let (parity_sender, parity) = watch::channel(judge.verdict(Instant::now()));
        let (load_sender, load) = watch::channel(LoadReport::default());
        let shared = Arc::new(Shared {
            rank,
            events: engine.read_events(rank, card, log),
            model: card.model.clone(),
            sends_input_ids,
            in_flight: InFlight::default(),
            judge: Mutex::new(judge),
            engine,
        });
        let tasks = [
            tokio::spawn(shared.clone().report_load(load_sender)).abort_handle(),
            tokio::spawn(shared.clone().judge_parity(parity_sender)).abort_handle(),
        ];
        Self {
            shared,
            load,
            parity,
            stopping: watch::Sender::new(false),
            runtime: Handle::current(),
            tasks,
        }
    }
}

impl Backend for Adapter {
    fn generate(&self, request: BackendRequest, responder: Responder) {
        let phase = self.shared.engine.phase();
        if let EnginePhase::Gone(reason) = &*phase.borrow() {
            return responder.fail(WireError::new(ErrorKind::Unavailable, reason.clone()));
        }
        let shared = self.shared.clone();
        let mut stopping = self.stopping.subscribe();
        let guard = shared.in_flight.enter();
        self.runtime.spawn(async move {
            let outcome = tokio::select! {
                outcome = shared.answer(request, phase, &responder) => outcome,
                _ = stopping.wait_for(|stopping| *stopping) => Err(Failure::Error(WireError::new(
                    ErrorKind::Unavailable,
                    "the worker stops",
                ))),
            };
            match outcome {
                Ok(summary) => responder.end(summary),
                Err(Failure::Error(error)) => responder.fail(error),
                Err(Failure::CallerGone) => {
                    responder.fail(WireError::new(
                        ErrorKind::Cancelled,
                        "the caller closed the stream",
                    ));
                }
            }
            drop(guard);
        });
    }

    fn load(&self) -> watch::Receiver<LoadReport> {
        self.load.clone()
    }

    fn parity(&self) -> watch::Receiver<Parity> {
        self.parity.clone()
    }

    fn adapters(&self) -> watch::Receiver<Arc<[LoraAdapter]>> {
        self.shared.engine.adapters()
    }

    fn failed(&self) -> BoxFuture<'static, String> {
        let mut phase = self.shared.engine.phase();
        async move {
            loop {
                if let EnginePhase::Gone(reason) = &*phase.borrow_and_update() {
                    return reason.clone();
                }
                if phase.changed().await.is_err() {
                    // The watch was stopped, and nothing is known of the engine any more.
                    std::future::pending::<()>().await;
                }
            }
        }
        .boxed()
    }

    fn stop(&self) -> BoxFuture<'static, ()> {
        self.stopping.send_replace(true);
        self.tasks.iter().for_each(AbortHandle::abort);
        let in_flight = self.shared.in_flight.clone();
        async move {
            while in_flight.count() > 0 {
                in_flight.changed().await;
            }
        }
        .boxed()
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Shared {
    /// Forwards one request, and learns from its answer.
    async fn answer(
        &self,
        request: BackendRequest,
        phase: watch::Receiver<EnginePhase>,
        responder: &Responder,
    ) -> Result<StreamSummary, Failure> {
        let BackendRequest {
            generate,
            tokens,
            body,
        } = request;
        let endpoint = generate.format.endpoint;
        let states_tokens = matches!(endpoint, Endpoint::Chat | Endpoint::Completions) && !tokens.is_empty();
        let facts = self.engine.facts();
        let body = match &generate.continuation {
            None => body,
            Some(delivered) => body_of_rest(
                endpoint,
                &body,
                &tokens,
                delivered.delivered_tokens,
                facts.context_length,
            )
            .map_err(|reason| WireError::new(ErrorKind::Internal, reason))?,
        };
        let additions = Additions {
            flavour: facts.flavour,
            endpoint,
            wants_token_ids: states_tokens && self.judge.lock().takes_sample(),
            wants_continuation: generate.wants_token_ids,
            input_ids: if self.sends_input_ids { &tokens } else { &[] },
            lora: &generate.lora,
        };
        additions.check()?;
        let (body, added) = additions.apply(&body);
        let forward = Forward {
            upstream: &self.engine.upstream,
            request: &generate,
            body,
            added,
            rank: (facts.ranks > 1).then_some(self.rank),
            tokens: &tokens,
            phase,
            in_flight: &self.in_flight,
        };
        let answered = forward.run(responder).await?;
        // The rest of an answer is no request that a client sends again.
        if generate.continuation.is_some() {
            return Ok(answered.summary);
        }
        self.learn(
            &answered,
            &tokens,
            &generate.lora,
            &generate.cache_salt,
            generate.overlap_blocks,
        );
        Ok(answered.summary)
    }

    fn learn(&self, answered: &Answered, tokens: &[u32], lora: &str, cache_salt: &str, credited_blocks: u32) {
        let facts = RequestFacts {
            router_tokens: tokens,
            engine_tokens: answered.prompt_ids.as_deref(),
            cached_tokens: answered.cached_tokens,
            credited_blocks,
        };
        let block = || self.block_to_appear(tokens, lora, cache_salt);
        self.judge.lock().on_answer(&facts, block, Instant::now());
    }

    /// The last block of a prompt but one, or the only one. The last is not sure to be stored: an engine may keep the
    /// block of a prompt's last token out of its cache.
    fn block_to_appear(&self, tokens: &[u32], lora: &str, cache_salt: &str) -> Option<SequenceHash> {
        let size = self.engine.block_size() as usize;
        let blocks = match tokens.len() / size {
            0 => return None,
            1 => 1,
            whole => whole - 1,
        };
        let hasher = BlockHasher::new(&self.model, lora, cache_salt, size);
        hasher.hash(&tokens[..blocks * size]).pop()
    }

    async fn report_load(self: Arc<Self>, report: watch::Sender<LoadReport>) {
        let mut loads = self.engine.loads();
        let mut ticks = interval(REPORT_PIECES_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut load = RankLoad::new(self.engine.facts().kv_blocks.unwrap_or(0));
        loop {
            let open = self.in_flight.count();
            report.send_if_modified(|last| {
                let now = load.report(open, self.in_flight.pieces());
                std::mem::replace(last, now) != now
            });
            tokio::select! {
                () = self.in_flight.changed() => {}
                // Pieces that come meanwhile show that the engine is alive.
                _ = ticks.tick() => {}
                Ok(()) = loads.changed() => {
                    let reported = loads.borrow_and_update().get(self.rank as usize).copied().flatten();
                    if let Some(reported) = reported {
                        load.update(reported, self.in_flight.count());
                    }
                }
            }
        }
    }

    async fn judge_parity(self: Arc<Self>, report: watch::Sender<Parity>) {
        let mut ticks = interval(JUDGE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = Instant::now();
            let verdict = {
                let mut judge = self.judge.lock();
                if let Some(events) = &self.events {
                    let facts = events.facts();
                    judge.on_events(event_facts(&facts.borrow(), self.engine.block_size()), now);
                    judge.look_for_blocks(now, |block| events.has_appeared(block));
                }
                judge.verdict(now)
            };
            report.send_if_modified(|last| {
                let is_new = *last != verdict;
                *last = verdict;
                is_new
            });
        }
    }
}

/// What matters for parity of what is known about a stream of events, for blocks of `block_size` tokens.
fn event_facts(facts: &KvEventFacts, block_size: u32) -> EventFacts {
    let other_size = match facts.block_sizes.contains(&block_size) {
        true => None,
        false => facts.block_sizes.first().copied(),
    };
    EventFacts {
        is_connected: facts.connected,
        is_complete: facts.complete,
        has_replay: facts.replay != Replay::NotConfigured,
        other_block_size: other_size,
        has_token_pairs: facts.dropped.count(DropCause::TokenPairs) > 0,
    }
}
