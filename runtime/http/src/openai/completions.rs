//! `POST /v1/completions`, checked for an engine of this repository.

use serde_json::Value;
use signalbox_protocol::WireError;

use super::{
    fields::{Fields, wrong},
    sampling::{GenerationParams, token_id, top_logprobs},
};

/// Most likeliest tokens that are returned beside each token: vLLM's limit, and more than OpenAI's 5.
const MAX_LOGPROBS: i64 = 20;

/// Most prompts of one request, and most choices over all of them. The limit is that of OpenAI's embeddings; its completions
/// state none.
const MAX_PROMPTS: usize = 2_048;

/// Parameters that only plain completions have.
pub(super) const NAMES: [&str; 7] = [
    "prompt",
    "echo",
    "suffix",
    "best_of",
    "tools",
    "tool_choice",
    "add_special_tokens",
];

/// A text or token sequence to be continued.
#[derive(Debug, PartialEq)]
pub(crate) struct CompletionRequest {
    /// What is to be generated.
    pub(crate) generation: GenerationParams,
    /// The texts or tokens to be continued, each by choices of its own; at least one.
    pub(crate) prompts: Vec<Prompt>,
    /// Whether the answer begins with the prompt.
    pub(crate) echo: bool,
    /// Whether a text gets the tokens that the tokenizer puts around a prompt, such as the one that begins a sequence.
    pub(crate) add_special_tokens: bool,
}

/// The text or tokens that a completion continues.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    /// Text, to be tokenised.
    Text(String),
    /// Token ids of the model's vocabulary, at least one.
    Tokens(Vec<u32>),
}

impl CompletionRequest {
    /// Takes and checks the parameters of a request to `model`.
    pub(crate) fn take(model: String, fields: &mut Fields) -> Result<Self, WireError> {
        let echo = fields.flag("echo")?.unwrap_or(false);
        // An answer that repeats its prompt may have nothing else: this is how prompts are scored.
        let mut generation = GenerationParams::take(model, fields, i64::from(!echo))?;
        let sampling = &mut generation.sampling;
        sampling.logprobs = top_logprobs(fields, "logprobs", MAX_LOGPROBS)?;
        sampling.prompt_logprobs = echo && sampling.logprobs.is_some();
        if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            let message =
                "suffix asks for text that fits before it, which the engines do not support; leave it out";
            return Err(WireError::invalid_param("suffix", message));
        }
        for name in ["tools", "tool_choice"] {
            let is_neutral = |value: &Value| value == "none" || value.as_array().is_some_and(Vec::is_empty);
            if fields.take(name)?.is_some_and(|value| !is_neutral(&value)) {
                let message = format!("{name} is for chats; leave it out, or use /v1/chat/completions");
                return Err(WireError::invalid_param(name, message));
            }
        }
        let n = generation.sampling.n;
        best_of(fields, n)?;
        let prompts = prompts(fields)?;
        let choices = prompts.len().saturating_mul(n as usize);
        if choices > MAX_PROMPTS {
            let message = format!(
                "n is {n} for each of {} prompts, which makes {choices} choices; ask for at most {MAX_PROMPTS}",
                prompts.len()
            );
            return Err(WireError::invalid_param("n", message));
        }
        Ok(Self {
            generation,
            prompts,
            echo,
            add_special_tokens: fields.flag("add_special_tokens")?.unwrap_or(true),
        })
    }
}

/// Engines return all choices they generate: `best_of` other than `n` is refused.
fn best_of(fields: &mut Fields, n: u32) -> Result<(), WireError> {
    match fields.integer("best_of", 1..=i64::from(u32::MAX))? {
        Some(best_of) if best_of != i64::from(n) => {
            let message = format!(
                "best_of is {best_of} and n is {n}; the engines return all choices: leave best_of out"
            );
            Err(WireError::invalid_param("best_of", message))
        }
        _ => Ok(()),
    }
}

fn prompts(fields: &mut Fields) -> Result<Vec<Prompt>, WireError> {
    const RIGHT: &str = "a string, an array of token ids, or an array of either";
    let items = match fields.take("prompt")? {
        None => {
            return Err(WireError::invalid_param(
                "prompt",
                format!("prompt is missing; give {RIGHT}"),
            ));
        }
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(items)) if !items.is_empty() => items,
        Some(other) => return Err(wrong("prompt", &other, RIGHT)),
    };
    if !matches!(items[0], Value::String(_) | Value::Array(_)) {
        return Ok(vec![Prompt::Tokens(token_ids("prompt", &items)?)]);
    }
    if items.len() > MAX_PROMPTS {
        let message = format!("prompt has {} prompts; give at most {MAX_PROMPTS}", items.len());
        return Err(WireError::invalid_param("prompt", message));
    }
    let are_texts = items[0].is_string();
    let prompts = items.into_iter().enumerate().map(|(i, item)| {
        let param = format!("prompt[{i}]");
        match item {
            Value::String(text) if are_texts => Ok(Prompt::Text(text)),
            Value::Array(tokens) if !are_texts && !tokens.is_empty() => {
                token_ids(&param, &tokens).map(Prompt::Tokens)
            }
            other if are_texts => Err(wrong(&param, &other, "a string, as the first prompt is")),
            other => Err(wrong(
                &param,
                &other,
                "an array of token ids, as the first prompt is",
            )),
        }
    });
    prompts.collect()
}

/// Token ids, which the parameter `param` holds.
pub(crate) fn token_ids(param: &str, items: &[Value]) -> Result<Vec<u32>, WireError> {
    let tokens = items.iter().enumerate().map(|(i, item)| {
        token_id(item).ok_or_else(|| {
            wrong(
                &format!("{param}[{i}]"),
                item,
                "a token id: an integer of at least 0",
            )
        })
    });
    tokens.collect()
}
