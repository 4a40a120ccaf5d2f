//! A simulated GPU engine: real scheduling and KV cache bookkeeping, random tokens.
//!
//! Routing depends on the KV caches and the load of workers. In both, [`SimEngine`] behaves as a real engine does,
//! without a GPU: a paged KV cache with prefix reuse and LRU eviction, continuous batching under a token budget,
//! chunked prefill, preemption, and step times from a timing model. It is for tests, benchmarks and capacity planning.
//! It promises:
//!
//! - The same request gets the same answer on every worker with the same seed, however it is batched.
//! - The time of a step is proportional to the number of running sequences, and a token allocates nothing.
//!
//! A step does what vLLM's does, in this order. Running sequences are computed, oldest first, until the budget is used
//! up: one token of each that decodes, the next chunk of each that is in prefill. Waiting sequences are admitted, first
//! come first served, as far as the limits on tokens, sequences and blocks allow; an admitted one shares the blocks that
//! are cached at that moment. If blocks run out, the youngest sequence is preempted: it releases its blocks, waits at the
//! front of the queue and is computed again later.

use std::{collections::VecDeque, sync::Arc};

use signalbox_protocol::{ErrorKind, LoadReport, WireError, WorkerCapacity};

use crate::{
    block_pool::BlockPool,
    engine::{
        EngineInfo, NewSequence, PromptToken, SampledToken, SequenceId, StepEngine, StepOutput, StepStatus,
    },
};

use self::{sequence::Sequence, timing::StepWork, tokens::TokenSource};

mod sequence;
#[cfg(test)]
mod tests;
mod timing;
mod tokens;

pub use self::tokens::{GOLDEN, ordinary_tokens, scramble};

/// The settings of a simulated engine.
#[derive(Debug, Clone, PartialEq)]
pub struct SimConfig {
    /// Tokens per KV block, at least 1.
    pub block_size: u32,
    /// KV blocks of the cache, at least 1.
    pub kv_blocks: u32,
    /// Most tokens of prompt and answer together. Reduced to what the KV cache holds.
    pub context_length: u32,
    /// Most running sequences, at least 1.
    pub max_sequences: u32,
    /// Most waiting sequences. The engine refuses further ones.
    pub max_waiting: u32,
    /// Most tokens computed in one step, prefill and decode together. At least `max_sequences`, so that every running
    /// sequence gets its token.
    pub max_batched_tokens: u32,
    /// Divides the times of the timing model. 0: steps take no time.
    pub speedup: f64,
    /// Determines the tokens of all answers.
    pub seed: u64,
    /// A fault, for tests: the process aborts when a prompt has this token, as by a defect that one prompt hits.
    pub fatal_token: Option<u32>,
}

impl Default for SimConfig {
    /// Roughly a mid-size model on one large GPU. Blocks of 16 tokens, 256 sequences and 8,192 tokens a step are vLLM's
    /// values; 16,384 blocks are the default of Dynamo's mocker.
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
            fatal_token: None,
        }
    }
}

/// Why a simulated engine cannot be created.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SimError {
    /// A setting is too small.
    #[error("{name} of the simulated engine is {value}; it must be at least {least}")]
    TooSmall {
        /// The setting.
        name: &'static str,
        /// The given value.
        value: u32,
        /// The smallest valid value.
        least: u32,
    },
    /// The speed-up is negative or not finite.
    #[error("speedup of the simulated engine is {0}; it must be 0 (steps take no time) or a positive number")]
    Speedup(f64),
    /// The vocabulary is empty, so the engine cannot generate tokens.
    #[error(
        "the vocabulary of the simulated engine is empty; it needs a token that is readable text by itself"
    )]
    EmptyVocabulary,
}

/// The simulated engine.
#[derive(Debug)]
pub struct SimEngine {
    config: SimConfig,
    /// The tokens it generates: see [`ordinary_tokens`].
    vocabulary: Arc<[u32]>,
    pool: BlockPool,
    /// In the order of admission.
    running: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
}

/// The progress of one step.
#[derive(Debug)]
struct StepPlan {
    /// Tokens that the step may still compute.
    budget: usize,
    /// A sequence was preempted in this step, so no sequence is admitted.
    preempted: bool,
}

impl SimEngine {
    /// An idle engine that generates tokens of `vocabulary`, for example [`ordinary_tokens`].
    ///
    /// # Errors
    /// A setting is out of its range, or the vocabulary is empty.
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
        let cache_tokens = config.kv_blocks.saturating_mul(config.block_size);
        let context_length = config.context_length.min(cache_tokens);
        // A prompt of one token and an answer of one token.
        at_least("context_length", context_length, 2)?;
        if !(config.speedup.is_finite() && config.speedup >= 0.0) {
            return Err(SimError::Speedup(config.speedup));
        }
        if vocabulary.is_empty() {
            return Err(SimError::EmptyVocabulary);
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

    /// Computes running sequences, oldest first: the latest token of one that decodes, the next chunk of one in prefill.
    fn continue_running(&mut self, plan: &mut StepPlan) {
        let mut place = 0;
        while place < self.running.len() && plan.budget > 0 {
            let count = self.running[place].remaining().min(plan.budget);
            self.compute(place, count, plan);
            place += 1;
        }
    }

    /// Starts waiting sequences, first come first served.
    fn admit(&mut self, plan: &mut StepPlan) {
        while plan.budget > 0 && !plan.preempted && self.running.len() < self.config.max_sequences as usize {
            let Some(next) = self.waiting.front() else { return };
            if !self.pool.admits(next.shareable(), next.needed_blocks() as u32) {
                return;
            }
            let Some(next) = self.waiting.pop_front() else {
                return;
            };
            self.start(next, plan);
        }
    }

    fn start(&mut self, mut sequence: Sequence, plan: &mut StepPlan) {
        sequence.share(&mut self.pool);
        let count = sequence.remaining().min(plan.budget);
        self.running.push(sequence);
        self.compute(self.running.len() - 1, count, plan);
    }

    /// Computes the next `count` tokens of the sequence at `place`. If blocks run out, preempts younger sequences, and
    /// at last this one.
    fn compute(&mut self, place: usize, count: usize, plan: &mut StepPlan) {
        while self.running[place].compute(&mut self.pool, count).is_err() {
            plan.preempted = true;
            let Some(mut youngest) = self.running.pop() else {
                return;
            };
            plan.budget += youngest.release(&mut self.pool);
            self.waiting.push_front(youngest);
            if place == self.running.len() {
                return;
            }
        }
        plan.budget -= count;
    }

    /// The work of the step whose sequences are computed.
    fn work(&self) -> StepWork {
        let mut work = StepWork::default();
        for sequence in &self.running {
            let (computed, is_prefill) = sequence.in_step();
            if computed > 0 && is_prefill {
                work.prefill_tokens += computed as u32;
            }
            if computed > 0 && sequence.remaining() == 0 && sequence.generated() > 0 {
                work.decoding += 1;
                work.context_tokens += sequence.length() as u64;
            }
        }
        work
    }

    /// Generates the next token of every sequence whose KV is complete, and ends the sequences that are done.
    fn sample(&mut self, output: &mut StepOutput) {
        for sequence in &mut self.running {
            if let Some(cached) = sequence.report_prefill() {
                output.prefilled.push((sequence.id, cached));
                report_prompt(sequence, &self.vocabulary, &mut output.prompt_tokens);
            }
            if sequence.remaining() > 0 || sequence.is_done() {
                continue;
            }
            let position = sequence.generated();
            let Some(token) = sequence.next_token(&self.vocabulary) else {
                let message = "the vocabulary has no token that the grammar allows here";
                output
                    .failed
                    .push((sequence.id, WireError::new(ErrorKind::Internal, message)));
                continue;
            };
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
            let failed = output.failed.iter().any(|(id, _)| *id == sequence.id);
            let done = sequence.is_done();
            if done || failed {
                sequence.release(pool);
            }
            if done && !failed {
                output.finished.push((sequence.id, sequence.finish_reason()));
            }
            !done && !failed
        });
    }
}

/// Reports the prompt of a sequence that asks for its log probabilities.
fn report_prompt(sequence: &Sequence, vocabulary: &[u32], out: &mut Vec<PromptToken>) {
    if !sequence.prompt_logprobs {
        return;
    }
    let top = sequence.logprobs.unwrap_or(0);
    out.extend(
        sequence
            .prompt()
            .iter()
            .enumerate()
            .map(|(position, token)| PromptToken {
                sequence: sequence.id,
                token: *token,
                logprobs: (position > 0).then(|| tokens::prompt_logprobs(position, *token, top, vocabulary)),
            }),
    );
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
                "the prompt is empty; give at least one token",
            ));
        }
        if prompt >= context {
            let message = format!(
                "the prompt has {prompt} tokens; the context length is {context}, so a prompt may have at most {}",
                context - 1
            );
            return Err(WireError::new(ErrorKind::ContextLengthExceeded, message));
        }
        if sequence.hasher.block_size() != self.config.block_size as usize {
            let message = format!(
                "the sequence has KV blocks of {} tokens; the engine's blocks have {}",
                sequence.hasher.block_size(),
                self.config.block_size
            );
            return Err(WireError::new(ErrorKind::Internal, message));
        }
        let most = self.config.max_sequences as usize + self.config.max_waiting as usize;
        if self.running.len() + self.waiting.len() >= most {
            let message =
                format!("the worker has {most} sequences running and waiting, its limit; try again later");
            return Err(WireError::new(ErrorKind::Overloaded, message));
        }
        if let Some(fatal) = self.config.fatal_token
            && sequence.tokens.contains(&fatal)
        {
            std::process::abort();
        }
        let source = TokenSource::new(
            self.config.seed,
            sequence.sampling.seed,
            &sequence.tokens,
            sequence.generated,
            sequence.id,
        );
        let max_length = prompt
            .saturating_add(sequence.sampling.max_tokens as usize)
            .min(context);
        self.waiting
            .push_back(Sequence::new(sequence, source, max_length));
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
            preempted: false,
        };
        for sequence in &mut self.running {
            sequence.begin_step();
        }
        self.continue_running(&mut plan);
        self.admit(&mut plan);
        let work = self.work();
        output.prefill_tokens += work.prefill_tokens;
        self.sample(output);
        self.pool.drain_events(&mut output.kv_events);
        let cache_tokens = u64::from(self.config.kv_blocks) * u64::from(self.config.block_size);
        match work.pace(cache_tokens, self.config.speedup) {
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
            ..LoadReport::default()
        }
    }
}
