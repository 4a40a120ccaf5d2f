//! `POST /v1/completions`, checked for an engine of this repository.

use serde_json::Value;
use signalbox_protocol::WireError;

use super::{
    fields::{Fields, wrong},
    sampling::{GenerationParams, token_id, top_logprobs},
};

/// OpenAI's limit on the number of likeliest tokens that are returned beside each token.
const MAX_LOGPROBS: i64 = 5;

/// Parameters that only plain completions have.
pub(super) const NAMES: [&str; 4] = ["prompt", "echo", "suffix", "best_of"];

/// A text or token sequence to be continued.
#[derive(Debug, PartialEq)]
pub(crate) struct CompletionRequest {
    /// What is to be generated.
    pub(crate) generation: GenerationParams,
    /// The text or tokens to be continued.
    pub(crate) prompt: Prompt,
    /// Whether the answer begins with the prompt.
    pub(crate) echo: bool,
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
        let mut generation = GenerationParams::take(model, fields)?;
        generation.sampling.logprobs = top_logprobs(fields, "logprobs", MAX_LOGPROBS)?;
        let echo = fields.flag("echo")?.unwrap_or(false);
        if echo && generation.sampling.logprobs.is_some() {
            let message = "echo with logprobs asks for log probabilities of the prompt, which the engines do not \
                           compute; leave one of them out";
            return Err(WireError::invalid_param("echo", message));
        }
        if fields.text("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            let message =
                "suffix asks for text that fits before it, which the engines do not support; leave it out";
            return Err(WireError::invalid_param("suffix", message));
        }
        best_of(fields, generation.sampling.n)?;
        Ok(Self {
            generation,
            prompt: prompt(fields)?,
            echo,
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

fn prompt(fields: &mut Fields) -> Result<Prompt, WireError> {
    const RIGHT: &str = "a string or an array of token ids";
    let one_only = |count: usize| {
        let message =
            format!("prompt has {count} prompts; give one and send the others in separate requests");
        WireError::invalid_param("prompt", message)
    };
    match fields.take("prompt")? {
        None => Err(WireError::invalid_param(
            "prompt",
            format!("prompt is missing; give {RIGHT}"),
        )),
        Some(Value::String(text)) => Ok(Prompt::Text(text)),
        Some(Value::Array(mut items)) => match items.first() {
            None => Err(wrong("prompt", &Value::Array(items), RIGHT)),
            Some(Value::String(_) | Value::Array(_)) if items.len() > 1 => Err(one_only(items.len())),
            Some(Value::String(_) | Value::Array(_)) => match items.swap_remove(0) {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(tokens) if !tokens.is_empty() => token_ids("prompt[0]", &tokens),
                other => Err(wrong("prompt[0]", &other, RIGHT)),
            },
            Some(_) => token_ids("prompt", &items),
        },
        Some(other) => Err(wrong("prompt", &other, RIGHT)),
    }
}

fn token_ids(param: &str, items: &[Value]) -> Result<Prompt, WireError> {
    let tokens = items.iter().enumerate().map(|(i, item)| {
        token_id(item).ok_or_else(|| {
            wrong(
                &format!("{param}[{i}]"),
                item,
                "a token id: an integer of at least 0",
            )
        })
    });
    Ok(Prompt::Tokens(tokens.collect::<Result<_, _>>()?))
}
