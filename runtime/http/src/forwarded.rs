//! Requests to engines that read bodies themselves: only what routing needs is read, and nothing is refused.
//!
//! The body goes to the worker unchanged, so a wrong value is the engine's to refuse, with its own error. Here a value of
//! an unexpected type counts as absent. A prompt whose tokens cannot be known makes no error either: the request is
//! routed by load and by its conversation, and counted with the reason ([`Unhashed`]). Otherwise the tokens are those
//! of the engine, because the prompt is converted as vLLM converts it. Its worker compares them.

mod anthropic;
mod completions;
mod conversation;
mod lenient;
mod prompt;
mod responses;

use std::sync::Arc;

use serde_json::Value;
use signalbox_protocol::{Endpoint, SamplingParams};
use signalbox_router::ModelView;

use self::prompt::Prompt;
use crate::{
    client_keys::BodyNames,
    openai::{Fields, GenerationParams, urgency},
    prepared::{Prepared, Unhashed},
};

/// The length of a plain completion if the client sets none, in tokens.
const DEFAULT_COMPLETION_TOKENS: u32 = 16;

/// Longest tenant salt in bytes that is hashed and sent. vLLM takes up to 1,024 characters.
const MAX_SALT_BYTES: usize = 4_096;

/// The parameters of all routes that routing reads.
const COMMON: [&str; 14] = [
    "model",
    "stream",
    "stream_options",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "prompt_cache_key",
    "session_id",
    "safety_identifier",
    "user",
    "metadata",
    "cache_salt",
    "priority",
];

/// The parameters of a route that routing reads: those of all routes, and those of the route's prompt.
pub(crate) fn names(endpoint: Endpoint) -> [&'static [&'static str]; 2] {
    let prompt: &[&str] = match endpoint {
        Endpoint::Chat => &conversation::CHAT_NAMES,
        Endpoint::Completions => &completions::NAMES,
        Endpoint::Responses => &responses::NAMES,
        Endpoint::Messages => &anthropic::NAMES,
        Endpoint::Embeddings
        | Endpoint::Rerank
        | Endpoint::Score
        | Endpoint::Tokenize
        | Endpoint::Detokenize => &[],
    };
    [&COMMON, prompt]
}

/// Reads what routing needs of a request to `model`, whose body has `body_bytes` bytes.
pub(crate) fn prepare(
    endpoint: Endpoint,
    name: String,
    fields: &mut Fields,
    model: &ModelView,
    body_bytes: usize,
) -> Prepared {
    let context = model.context_length;
    let mut prompt = match endpoint {
        Endpoint::Chat => conversation::chat(fields).into_prompt(&model.text, context),
        Endpoint::Responses => responses::conversation(fields).into_prompt(&model.text, context),
        Endpoint::Messages => anthropic::conversation(fields).into_prompt(&model.text, context),
        Endpoint::Completions => completions::prompt(fields, &model.text, context),
        _ => Prompt::default(),
    };
    if endpoint.generates() {
        prompt.fit(lenient::truncation(fields), model.context_length);
    }
    let estimate = u32::try_from(body_bytes / prompt::BYTES_PER_TOKEN).unwrap_or(u32::MAX);
    let unhashed_tokens = match endpoint {
        // No prompt is computed.
        Endpoint::Tokenize | Endpoint::Detokenize => 0,
        // Images are larger in a body than in a context.
        _ if endpoint.generates() && prompt.tokens.is_empty() => estimate.min(model.context_length),
        _ if endpoint.generates() => prompt.later_tokens,
        _ => estimate,
    };
    let mut generation = generation(endpoint, name, fields);
    if prompt.unhashed.is_some() && generation.keys.session == 0 {
        generation.keys.session = prompt.opening;
    }
    let prompt_tokens = u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX);
    let rest = model.context_length.saturating_sub(prompt_tokens);
    let max_tokens = match endpoint {
        Endpoint::Completions => generation
            .max_tokens
            .unwrap_or(DEFAULT_COMPLETION_TOKENS)
            .min(rest),
        _ if endpoint.generates() => generation.max_tokens.unwrap_or(rest).min(rest),
        _ => 0,
    };
    generation.sampling.n = generation.sampling.n.saturating_mul(prompt.prompts.max(1));
    Prepared {
        generation: Arc::new(generation),
        max_tokens,
        tokens: prompt.tokens,
        unhashed_tokens,
        unhashed: prompt.unhashed,
        echo: None,
        part: None,
        response: None,
    }
}

/// Appends an item of a response's input to the messages of a chat, as vLLM does.
///
/// # Errors
/// Only an engine can read it.
pub(crate) fn append_item(messages: &mut Vec<Value>, item: Value) -> Result<(), Unhashed> {
    responses::append(messages, item)
}

/// What is to be generated. Of the sampling parameters only those count that say how much.
fn generation(endpoint: Endpoint, name: String, fields: &mut Fields) -> GenerationParams {
    // Each route has one of the names; chats have two, of which the newer one counts.
    let [output, newer, older] =
        ["max_output_tokens", "max_completion_tokens", "max_tokens"].map(|name| lenient::count(fields, name));
    let stream = endpoint.generates() && lenient::flag(fields, "stream").unwrap_or(false);
    GenerationParams {
        model: name,
        sampling: SamplingParams {
            n: lenient::count(fields, "n").unwrap_or(1),
            ..SamplingParams::default()
        },
        max_tokens: output.or(newer).or(older),
        stream,
        include_usage: stream && lenient::include_usage(fields),
        continuous_usage: false,
        constraint: None,
        tools: None,
        return_token_ids: false,
        cache_salt: lenient::text(fields, "cache_salt")
            .filter(|salt| salt.len() <= MAX_SALT_BYTES)
            .unwrap_or_default(),
        keys: names_in(fields).keys(),
        priority: lenient::integer(fields, "priority").map_or(0, urgency),
    }
}

/// What the client names.
fn names_in(fields: &mut Fields) -> BodyNames {
    let metadata = lenient::member_text(fields, "metadata", "user_id");
    let mut name = |member| lenient::text(fields, member);
    BodyNames {
        session_id: name("session_id"),
        user: name("user").or(metadata),
        prompt_cache_key: name("prompt_cache_key"),
        safety_identifier: name("safety_identifier"),
    }
}

#[cfg(test)]
mod tests;
