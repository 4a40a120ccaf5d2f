//! The work asked of a worker, and how it ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::RequestId;

/// One generation, as the router hands it to a worker. Prompt tokens and the client's original body travel beside
/// it as bytes, since JSON would triple them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// Names the request in both processes' logs.
    pub id: RequestId,
    /// The model's name as the client wrote it; echoed in the answer.
    pub model: String,
    /// Milliseconds left until the answer must be whole. A duration, since clocks of two machines differ.
    pub deadline_ms: u64,
    /// LoRA adapter; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lora: String,
    /// Keeps the KV cache of one tenant apart from another's; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cache_salt: String,
    /// How to pick tokens and when to stop.
    pub sampling: SamplingParams,
    /// What the answer's bytes look like.
    pub format: AnswerFormat,
}

/// How to pick tokens and when to stop: OpenAI's parameters, checked and with their defaults filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// At most this many tokens are generated for each choice.
    pub max_tokens: u32,
    /// 0 picks the likeliest token always.
    pub temperature: f32,
    /// Nucleus: the likeliest tokens that together have this probability; 1 for all.
    pub top_p: f32,
    /// The likeliest k tokens; 0 for all.
    pub top_k: u32,
    /// The same seed and prompt give the same answer on the same engine.
    pub seed: Option<u64>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Choices, generated independently from one prompt.
    pub n: u32,
    /// −2 to 2: lowers the logit of tokens already generated.
    pub presence_penalty: f32,
    /// −2 to 2: the same for each time they were generated.
    pub frequency_penalty: f32,
    /// Added to a token's logit, −100 to 100.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub logit_bias: BTreeMap<u32, f32>,
    /// With each token: its log probability and those of this many likeliest ones (0 for its own only).
    pub logprobs: Option<u32>,
    /// Go on past the model's end-of-sequence token (benchmarks).
    #[serde(default)]
    pub ignore_eos: bool,
}

impl Default for SamplingParams {
    /// OpenAI's defaults.
    fn default() -> Self {
        Self {
            max_tokens: 16,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            seed: None,
            stop: Vec::new(),
            n: 1,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            logprobs: None,
            ignore_eos: false,
        }
    }
}

/// What the bytes of an answer look like. The worker writes them, the router only passes them on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerFormat {
    /// `chat.completion` objects rather than `text_completion`.
    pub chat: bool,
    /// Server-sent events, one a step, ended by `data: [DONE]`; otherwise one JSON document.
    pub stream: bool,
    /// `stream_options.include_usage`: a last event with the token counts.
    pub include_usage: bool,
    /// Text to repeat before the completion (`echo` of `/v1/completions`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<String>,
    /// The answer's `created`: seconds since the Unix epoch.
    pub created: u64,
}

/// Why a choice ended, in OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop text was met.
    Stop,
    /// `max_tokens` or the context's end was reached.
    Length,
}

impl FinishReason {
    /// OpenAI's `finish_reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// What a finished generation took; ends its stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamSummary {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of those, tokens whose KV was found in the cache and not computed again.
    pub cached_tokens: u32,
    /// Tokens generated, over all choices.
    pub completion_tokens: u32,
}
