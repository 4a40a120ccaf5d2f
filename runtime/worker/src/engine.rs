//! The interface between the runner and an engine.
//!
//! An engine advances all its sequences together, one *step* at a time (continuous batching): a step prefills some
//! prompt tokens and decodes one token of each running sequence. A [`StepEngine`] owns its KV cache and its
//! computation. It has no notion of text, JSON, networks or clocks. The runner (`runner.rs`) steps the engine on a
//! thread, turns tokens into answers, and publishes the changes of the KV cache.

use std::time::Duration;

use signalbox_protocol::{
    FinishReason, KvEvent, LoadReport, SamplingParams, SequenceHash, WireError, WorkerCapacity,
};

use crate::token_limits::TokenLimits;

/// Threads that compute on a machine of this many cores: all but one, and from eight cores on all but an eighth. After each
/// step of a layer every thread waits for the last one, and spins. If one of them has to wait for a core, all do: an answer
/// that took 0.4 s took 5 to 14 s on a machine whose cores were all busy.
#[must_use]
pub fn default_threads(cores: usize) -> usize {
    cores.saturating_sub(cores.div_ceil(8)).max(1)
}

/// One sequence of an engine. A request has `n` sequences. The runner assigns the id, and an engine sees each id once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

impl SequenceId {
    /// The sequence of choice `choice` of request number `request`. Requests are numbered from 0, at most 2⁴⁸ of them.
    pub fn new(request: u64, choice: u16) -> Self {
        Self((request << 16) | u64::from(choice))
    }

    /// The number of the sequence's request.
    pub fn request(self) -> u64 {
        self.0 >> 16
    }

    /// The sequence's index among the choices of its request, from 0.
    pub fn choice(self) -> u16 {
        self.0 as u16
    }
}

/// The properties of an engine that the worker's card carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// `llama` or `sim`.
    pub name: &'static str,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Most tokens of prompt and answer together.
    pub context_length: u32,
    /// Limits on KV blocks and on running and waiting sequences.
    pub capacity: WorkerCapacity,
}

/// A sequence to generate.
#[derive(Debug, Clone)]
pub struct NewSequence {
    /// The id under which steps report the sequence.
    pub id: SequenceId,
    /// The prompt: at least one token, and fewer than the context length. If another engine began the answer, the tokens
    /// that it generated follow.
    pub tokens: Vec<u32>,
    /// How many of `tokens` another engine generated.
    pub generated: usize,
    /// Hashes of the prompt's full KV blocks, salted with the request's LoRA and cache salt.
    pub blocks: Vec<SequenceHash>,
    /// Computes the hashes of the blocks that follow.
    pub hasher: signalbox_protocol::BlockHasher,
    /// How to sample tokens. The engine applies `max_tokens` to the tokens that it generates itself; with 0, the sequence
    /// finishes with its prefill. The runner applies `stop` and the tokens that end the answer.
    pub sampling: SamplingParams,
    /// Which tokens it must not generate, and when.
    pub limits: TokenLimits,
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    /// The sequence that generated it.
    pub sequence: SequenceId,
    /// The token.
    pub token: u32,
    /// The token's log probability and the likeliest alternatives, if the request asked for them.
    pub logprobs: Option<TokenLogprobs>,
}

/// A token of a prompt whose log probabilities the request asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptToken {
    /// The sequence with the prompt.
    pub sequence: SequenceId,
    /// The token.
    pub token: u32,
    /// `None` for the first token of the prompt, which nothing precedes.
    pub logprobs: Option<TokenLogprobs>,
}

/// Log probabilities at one position, before temperature, top-k and top-p.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The log probability of the chosen token.
    pub chosen: f32,
    /// The likeliest tokens with their log probabilities, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// The results of one step. The runner clears and reuses it. Each list is in the order of the events.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// Prompt tokens that the step computed.
    pub prefill_tokens: u32,
    /// Sequences whose whole prompt is now in the KV cache, with the number of prompt tokens that were cached before.
    pub prefilled: Vec<(SequenceId, u32)>,
    /// Tokens of prompts whose log probabilities were asked for, each once and in order, and before the sequence's first
    /// generated token. Such a prompt is computed as a whole, because a KV cache holds no log probabilities.
    pub prompt_tokens: Vec<PromptToken>,
    /// The generated tokens, at most one per sequence.
    pub tokens: Vec<SampledToken>,
    /// Sequences that reached `max_tokens`, the context length, or the end of their grammar. The engine has freed their resources.
    pub finished: Vec<(SequenceId, FinishReason)>,
    /// Sequences that the engine cannot continue. The engine has freed their resources.
    pub failed: Vec<(SequenceId, WireError)>,
    /// Changes of the KV cache.
    pub kv_events: Vec<KvEvent>,
}

impl StepOutput {
    /// Empties it and keeps its buffers, for the next step.
    pub fn clear(&mut self) {
        let Self {
            prefill_tokens,
            prefilled,
            prompt_tokens,
            tokens,
            finished,
            failed,
            kv_events,
        } = self;
        *prefill_tokens = 0;
        prefilled.clear();
        prompt_tokens.clear();
        tokens.clear();
        finished.clear();
        failed.clear();
        kv_events.clear();
    }
}

/// When the runner steps the engine again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepStatus {
    /// At once: there is more to do.
    Busy,
    /// After this time, which the step would have taken on a real device. The runner delivers the output at the end of
    /// that time. Only the simulated engine returns it.
    BusyFor(Duration),
    /// When the next sequence arrives: no sequence is left.
    Idle,
}

/// An engine that advances by steps. One thread owns it.
pub trait StepEngine: Send + 'static {
    /// The engine's properties.
    fn info(&self) -> EngineInfo;

    /// Puts a sequence into the waiting queue. The engine starts it when there is room.
    ///
    /// # Errors
    /// The sequence can never run, or the queue is full (`Overloaded`).
    fn submit(&mut self, sequence: NewSequence) -> Result<(), WireError>;

    /// Ends a sequence early, because its client left, a stop text matched or the end-of-sequence token was generated.
    /// The sequence's full KV blocks stay cached for others. Unknown ids are ignored.
    fn cancel(&mut self, id: SequenceId);

    /// Advances all sequences by one step and adds the results to `output`.
    fn step(&mut self, output: &mut StepOutput) -> StepStatus;

    /// The engine's current load.
    fn load(&self) -> LoadReport;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_leaves_cores_to_the_rest_of_the_machine() {
        let threads = |cores| (cores, default_threads(cores));
        let expected = [(0, 1), (1, 1), (2, 1), (4, 3), (8, 7), (16, 14), (64, 56)];
        assert_eq!(expected.map(|(cores, _)| threads(cores)), expected);
    }
}
