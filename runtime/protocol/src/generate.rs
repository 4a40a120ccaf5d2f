//! A generation: the request that a worker receives, and the summary it ends with.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::{Ability, Endpoint, RequestId};

/// One generation, as the router sends it to a worker. The prompt tokens and the client's original body travel beside
/// it as bytes, because JSON would triple their size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// Names the request in the logs of both processes.
    pub id: RequestId,
    /// The model's name as the client wrote it; echoed in the answer.
    pub model: String,
    /// Milliseconds left until the answer must be complete. A duration, because clocks of two machines differ.
    pub deadline_ms: u64,
    /// LoRA adapter; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lora: String,
    /// Keeps the KV blocks of one tenant apart from another tenant's; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cache_salt: String,
    /// A greater number is more urgent; 0 is usual.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// Leading KV blocks of the prompt that the router's index credits the worker with on its device. The worker
    /// compares them with the tokens that its engine took from its KV cache.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub overlap_blocks: u32,
    /// Whether the router needs the ids of the answer's tokens, to continue the answer at another worker if this one is
    /// lost. A worker that cannot continue such an answer sends pieces without ids.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wants_token_ids: bool,
    /// What another worker has delivered of this answer, which this worker continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continuation: Option<Continuation>,
    /// What the answer's text must obey.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<Constraint>,
    /// How to choose tokens and when to stop.
    pub sampling: SamplingParams,
    /// The format of the answer's bytes.
    pub format: AnswerFormat,
}

/// What an answer's text must obey from its first to its last byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    /// The client's member that asks for it, for errors.
    pub param: String,
    /// What it is.
    pub kind: ConstraintKind,
}

/// The kinds of constraints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConstraintKind {
    /// An object of JSON.
    JsonObject,
    /// A value of JSON that obeys this JSON schema.
    JsonSchema(String),
    /// A match of this regular expression.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of this grammar, in Lark's syntax.
    Grammar(String),
}

/// How an answer's text becomes tool calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolOutput {
    /// The model decides whether to call tools, and writes calls in the way of its family.
    Auto {
        /// Whether only the first call counts.
        one_call: bool,
    },
    /// The text is an array of calls.
    Required {
        /// Whether only the first call counts.
        one_call: bool,
    },
    /// The text is the arguments of a call of this tool.
    Named {
        /// The tool.
        name: String,
    },
}

/// The beginning of an answer that a lost worker delivered. The tokens that travel beside the request are those of the
/// prompt, and then the delivered ones. The worker writes what follows: no byte that was delivered, and none twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continuation {
    /// Number of tokens that were delivered.
    pub delivered_tokens: u32,
    /// The first piece of the answer. Its first event has the answer's id and date as the client knows them.
    pub first_piece: String,
}

impl GenerateRequest {
    /// The abilities that a worker needs for this request: one without them would ignore a part of it.
    pub fn needs(&self) -> impl Iterator<Item = Ability> + use<> {
        let sampling = &self.sampling;
        let samples = sampling.min_tokens > 0
            || !sampling.stop_token_ids.is_empty()
            || !sampling.bad_words.is_empty()
            || sampling.min_p > 0.0
            || changes_logits(sampling.repetition_penalty);
        let formats = self.format.return_token_ids || self.format.continuous_usage;
        let needed = [
            (samples || formats).then_some(Ability::SamplingLimits),
            self.constraint.is_some().then_some(Ability::Constraints),
            self.format.tools.is_some().then_some(Ability::ToolCalls),
            self.format.part.is_some().then_some(Ability::AnswerParts),
            (sampling.prompt_logprobs || sampling.max_tokens == 0).then_some(Ability::PromptLogprobs),
        ];
        needed.into_iter().flatten()
    }
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

fn no_penalty() -> f32 {
    1.0
}

fn is_neutral_penalty(factor: &f32) -> bool {
    !changes_logits(*factor)
}

/// Whether the factor changes anything.
#[expect(clippy::float_cmp, reason = "only the very number 1 changes nothing")]
fn changes_logits(factor: f32) -> bool {
    factor != no_penalty()
}

/// How to choose tokens and when to stop: OpenAI's parameters, checked and with their defaults filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// The largest number of tokens to generate for each choice; 0 to score a prompt that the answer repeats.
    pub max_tokens: u32,
    /// 0 always chooses the likeliest token.
    pub temperature: f32,
    /// Nucleus sampling: choose among the likeliest tokens that together have this probability; 1 for all tokens.
    pub top_p: f32,
    /// Choose among this many likeliest tokens; 0 for all tokens.
    pub top_k: u32,
    /// The same seed and prompt give the same answer on the same engine.
    pub seed: Option<u64>,
    /// Texts that end the answer. The answer does not contain them.
    pub stop: Vec<String>,
    /// Number of choices to generate independently from the prompt.
    pub n: u32,
    /// −2 to 2, subtracted from the logit of each token that was generated before.
    pub presence_penalty: f32,
    /// −2 to 2, subtracted from the logit of a token once for each time it was generated before.
    pub frequency_penalty: f32,
    /// −100 to 100 by token id, added to the token's logit.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "biases"
    )]
    pub logit_bias: BTreeMap<u32, f32>,
    /// Report the log probability of each token, and of this many likeliest tokens beside it (0 for none).
    pub logprobs: Option<u32>,
    /// Continue past the model's end-of-sequence token (for benchmarks).
    #[serde(default)]
    pub ignore_eos: bool,
    /// Tokens to generate before the answer may end: until then no token that ends it is sampled, and no stop text counts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub min_tokens: u32,
    /// Tokens that end the answer, beside the model's own. The answer's text does not contain them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop_token_ids: Vec<u32>,
    /// Texts whose tokens are never generated in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad_words: Vec<String>,
    /// Choose among the tokens that are at least this share as likely as the likeliest one; 0 for all tokens.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub min_p: f32,
    /// The logit of each token that is in the prompt or was generated is divided by this, or multiplied if it is negative; 1
    /// changes nothing.
    #[serde(default = "no_penalty", skip_serializing_if = "is_neutral_penalty")]
    pub repetition_penalty: f32,
    /// Report the log probabilities of the prompt's tokens too, before those of the answer. Only with `logprobs`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub prompt_logprobs: bool,
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
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            bad_words: Vec::new(),
            min_p: 0.0,
            repetition_penalty: no_penalty(),
            prompt_logprobs: false,
        }
    }
}

/// Reads the biases with their keys as text. JSON has no other keys, and serde makes numbers of them only when it reads
/// JSON itself. It reads a [`Call`](crate::Call) from a buffer, because the call's method can follow its members.
fn biases<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u32, f32>, D::Error> {
    let by_text = BTreeMap::<String, f32>::deserialize(deserializer)?;
    let biases = by_text.into_iter().map(|(token, bias)| {
        let token = token
            .parse()
            .map_err(|_| D::Error::custom(format_args!("logit_bias has the key {token:?}, no token id")))?;
        Ok((token, bias))
    });
    biases.collect()
}

/// The format of an answer's bytes. The worker writes the bytes and the router forwards them unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerFormat {
    /// The route that the client called.
    #[serde(default)]
    pub endpoint: Endpoint,
    /// True for server-sent events, one per step, ended by `data: [DONE]`; false for one JSON document.
    pub stream: bool,
    /// `stream_options.include_usage`: whether a last event has the token counts.
    pub include_usage: bool,
    /// Text to repeat before the completion (`echo` of `/v1/completions`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<String>,
    /// `return_token_ids`: whether the answer has the ids of the prompt's tokens and of its own, as vLLM writes them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub return_token_ids: bool,
    /// `stream_options.continuous_usage_stats`: whether each event has the token counts so far.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub continuous_usage: bool,
    /// How the text becomes tool calls, if the request has tools that may be called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<ToolOutput>,
    /// The answer's `created`: seconds since the Unix epoch.
    pub created: u64,
    /// What the answer is a part of, if the client's request has several prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<AnswerPart>,
}

/// The answer to one of several prompts. The router joins the answers to all of them into one: the worker leaves out the end,
/// which is the token counts, and `data: [DONE]` of a stream or the closing brackets of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerPart {
    /// The `index` of the first choice.
    pub first_choice: u32,
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model generated its end-of-sequence token, or a stop text.
    Stop,
    /// The choice reached `max_tokens` or the end of the context.
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

/// Token counts of a finished generation. They end its stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamSummary {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the prompt that the engine took from its KV cache and did not compute.
    pub cached_tokens: u32,
    /// Tokens generated, over all choices.
    pub completion_tokens: u32,
}
