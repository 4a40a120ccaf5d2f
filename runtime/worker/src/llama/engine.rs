//! The engine: carries out the schedule's steps on llama.cpp.

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;
use signalbox_protocol::{ErrorKind, KvEvent, LoadReport, WireError, WorkerCapacity};

use super::cells::CellOp;
use super::config::LlamaConfig;
use super::error::LlamaError;
use super::facts::{ModelFacts, cells_can_be_cached};
use super::model::{self, LoadedModel};
use super::sampling::{self, Candidates, TokenSampler};
use super::schedule::{Limits, Schedule, ScoredPrompt, Sequence};
use crate::engine::{
    EngineInfo, NewSequence, PromptToken, SampledToken, SequenceId, StepEngine, StepOutput, StepStatus,
};

/// An engine that computes a model in this process. See the module's documentation.
pub struct LlamaEngine {
    context: LlamaContext<'static>,
    batch: LlamaBatch<'static>,
    schedule: Schedule<TokenSampler>,
    /// Operations of the schedule on the cells, to apply before the next tokens are computed.
    ops: Vec<CellOp>,
    /// For each chunk of the step, the index in the batch whose logits give the next token.
    outputs: Vec<Option<i32>>,
    candidates: Candidates,
    /// The chunks of the step whose prompts are scored, each with the index in the batch of its first token.
    scored: Vec<(usize, i32)>,
    info: EngineInfo,
    facts: ModelFacts,
}

impl std::fmt::Debug for LlamaEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LlamaEngine")
            .field("info", &self.info)
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

impl LlamaEngine {
    /// Loads the model and computes one token, so that the weights are in memory for the first request. Blocks until
    /// the engine is ready. Calls `progress` on this thread with the loaded share, 0 to 1.
    ///
    /// # Errors
    /// See [`LlamaError`].
    pub fn load(config: &LlamaConfig, progress: impl FnMut(f32) + 'static) -> Result<Self, LlamaError> {
        let LoadedModel { context, facts } = model::load(config, progress)?;
        let kv_blocks = context.n_ctx() / config.block_size;
        let context_length = facts.trained_context.min(kv_blocks * config.block_size);
        let capacity = WorkerCapacity {
            kv_blocks,
            max_sequences: config.max_sequences,
            max_waiting: config.max_waiting,
        };
        let schedule = Schedule::new(Limits {
            block_size: config.block_size,
            context_length,
            batch_tokens: config.step_tokens(),
            capacity,
            reuse: cells_can_be_cached(&config.model_path, &facts),
        });
        let mut engine = Self {
            context,
            batch: LlamaBatch::new(config.step_tokens() as usize, 1),
            schedule,
            ops: Vec::new(),
            outputs: Vec::new(),
            candidates: Candidates::default(),
            scored: Vec::new(),
            info: EngineInfo {
                name: "llama",
                block_size: config.block_size,
                context_length,
                capacity,
            },
            facts,
        };
        engine.warm_up().map_err(LlamaError::Start)?;
        Ok(engine)
    }

    /// The facts about the model.
    pub fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    fn warm_up(&mut self) -> Result<(), String> {
        self.batch.clear();
        self.batch
            .add(LlamaToken(0), 0, &[0], true)
            .map_err(|error| error.to_string())?;
        self.context
            .decode(&mut self.batch)
            .map_err(|error| error.to_string())?;
        self.context.synchronize();
        self.context.clear_kv_cache();
        Ok(())
    }

    /// Computes one step. Fails if llama.cpp does.
    fn advance(&mut self, output: &mut StepOutput) -> Result<(), String> {
        self.schedule.plan(&mut self.ops);
        self.apply_ops()?;
        if self.schedule.chunks().is_empty() {
            return Ok(());
        }
        self.fill_batch()?;
        self.decode()?;
        output.prefill_tokens += self.schedule.computed(&mut self.ops, &mut output.prefilled);
        self.score_prompts(output);
        self.sample_tokens(output);
        self.schedule.finish(&mut self.ops, &mut output.finished);
        self.apply_ops()
    }

    /// Computes the batch. Meanwhile another thread computes what the grammars allow next, so that one sequence with a grammar
    /// does not hold up the others.
    fn decode(&mut self) -> Result<(), String> {
        let (context, batch) = (&mut self.context, &mut self.batch);
        let with_grammar: Vec<_> = self
            .schedule
            .samplers()
            .filter(|sampler| sampler.has_grammar())
            .collect();
        let decoded = if with_grammar.is_empty() {
            context.decode(batch)
        } else {
            std::thread::scope(|scope| {
                let prepare = || with_grammar.into_iter().for_each(TokenSampler::prepare);
                // Without a thread, each is prepared when its token is sampled.
                let _ = std::thread::Builder::new().spawn_scoped(scope, prepare);
                context.decode(batch)
            })
        };
        decoded.map_err(|error| error.to_string())
    }

    fn apply_ops(&mut self) -> Result<(), String> {
        for op in self.ops.drain(..) {
            match op {
                CellOp::Share { from, to, positions } => {
                    self.context
                        .kv_cache_seq_cp(from, to, Some(positions.start), Some(positions.end))
                }
                CellOp::Release { owner, positions } => {
                    self.context
                        .kv_cache_seq_rm(owner, Some(positions.start), Some(positions.end))
                }
                CellOp::ReleaseAll { owner } => self.context.kv_cache_seq_rm(owner, None, None),
            }
            .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn fill_batch(&mut self) -> Result<(), String> {
        self.batch.clear();
        self.outputs.clear();
        self.scored.clear();
        for (number, chunk) in self.schedule.chunks().iter().enumerate() {
            let scores = self.schedule.scores_prompt(chunk);
            if scores {
                self.scored.push((number, self.batch.n_tokens()));
            }
            for (&token, position) in self.schedule.tokens(chunk).iter().zip(chunk.start..) {
                let needs_logits = scores || chunk.is_last && position + 1 == chunk.start + chunk.count;
                self.batch
                    .add(
                        LlamaToken(token as i32),
                        position as i32,
                        &[chunk.owner],
                        needs_logits,
                    )
                    .map_err(|error| error.to_string())?;
            }
            self.outputs
                .push(chunk.is_last.then(|| self.batch.n_tokens() - 1));
        }
        Ok(())
    }

    /// Reports the log probabilities of the prompts that are scored.
    fn score_prompts(&mut self, output: &mut StepOutput) {
        for (chunk, first) in self.scored.drain(..) {
            let ScoredPrompt {
                id: sequence,
                top,
                tokens,
            } = self.schedule.scored(chunk);
            for (token, offset) in tokens {
                let logprobs = offset.map(|offset| {
                    sampling::prompt_logprobs(&self.context, first + offset as i32, token, top)
                });
                if logprobs.as_ref().is_some_and(Option::is_none) {
                    output
                        .failed
                        .push((sequence, engine_failed("the model's logits are not numbers")));
                    break;
                }
                output.prompt_tokens.push(PromptToken {
                    sequence,
                    token,
                    logprobs: logprobs.flatten(),
                });
            }
        }
    }

    fn sample_tokens(&mut self, output: &mut StepOutput) {
        for (chunk, index) in self.outputs.iter().enumerate() {
            let Some(index) = *index else { continue };
            let (sequence, sampler) = self.schedule.sampler(chunk);
            let Some(sampler) = sampler else { continue };
            match sampler.sample(&self.context, index, &mut self.candidates) {
                Some((token, logprobs)) => {
                    let is_complete = sampler.is_complete();
                    self.schedule.push(chunk, token);
                    if is_complete {
                        self.schedule.complete(chunk);
                    }
                    output.tokens.push(SampledToken {
                        sequence,
                        token,
                        logprobs,
                    });
                }
                None => output.failed.push((
                    sequence,
                    engine_failed("no token can follow, or the model's logits are not numbers"),
                )),
            }
        }
        for (sequence, _) in &output.failed {
            self.schedule.cancel(*sequence, &mut self.ops);
        }
    }

    /// Empties the KV cache after llama.cpp failed, because the content of its cells is unknown. Running sequences end
    /// with an error, waiting ones are not affected.
    fn reset(&mut self, reason: &str, output: &mut StepOutput) {
        tracing::error!(reason, "llama.cpp failed in a step; its KV cache is emptied");
        self.ops.clear();
        self.context.clear_kv_cache();
        output.failed.extend(
            self.schedule
                .reset()
                .into_iter()
                .map(|id| (id, engine_failed(reason))),
        );
        output.kv_events.push(KvEvent::Cleared);
    }
}

impl StepEngine for LlamaEngine {
    fn info(&self) -> EngineInfo {
        self.info.clone()
    }

    fn submit(&mut self, sequence: NewSequence) -> Result<(), WireError> {
        let NewSequence {
            id,
            tokens,
            generated,
            blocks,
            hasher,
            sampling,
            limits,
        } = sequence;
        let vocab = self.facts.vocab_size;
        if let Some(token) = tokens.iter().find(|&&token| token >= vocab) {
            return Err(WireError::invalid_param(
                "prompt",
                format!(
                    "the prompt has token {token}; this model has tokens 0 to {}",
                    vocab.saturating_sub(1)
                ),
            ));
        }
        let sampler = TokenSampler::new(&sampling, limits, &tokens, generated, vocab)?;
        let sequence = Sequence::new(id, tokens, blocks, hasher, sampling.max_tokens, sampler);
        self.schedule.submit(if sampling.prompt_logprobs {
            sequence.scoring_prompt(sampling.logprobs.unwrap_or(0))
        } else {
            sequence
        })
    }

    fn cancel(&mut self, id: SequenceId) {
        self.schedule.cancel(id, &mut self.ops);
    }

    fn step(&mut self, output: &mut StepOutput) -> StepStatus {
        match self.advance(output) {
            Ok(()) => self.schedule.drain_events(&mut output.kv_events),
            Err(reason) => self.reset(&reason, output),
        }
        if self.schedule.is_idle() {
            StepStatus::Idle
        } else {
            StepStatus::Busy
        }
    }

    fn load(&self) -> LoadReport {
        self.schedule.load()
    }
}

fn engine_failed(reason: &str) -> WireError {
    WireError::new(ErrorKind::Internal, format!("the engine failed: {reason}"))
}
