//! What a fake engine is: the model it claims to serve, its KV cache, its speed, and which of its flags are given.

use std::time::Duration;

use signalbox_tokenize::ModelArtifacts;

/// Whose API an engine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// vLLM 0.32.
    Vllm,
    /// SGLang 0.5.
    Sglang,
}

/// The settings of a fake engine. The defaults are a small vLLM, started with every flag that Signalbox asks for, that
/// computes in no time.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Whose API it has.
    pub flavour: Flavour,
    /// The version it states.
    pub version: String,
    /// The name of the model.
    pub model: String,
    /// The model's root in `/v1/models`: the folder or hub name that the engine was started with.
    pub root: String,
    /// The tokenizer and chat template that the engine uses, whatever `root` holds.
    pub artifacts: ModelArtifacts,
    /// The LoRA adapters that it starts with, each a model of its own.
    pub adapters: Vec<String>,
    /// Most tokens of prompt and answer together.
    pub context_length: u32,
    /// Tokens per KV block.
    pub block_size: u32,
    /// The block size in `/metrics` and `/server_info`, if another one than the engine uses.
    pub stated_block_size: Option<u32>,
    /// KV blocks of each data-parallel rank.
    pub kv_blocks: u32,
    /// Requests that run at a time on each rank; the others wait.
    pub max_sequences: u32,
    /// Data-parallel ranks, each with a KV cache and a source of events.
    pub ranks: u32,
    /// Whether blocks are found again. Without, the engine publishes no events.
    pub prefix_caching: bool,
    /// Whether usage says how many tokens were cached: vLLM's `--enable-prompt-tokens-details`, SGLang's
    /// `--enable-cache-report`.
    pub reports_cached_tokens: bool,
    /// Whether KV events are published.
    pub events: bool,
    /// Whether published events can be asked for again.
    pub replay: bool,
    /// How many batches of events can be asked for again; vLLM keeps 10,000.
    pub event_buffer: usize,
    /// Most prompt tokens of one step.
    pub prefill_chunk: u32,
    /// The time that each uncached prompt token takes.
    pub prefill_per_token: Duration,
    /// The time that each step of generated tokens takes.
    pub per_token: Duration,
    /// Whether a tool parser is configured, without which `tool_choice: auto` is refused.
    pub tool_parser: bool,
    /// How many generated tokens of a chat are reasoning.
    pub reasoning_tokens: usize,
    /// How long an idle connection is kept; uvicorn closes it after 5 s.
    pub keep_alive: Duration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            flavour: Flavour::Vllm,
            version: "0.32.0".into(),
            model: "fake".into(),
            root: "fake/byte-level".into(),
            artifacts: ModelArtifacts::byte_level(),
            adapters: Vec::new(),
            context_length: 8192,
            block_size: 16,
            stated_block_size: None,
            kv_blocks: 4096,
            max_sequences: 64,
            ranks: 1,
            prefix_caching: true,
            reports_cached_tokens: true,
            events: true,
            replay: true,
            event_buffer: 10_000,
            prefill_chunk: 2048,
            prefill_per_token: Duration::ZERO,
            per_token: Duration::ZERO,
            tool_parser: true,
            reasoning_tokens: 0,
            keep_alive: Duration::from_secs(5),
        }
    }
}

impl EngineOptions {
    /// A small SGLang, as the default is a small vLLM.
    pub fn sglang() -> Self {
        Self {
            flavour: Flavour::Sglang,
            version: "0.5.23".into(),
            ..Self::default()
        }
    }

    /// The block size that the engine states.
    pub(super) fn stated_block_size(&self) -> u32 {
        self.stated_block_size.unwrap_or(self.block_size)
    }
}
