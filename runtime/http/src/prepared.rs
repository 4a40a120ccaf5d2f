//! A request that is ready to be routed.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};
use signalbox_protocol::{AnswerFormat, AnswerPart, Endpoint, GenerateRequest, RequestId, SamplingParams};
use signalbox_router::{PromptForm, RouteRequest};

use crate::openai::GenerationParams;

/// What routing, and an engine of this repository, need to know of a request.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    /// What the prompts of one request have in common.
    pub(crate) generation: Arc<GenerationParams>,
    /// The most tokens of each choice.
    pub(crate) max_tokens: u32,
    /// The prompt's tokens; empty if they are unknown.
    pub(crate) tokens: Vec<u32>,
    /// About how many tokens the engine computes beside `tokens`.
    pub(crate) unhashed_tokens: u32,
    /// Why the prompt, or a part of it, is not looked up in the KV index.
    pub(crate) unhashed: Option<Unhashed>,
    /// The text that the answer begins with.
    pub(crate) echo: Option<String>,
    /// What the answer is a part of, if the request has several prompts.
    pub(crate) part: Option<AnswerPart>,
    /// What the response repeats of its request, if the chat that the engine answers becomes a response.
    pub(crate) response: Option<Arc<ResponseSettings>>,
}

/// What a response repeats of its request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ResponseSettings(pub(crate) Map<String, Value>);

/// Why the KV blocks of a prompt are not known, so that the request is routed by load and session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unhashed {
    /// The member that holds the prompt is missing or has an unexpected type. The engine refuses it most likely.
    Unreadable,
    /// The prompt has more JSON values than a router keeps.
    TooLarge,
    /// The prompt has more tokens than the model's context. The engine refuses it.
    TooLong,
    /// The messages have the wrong shape, or the chat template refuses them. The engine refuses them most likely.
    Refused,
    /// Only the engine can render the messages: images, for example, or a template that a router cannot run.
    Unrenderable,
    /// The model has no chat template.
    NoTemplate,
    /// The model's tokenizer has no tokens for the text.
    Tokenizer,
    /// The client sends a chat template of its own.
    ClientTemplate,
    /// The prompt, or a part of it, is embeddings.
    PromptEmbeds,
    /// The engine cuts the prompt.
    Truncated,
    /// The conversation's earlier turns are stored at an engine.
    StoredTurns,
    /// A system message stands between turns, which engines place differently.
    InlineSystem,
    /// The request has several prompts. It is routed by the first one.
    LaterPrompts,
}

impl Unhashed {
    /// The value of the label `reason` in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::TooLarge => "too_large",
            Self::TooLong => "too_long",
            Self::Refused => "refused",
            Self::Unrenderable => "unrenderable",
            Self::NoTemplate => "no_template",
            Self::Tokenizer => "tokenizer",
            Self::ClientTemplate => "client_template",
            Self::PromptEmbeds => "prompt_embeds",
            Self::Truncated => "truncated",
            Self::StoredTurns => "stored_turns",
            Self::InlineSystem => "inline_system",
            Self::LaterPrompts => "later_prompts",
        }
    }
}

impl Prepared {
    /// The request for the router, made ready for `form`. `lora` is the LoRA adapter that the model's name means, or empty.
    /// `deadline_ms` counts from now on. The caller sets the answer's date.
    pub(crate) fn into_route_request(
        self,
        form: PromptForm,
        endpoint: Endpoint,
        lora: String,
        body: Bytes,
        id: RequestId,
        deadline_ms: u64,
    ) -> RouteRequest {
        let generation = Arc::unwrap_or_clone(self.generation);
        let is_chat = self.response.is_some();
        let endpoint = if is_chat { Endpoint::Chat } else { endpoint };
        RouteRequest {
            form,
            max_output_tokens: generation.max_tokens,
            explained: false,
            other_forms: Vec::new(),
            generate: GenerateRequest {
                id,
                model: generation.model,
                deadline_ms,
                lora,
                cache_salt: generation.cache_salt,
                priority: generation.priority,
                overlap_blocks: 0,
                wants_token_ids: false,
                continuation: None,
                constraint: generation.constraint,
                sampling: SamplingParams {
                    max_tokens: self.max_tokens,
                    ..generation.sampling
                },
                format: AnswerFormat {
                    endpoint,
                    stream: generation.stream,
                    include_usage: generation.include_usage || (is_chat && generation.stream),
                    echo: self.echo,
                    return_token_ids: generation.return_token_ids,
                    continuous_usage: generation.continuous_usage,
                    tools: generation.tools,
                    created: 0,
                    part: self.part,
                },
            },
            tokens: self.tokens,
            unhashed_tokens: self.unhashed_tokens,
            // Only engines that read bodies themselves need it, and these get all prompts of a body at once.
            body: if self.part.is_some() { Bytes::new() } else { body },
            keys: generation.keys,
        }
    }
}
