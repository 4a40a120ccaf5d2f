//! What a worker asks of an engine.
//!
//! An engine advances all its sequences together, one *step* at a time (continuous batching): a step prefills some
//! prompt tokens and decodes one token of each running sequence. [`StepEngine`] is that and nothing more: it owns its
//! KV cache and its arithmetic, and knows nothing of text, JSON, networks or clocks. The runner (`runner.rs`) owns
//! the engine on its thread, turns tokens into answers, and publishes what the step did to the KV cache.

use std::time::Duration;

use signalbox_protocol::{
    FinishReason, KvEvent, LoadReport, SamplingParams, SequenceHash, WireError, WorkerCapacity,
};

/// One sequence within an engine: a request has `n` of them. Given by the runner, unique for the engine's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

impl SequenceId {
    /// The sequence of choice `choice` of the `request`th request. Requests are numbered from 0; at most 2⁴⁸ of them.
    pub fn new(request: u64, choice: u16) -> Self {
        Self((request << 16) | u64::from(choice))
    }

    /// The number of its request.
    pub fn request(self) -> u64 {
        self.0 >> 16
    }

    /// Which of its request's choices it is, from 0.
    pub fn choice(self) -> u16 {
        self.0 as u16
    }
}

/// What an engine is, for the worker's card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    /// `llama` or `sim`.
    pub name: &'static str,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Most tokens of prompt and answer together.
    pub context_length: u32,
    /// How much it holds.
    pub capacity: WorkerCapacity,
}

/// A sequence to generate.
#[derive(Debug, Clone)]
pub struct NewSequence {
    /// Its name in what the steps report.
    pub id: SequenceId,
    /// The prompt; at least one token, and shorter than the context.
    pub tokens: Vec<u32>,
    /// Identities of the prompt's whole blocks, salted with the request's LoRA and cache salt.
    pub blocks: Vec<SequenceHash>,
    /// Continues the identities over generated blocks.
    pub hasher: signalbox_protocol::BlockHasher,
    /// How to pick tokens. `stop` texts and the end-of-sequence token are the runner's business; `max_tokens` the engine's.
    pub sampling: SamplingParams,
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    /// Whose it is.
    pub sequence: SequenceId,
    /// The token.
    pub token: u32,
    /// Its log probability and the likeliest alternatives, likeliest first, where the request asked for them.
    pub logprobs: Option<TokenLogprobs>,
}

/// Log probabilities at one position, before temperature and truncation.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// (token, log probability), likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// What one step did; cleared and reused by the runner. Events are in the order they happened.
#[derive(Debug, Default)]
pub struct StepOutput {
    /// Sequences whose prompt is in the KV cache now, with the number of prompt tokens that were found there.
    pub prefilled: Vec<(SequenceId, u32)>,
    /// At most one token a sequence.
    pub tokens: Vec<SampledToken>,
    /// Sequences that are over after this step: `max_tokens` or the context's end. Their resources are free already.
    pub finished: Vec<(SequenceId, FinishReason)>,
    /// Sequences that could not be gone on with. Their resources are free already.
    pub failed: Vec<(SequenceId, WireError)>,
    /// What changed in the KV cache.
    pub kv_events: Vec<KvEvent>,
}

/// What the runner does after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepStatus {
    /// There is more to do: step again at once.
    Busy,
    /// The step would have taken this long on a real device: deliver its output after that time, then step again.
    /// Only the simulated engine says so.
    BusyFor(Duration),
    /// No sequence is left; wait for one.
    Idle,
}

/// An engine that advances by steps. Lives on one thread.
pub trait StepEngine: Send + 'static {
    /// What it is.
    fn info(&self) -> EngineInfo;

    /// Takes a sequence into the waiting queue; it starts when there is room. An error says why it never can, or
    /// that the queue is full (`Overloaded`).
    fn submit(&mut self, sequence: NewSequence) -> Result<(), WireError>;

    /// Ends a sequence early: its client left, a stop text was met, the end-of-sequence token came. What it computed
    /// stays in the cache for others. Unknown ids are ignored.
    fn cancel(&mut self, id: SequenceId);

    /// Advances everything by one step.
    fn step(&mut self, output: &mut StepOutput) -> StepStatus;

    /// Its work now.
    fn load(&self) -> LoadReport;
}
