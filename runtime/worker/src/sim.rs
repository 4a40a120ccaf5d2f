//! A simulated GPU engine: real scheduling and KV cache, made-up arithmetic.
//!
//! Routing depends on what workers hold in their KV caches and how busy they are. [`SimEngine`] behaves in both as a
//! real engine does, without a GPU: a paged KV cache with prefix reuse and LRU eviction, continuous batching under a
//! token budget, chunked prefill, preemption, and steps that take as long as a timing model says. It is for tests,
//! benchmarks and capacity planning. It promises:
//!
//! - the same request is answered the same, on every worker with the same seed, however it is batched;
//! - a step costs time proportional to the running sequences and allocates nothing for a token.
//!
//! A step, in this order: every decoding sequence gets a token; sequences in prefill share the rest of the budget,
//! oldest first; waiting sequences are admitted while budget, sequence and block limits allow. Where blocks run out
//! the youngest sequence gives all of its back and waits at the front of the queue, to be computed again.

use std::{collections::VecDeque, sync::Arc};

use signalbox_protocol::{ErrorKind, FinishReason, LoadReport, WireError, WorkerCapacity};

use crate::{
    block_pool::BlockPool,
    engine::{EngineInfo, NewSequence, SampledToken, SequenceId, StepEngine, StepOutput, StepStatus},
};

use self::{sequence::Sequence, timing::StepWork, words::TokenSource};

mod sequence;
#[cfg(test)]
mod tests;
mod timing;
mod words;

pub use self::words::ordinary_tokens;

/// What a simulated engine is like.
#[derive(Debug, Clone, PartialEq)]
pub struct SimConfig {
    /// Tokens per KV block, at least 1.
    pub block_size: u32,
    /// Blocks of the KV cache, at least 1.
    pub kv_blocks: u32,
    /// Most tokens of prompt and answer together; what the KV cache holds, where that is less.
    pub context_length: u32,
    /// Sequences that run at once, at least 1.
    pub max_sequences: u32,
    /// Sequences that wait beyond those before new ones are refused.
    pub max_waiting: u32,
    /// Tokens computed in one step, prefill and decode together; at least `max_sequences`, so that every running
    /// sequence gets its token.
    pub max_batched_tokens: u32,
    /// Everything takes the timing model's time divided by this; 0 for no time at all.
    pub speedup: f64,
    /// Another seed, other answers.
    pub seed: u64,
}

impl Default for SimConfig {
    /// About a mid-size model on one large GPU, in vLLM's terms: blocks of 16 tokens, 256 sequences, 8,192 tokens a
    /// step; 16,384 blocks are the default of Dynamo's mocker.
    fn default() -> Self {
        Self {
            block_size: 16,
            kv_blocks: 16_384,
            context_length: 32_768,
            max_sequences: 256,
            max_waiting: 1_024,
            max_batched_tokens: 8_192,
            speedup: 1.0,
            seed: 0,
        }
    }
}

/// Why a simulated engine could not be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SimError {
    /// A setting is too small.
    #[error("{name} of the simulated engine is {value}; it must be at least {least}")]
    TooSmall {
        /// The setting.
        name: &'static str,
        /// What was given.
        value: u32,
        /// What would do.
        least: u32,
    },
    /// The speed-up is negative or no number.
    #[error("speedup of the simulated engine is {0}; it must be 0 (no waiting) or a positive number")]
    Speedup(f64),
    /// There is nothing the engine could say.
    #[error("the vocabulary has no token that is ordinary text by itself")]
    NoWords,
}

/// The simulated engine.
#[derive(Debug)]
pub struct SimEngine {
    config: SimConfig,
    /// What it may say: see [`ordinary_tokens`].
    vocabulary: Arc<[u32]>,
    pool: BlockPool,
    /// In the order they were admitted.
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
}

/// What is left of a step, and what it does so far.
#[derive(Debug)]
struct StepPlan {
    budget: usize,
    work: StepWork,
    /// A sequence had to give its blocks back: nothing new is admitted in this step.
    preempted: bool,
}

impl SimEngine {
    /// An idle engine that speaks in tokens of `vocabulary`, for example [`ordinary_tokens`].
    pub fn new(config: SimConfig, vocabulary: Arc<[u32]>) -> Result<Self, SimError> {
        let at_least = |name, value, least| {
            if value < least {
                Err(SimError::TooSmall { name, value, least })
            } else {
                Ok(())
            }
        };
        at_least("block_size", config.block_size, 1)?;
        at_least("kv_blocks", config.kv_blocks, 1)?;
        at_least("max_sequences", config.max_sequences, 1)?;
        at_least(
            "max_batched_tokens",
            config.max_batched_tokens,
            config.max_sequences,
        )?;
        let held = config.kv_blocks.saturating_mul(config.block_size);
        let context_length = config.context_length.min(held);
        // A prompt of one token and an answer of one.
        at_least("context_length", context_length, 2)?;
        if !(config.speedup.is_finite() && config.speedup >= 0.0) {
            return Err(SimError::Speedup(config.speedup));
        }
        if vocabulary.is_empty() {
            return Err(SimError::NoWords);
        }
        Ok(Self {
            pool: BlockPool::new(config.kv_blocks),
            running: Vec::with_capacity(config.max_sequences as usize),
            waiting: VecDeque::new(),
            config: SimConfig {
                context_length,
                ..config
            },
            vocabulary,
        })
    }

    /// One token for each sequence that is past its prefill.
    fn decode(&mut self, plan: &mut StepPlan) {
        let mut place = 0;
        while place < self.running.len() {
            if self.running[place].is_decoding() && self.compute(place, 1, plan) {
                plan.work.decoding += 1;
                plan.budget = plan.budget.saturating_sub(1);
            }
            place += 1;
        }
    }

    /// Goes on with prefills that did not fit into the steps before.
    fn prefill(&mut self, plan: &mut StepPlan) {
        let mut place = 0;
        while place < self.running.len() && plan.budget > 0 {
            if self.running[place].remaining() > 0 && !self.running[place].is_decoding() {
                self.prefill_one(place, plan);
            }
            place += 1;
        }
    }

    fn admit(&mut self, plan: &mut StepPlan) {
        while plan.budget > 0 && !plan.preempted && self.running.len() < self.config.max_sequences as usize {
            let Some(next) = self.waiting.front() else { return };
            if !self.pool.admits(next.shareable(), next.needed_blocks() as u32) {
                return;
            }
            let Some(next) = self.waiting.pop_front() else {
                return;
            };
            self.running.push(next);
            self.prefill_one(self.running.len() - 1, plan);
        }
    }

    fn prefill_one(&mut self, place: usize, plan: &mut StepPlan) {
        let sequence = &mut self.running[place];
        sequence.share(&mut self.pool);
        let count = sequence.next_chunk(plan.budget);
        if self.compute(place, count, plan) {
            plan.work.prefill_tokens += count as u32;
            plan.budget -= count;
        }
    }

    /// Computes the next `count` tokens of the sequence at `place`. Where blocks run out, younger ones give theirs;
    /// false when there was none younger, and it was this one that had to.
    fn compute(&mut self, place: usize, count: usize, plan: &mut StepPlan) -> bool {
        while self.running[place].compute(&mut self.pool, count).is_err() {
            plan.preempted = true;
            let Some(mut youngest) = self.running.pop() else {
                return false;
            };
            youngest.release(&mut self.pool);
            self.waiting.push_front(youngest);
            if place == self.running.len() {
                return false;
            }
        }
        true
    }

    /// The next token of every sequence whose KV is complete, and the end of those that are over.
    fn sample(&mut self, output: &mut StepOutput) {
        for sequence in &mut self.running {
            if let Some(cached) = sequence.report_prefill() {
                output.prefilled.push((sequence.id, cached));
            }
            if sequence.remaining() > 0 || sequence.is_over() {
                continue;
            }
            let position = sequence.generated();
            let token = sequence.source.token(position, &self.vocabulary);
            let logprobs = sequence
                .logprobs
                .map(|top| sequence.source.logprobs(position, top, &self.vocabulary));
            sequence.push(token);
            output.tokens.push(SampledToken {
                sequence: sequence.id,
                token,
                logprobs,
            });
        }
        let pool = &mut self.pool;
        self.running.retain_mut(|sequence| {
            let over = sequence.is_over();
            if over {
                sequence.release(pool);
                output.finished.push((sequence.id, FinishReason::Length));
            }
            !over
        });
    }
}

impl StepEngine for SimEngine {
    fn info(&self) -> EngineInfo {
        EngineInfo {
            name: "sim",
            block_size: self.config.block_size,
            context_length: self.config.context_length,
            capacity: WorkerCapacity {
                kv_blocks: self.config.kv_blocks,
                max_sequences: self.config.max_sequences,
                max_waiting: self.config.max_waiting,
            },
        }
    }

    fn submit(&mut self, sequence: NewSequence) -> Result<(), WireError> {
        let context = self.config.context_length as usize;
        let prompt = sequence.tokens.len();
        if prompt == 0 {
            return Err(WireError::new(
                ErrorKind::InvalidRequest,
                "The prompt is empty; give at least one token.",
            ));
        }
        if prompt >= context {
            let message = format!(
                "The prompt has {prompt} tokens; this model's context holds {context}, one of them for the answer."
            );
            return Err(WireError::new(ErrorKind::ContextLengthExceeded, message));
        }
        if sequence.hasher.block_size() != self.config.block_size as usize {
            let message = format!(
                "the sequence is cut into KV blocks of {} tokens, the engine's have {}",
                sequence.hasher.block_size(),
                self.config.block_size
            );
            return Err(WireError::new(ErrorKind::Internal, message));
        }
        let most = self.config.max_sequences as usize + self.config.max_waiting as usize;
        if self.running.len() + self.waiting.len() >= most {
            let message =
                format!("This worker already has {most} sequences running and waiting; try again soon.");
            return Err(WireError::new(ErrorKind::Overloaded, message));
        }
        let source = TokenSource::new(
            self.config.seed,
            sequence.sampling.seed,
            &sequence.tokens,
            sequence.id,
        );
        let limit = prompt
            .saturating_add(sequence.sampling.max_tokens as usize)
            .min(context);
        self.waiting.push_back(Sequence::new(sequence, source, limit));
        Ok(())
    }

    fn cancel(&mut self, id: SequenceId) {
        if let Some(place) = self.running.iter().position(|sequence| sequence.id == id) {
            self.running.remove(place).release(&mut self.pool);
        } else if let Some(place) = self.waiting.iter().position(|sequence| sequence.id == id) {
            self.waiting.remove(place);
        }
    }

    fn step(&mut self, output: &mut StepOutput) -> StepStatus {
        let mut plan = StepPlan {
            budget: self.config.max_batched_tokens as usize,
            work: StepWork::default(),
            preempted: false,
        };
        self.decode(&mut plan);
        self.prefill(&mut plan);
        self.admit(&mut plan);
        let active_share = f64::from(self.pool.active()) / f64::from(self.pool.capacity());
        self.sample(output);
        self.pool.drain_events(&mut output.kv_events);
        match plan.work.pace(active_share, self.config.speedup) {
            Some(duration) => StepStatus::BusyFor(duration),
            None if self.running.is_empty() && self.waiting.is_empty() => StepStatus::Idle,
            None => StepStatus::Busy,
        }
    }

    fn load(&self) -> LoadReport {
        LoadReport {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            active_kv_blocks: self.pool.active(),
            used_kv_blocks: self.pool.used(),
            total_kv_blocks: self.pool.capacity(),
        }
    }
}
