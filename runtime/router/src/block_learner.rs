//! Learns which KV blocks workers without usable events hold, from the requests that this router sends them.
//!
//! A replica reports two facts about a request to such a worker: its answer has begun, and it has ended. The
//! [`BlockLearner`] actor passes them to the worker's [`ApproximateBlocks`] and applies what follows to the KV index. It
//! runs on the roster's arbiter, apart from the HTTP threads. When it cannot keep up, facts are dropped and counted:
//! the index then credits too little, and no request waits.
//!
//! A worker is learned while the load table has a [`LearningPeriod`] for it. `KvSource` begins and ends the periods on
//! the same arbiter, and empties the index each time. A fact of another period is ignored, so nothing that was learned
//! outlasts its period (K-1).

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use actix::prelude::*;
use futures_util::stream;
use metrics::{Counter, counter, describe_counter};
use signalbox_kv_index::{SharedKvIndex, WorkerSlot};
use signalbox_protocol::{KvEvent, SequenceHash, StreamSummary};
use tokio::{
    sync::{Mutex, mpsc},
    time::Instant,
};

use crate::{
    approximate::ApproximateBlocks,
    load::{LearningPeriod, LoadTable},
    roster::WorkerEntry,
    supervisor::ActorHandle,
};

#[cfg(test)]
mod tests;

/// Facts that may wait. A fact has the blocks of a prompt: 64 MiB of them, if all are of 128,000 tokens.
const MAX_FACTS: usize = 1_024;

/// Time between two checks for blocks whose time is over: short beside the time that blocks count.
const EXPIRY_CHECK: Duration = Duration::from_secs(1);

/// Gives the installed recorder the help text of each metric of this file.
pub(crate) fn describe_metrics() {
    describe_counter!(
        "signalbox_kv_learning_dropped_total",
        "Facts about requests from which the router could not learn KV blocks, because too many waited"
    );
}

/// The actor.
#[derive(Debug)]
pub(crate) struct BlockLearner {
    index: SharedKvIndex,
    load: LoadTable,
    /// Shared with the actor that takes over if this one fails. The mailbox would not do: its bound is one for each
    /// sender, and each request's copy of the address would be another sender.
    facts: Arc<Mutex<mpsc::Receiver<Fact>>>,
    workers: HashMap<WorkerSlot, (LearningPeriod, ApproximateBlocks)>,
}

/// What a replica reports.
#[derive(Debug)]
enum Fact {
    /// A worker has begun to answer a prompt.
    AnswerBegun(Arc<Prompt>),
    /// A worker has answered a prompt in full.
    AnswerEnded { prompt: Arc<Prompt>, cached_tokens: u32 },
    /// A test waits until every fact before this one is handled.
    #[cfg(test)]
    Settle(tokio::sync::oneshot::Sender<()>),
}

/// A prompt that a worker answers.
#[derive(Debug)]
struct Prompt {
    decision: LearnedDecision,
    blocks: Box<[SequenceHash]>,
}

/// Handle for the HTTP threads.
#[derive(Clone)]
pub(crate) struct BlockLearnerHandle {
    /// Held so that the actor is started again if it fails.
    _actor: ActorHandle<BlockLearner>,
    facts: mpsc::Sender<Fact>,
    load: LoadTable,
    dropped: Counter,
}

/// A decision for a worker whose blocks the router learns.
#[derive(Debug)]
pub(crate) struct LearnedDecision {
    worker: WorkerSlot,
    /// The period at the decision.
    period: LearningPeriod,
    /// The worker's capacity in KV blocks; 0 if it is unknown.
    kv_blocks: u32,
    block_size: u32,
    /// Leading blocks that the index credited the worker with.
    credited: u32,
}

/// An answer under way of a worker whose blocks the router learns.
#[derive(Debug)]
pub(crate) struct LearnedAnswer {
    learner: BlockLearnerHandle,
    prompt: Arc<Prompt>,
}

impl BlockLearnerHandle {
    /// Starts the learner on another arbiter.
    pub(crate) fn start_in_arbiter(arbiter: &ArbiterHandle, index: SharedKvIndex, load: LoadTable) -> Self {
        Self::start_by(index, load, |build| {
            ActorHandle::start_in_arbiter(arbiter, "block_learner", build)
        })
    }

    /// Starts the learner on this thread's arbiter.
    #[cfg(test)]
    pub(crate) fn start(index: SharedKvIndex, load: LoadTable) -> Self {
        Self::start_by(index, load, |build| ActorHandle::start("block_learner", build))
    }

    fn start_by(
        index: SharedKvIndex,
        load: LoadTable,
        start: impl FnOnce(Box<dyn FnMut() -> BlockLearner + Send>) -> ActorHandle<BlockLearner>,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(MAX_FACTS);
        let (receiver, learned_load) = (Arc::new(Mutex::new(receiver)), load.clone());
        let build = move || BlockLearner {
            index: index.clone(),
            load: learned_load.clone(),
            facts: receiver.clone(),
            workers: HashMap::new(),
        };
        Self {
            _actor: start(Box::new(build)),
            facts: sender,
            load,
            dropped: counter!("signalbox_kv_learning_dropped_total"),
        }
    }

    /// A request was placed on `worker`, which the index credits with its first `credited` blocks. `None` unless the
    /// router learns the worker's blocks.
    pub(crate) fn decided(
        &self,
        worker: &WorkerEntry,
        block_size: u32,
        credited: u32,
    ) -> Option<LearnedDecision> {
        Some(LearnedDecision {
            worker: worker.slot,
            period: self.load.learning_period(worker.slot)?,
            kv_blocks: worker.card.capacity.kv_blocks,
            block_size,
            credited,
        })
    }

    /// The worker has begun to answer: it has computed the prompt, which has these blocks.
    pub(crate) fn begun(&self, decision: LearnedDecision, blocks: &[SequenceHash]) -> Option<LearnedAnswer> {
        if blocks.is_empty() {
            return None;
        }
        let blocks = blocks.into();
        let prompt = Arc::new(Prompt { decision, blocks });
        self.report(Fact::AnswerBegun(prompt.clone()));
        Some(LearnedAnswer {
            learner: self.clone(),
            prompt,
        })
    }

    fn report(&self, fact: Fact) {
        if self.facts.try_send(fact).is_err() {
            self.dropped.increment(1);
        }
    }
}

impl fmt::Debug for BlockLearnerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockLearnerHandle").finish_non_exhaustive()
    }
}

impl LearnedAnswer {
    /// The answer ended without an error.
    pub(crate) fn ended(self, summary: StreamSummary) {
        self.learner.report(Fact::AnswerEnded {
            prompt: self.prompt,
            cached_tokens: summary.cached_tokens,
        });
    }
}

impl BlockLearner {
    /// Changes the blocks of the prompt's worker, and the index with them. Does nothing if the prompt's period is over.
    fn change(&mut self, prompt: &Prompt, change: impl FnOnce(&mut ApproximateBlocks) -> Vec<KvEvent>) {
        let LearnedDecision {
            worker,
            period: present,
            kv_blocks,
            ..
        } = prompt.decision;
        if self.load.learning_period(worker) != Some(present) {
            return;
        }
        let new = || (present, ApproximateBlocks::new(kv_blocks));
        let (period, blocks) = self.workers.entry(worker).or_insert_with(new);
        if *period != present {
            (*period, *blocks) = new();
        }
        let events = change(blocks);
        self.apply(worker, &events);
    }

    fn apply(&self, worker: WorkerSlot, events: &[KvEvent]) {
        if !events.is_empty() {
            self.index.apply_all(worker, events);
            self.load.refresh_indexed_blocks(worker, &self.index);
        }
    }

    /// Forgets workers whose period is over, and removes the blocks whose time is over.
    fn expire(&mut self) {
        let load = &self.load;
        self.workers
            .retain(|worker, (period, _)| load.learning_period(*worker) == Some(*period));
        let now = Instant::now();
        let expired = self.workers.iter_mut();
        let expired: Vec<_> = expired
            .map(|(worker, (_, blocks))| (*worker, blocks.expire(now)))
            .collect();
        for (worker, events) in expired {
            self.apply(worker, &events);
        }
    }
}

impl Actor for BlockLearner {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // After a failure: what the failed actor had learned is lost, so nothing would ever remove its credit.
        for worker in self.load.learned_workers() {
            self.index.remove_worker(worker);
            self.load.refresh_indexed_blocks(worker, &self.index);
        }
        ctx.add_stream(stream::unfold(self.facts.clone(), async |facts| {
            let fact = facts.lock().await.recv().await?;
            Some((fact, facts))
        }));
        ctx.run_interval(EXPIRY_CHECK, |actor, _| actor.expire());
    }
}

/// The stream ends when the last handle is dropped, and the actor with it.
impl StreamHandler<Fact> for BlockLearner {
    fn handle(&mut self, fact: Fact, _: &mut Self::Context) {
        match fact {
            Fact::AnswerBegun(prompt) => {
                self.change(&prompt, |learned| learned.learn(&prompt.blocks, Instant::now()));
            }
            Fact::AnswerEnded {
                prompt,
                cached_tokens,
            } => {
                let LearnedDecision {
                    credited, block_size, ..
                } = prompt.decision;
                self.change(&prompt, |learned| {
                    learned.correct(&prompt.blocks, credited, cached_tokens, block_size)
                });
            }
            #[cfg(test)]
            Fact::Settle(settled) => {
                let _ = settled.send(());
            }
        }
    }
}

#[cfg(test)]
impl Handler<crate::supervisor::Panic> for BlockLearner {
    type Result = ();

    fn handle(&mut self, _: crate::supervisor::Panic, _: &mut Self::Context) {
        panic!("this panic is part of the test");
    }
}
