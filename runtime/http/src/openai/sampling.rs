//! The parameters that chat and plain completions share.

use std::collections::BTreeMap;

use serde_json::Value;
use signalbox_protocol::{Constraint, SamplingParams, ToolOutput, WireError};
use signalbox_router::RequestKeys;

use super::{
    fields::{Fields, integer, wrong},
    refused, tools,
};
use crate::client_keys::BodyNames;

/// Largest repetition penalty: with more, logits leave the range of their type.
const MAX_REPETITION_PENALTY: f64 = 100.0;

/// Most choices of one prompt: OpenAI's limit. Each is a sequence of its own at the engine, which refuses more than it has room
/// for. (A request with a huge `n` made vLLM fail: CVE-2026-34756.)
pub(super) const MAX_CHOICES: i64 = 128;

/// Most stop texts; OpenAI's limit. Each is searched for at every token.
const MAX_STOPS: usize = 4;

/// Longest stop text in bytes. The answer is delayed by up to this much while its end may begin a stop text.
const MAX_STOP_BYTES: usize = 1_024;

/// Most tokens with a bias. Each bias is applied at every token.
const MAX_BIASED_TOKENS: usize = 1_024;

/// Most tokens that end the answer. Each token of the answer is compared with them.
const MAX_STOP_TOKENS: usize = 256;

/// Most forbidden texts, and longest one in bytes. They are compared with the end of the answer at every token.
const MAX_BAD_WORDS: usize = 128;
const MAX_BAD_WORD_BYTES: usize = 256;

/// Longest model name, tenant salt or user name in bytes. They are hashed and sent with every request.
const MAX_NAME_BYTES: usize = 512;

/// The names of these parameters.
pub(super) const NAMES: [&str; 29] = [
    "model",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "n",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "ignore_eos",
    "max_tokens",
    "stream",
    "stream_options",
    "user",
    "prompt_cache_key",
    "session_id",
    "safety_identifier",
    "cache_salt",
    "priority",
    "logprobs",
    "min_tokens",
    "stop_token_ids",
    "bad_words",
    "min_p",
    "repetition_penalty",
    "return_token_ids",
    "response_format",
    "structured_outputs",
];

/// What is to be generated, apart from the prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GenerationParams {
    /// The model's name as the client wrote it.
    pub(crate) model: String,
    /// All sampling parameters but `max_tokens`, which depends on the model's context.
    pub(crate) sampling: SamplingParams,
    /// The client's limit, if it set one; 0 only to score a prompt that the answer repeats.
    pub(crate) max_tokens: Option<u32>,
    /// Server-sent events rather than one JSON document.
    pub(crate) stream: bool,
    /// A last event with the token counts.
    pub(crate) include_usage: bool,
    /// The token counts so far in each event.
    pub(crate) continuous_usage: bool,
    /// The ids of the prompt's and the answer's tokens in the answer.
    pub(crate) return_token_ids: bool,
    /// What the answer's text must obey.
    pub(crate) constraint: Option<Constraint>,
    /// How the text becomes tool calls.
    pub(crate) tools: Option<ToolOutput>,
    /// Separates the KV cache of tenants; empty for none.
    pub(crate) cache_salt: String,
    /// Hashes of what the client names.
    pub(crate) keys: RequestKeys,
    /// A greater number is more urgent; 0 if the client sets none.
    pub(crate) priority: i32,
}

impl GenerationParams {
    /// Takes the shared parameters except `model` and `logprobs`. Refuses parameters that are given twice, and those that
    /// the engines of this repository do not support. `least_tokens` is the least that `max_tokens` may be.
    pub(super) fn take(model: String, fields: &mut Fields, least_tokens: i64) -> Result<Self, WireError> {
        fields.check_unique()?;
        refused::check(fields)?;
        let default = SamplingParams::default();
        let unit = "a number from 0 to 2";
        let penalty = |number: f64| (-2.0..=2.0).contains(&number);
        let top_p = |number: f64| number > 0.0 && number <= 1.0;
        let sampling = SamplingParams {
            temperature: fields
                .number("temperature", |number| (0.0..=2.0).contains(&number), unit)?
                .unwrap_or(default.temperature),
            top_p: fields
                .number("top_p", top_p, "a number greater than 0 and at most 1")?
                .unwrap_or(default.top_p),
            top_k: top_k(fields)?,
            // Negative seeds are accepted: equal seeds only have to stay equal.
            seed: fields
                .integer("seed", i64::MIN..=i64::MAX)?
                .map(i64::cast_unsigned),
            stop: stop(fields)?,
            n: fields.integer("n", 1..=MAX_CHOICES)?.map_or(default.n, small),
            presence_penalty: fields
                .number("presence_penalty", penalty, "a number from -2 to 2")?
                .unwrap_or(default.presence_penalty),
            frequency_penalty: fields
                .number("frequency_penalty", penalty, "a number from -2 to 2")?
                .unwrap_or(default.frequency_penalty),
            logit_bias: logit_bias(fields)?,
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(default.ignore_eos),
            prompt_logprobs: default.prompt_logprobs,
            max_tokens: default.max_tokens,
            logprobs: None,
            min_tokens: fields
                .integer("min_tokens", 0..=i64::from(u32::MAX))?
                .map_or(default.min_tokens, small),
            stop_token_ids: stop_token_ids(fields)?,
            bad_words: bad_words(fields)?,
            min_p: fields
                .number(
                    "min_p",
                    |number| (0.0..=1.0).contains(&number),
                    "a number from 0 to 1",
                )?
                .unwrap_or(default.min_p),
            repetition_penalty: fields
                .number(
                    "repetition_penalty",
                    |number| number > 0.0 && number <= MAX_REPETITION_PENALTY,
                    "a number greater than 0 and at most 100",
                )?
                .unwrap_or(default.repetition_penalty),
        };
        let stream = fields.flag("stream")?.unwrap_or(false);
        let (include_usage, continuous_usage) = stream_usage(fields, stream)?;
        Ok(Self {
            model,
            sampling,
            max_tokens: max_tokens(fields, "max_tokens", least_tokens)?,
            stream,
            include_usage,
            continuous_usage,
            constraint: tools::constraint(fields)?,
            tools: None,
            return_token_ids: fields.flag("return_token_ids")?.unwrap_or(false),
            cache_salt: name(fields, "cache_salt")?.unwrap_or_default(),
            keys: names_in(fields)?.keys(),
            priority: fields
                .integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?
                .map_or(0, urgency),
        })
    }
}

/// How urgent a request of this `priority` is. Clients write vLLM's `priority`, of which a lower one is earlier; routers and
/// policies have a number of which a greater one is more urgent.
pub(crate) fn urgency(priority: i64) -> i32 {
    let clamped = priority.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
    i32::try_from(-clamped).unwrap_or(i32::MAX)
}

/// A limit on the answer's tokens, at least `least`.
pub(super) fn max_tokens(fields: &mut Fields, name: &str, least: i64) -> Result<Option<u32>, WireError> {
    Ok(fields.integer(name, least..=i64::from(u32::MAX))?.map(small))
}

/// An integer whose range was checked to lie within 32 bits.
pub(super) fn small(number: i64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The model's name, which every request has.
pub(crate) fn take_model(fields: &mut Fields) -> Result<String, WireError> {
    const MISSING: &str = "model is missing; give the name of a served model, see GET /v1/models";
    name(fields, "model")?.ok_or_else(|| WireError::invalid_param("model", MISSING))
}

/// A name: a string that is neither empty nor too long.
fn name(fields: &mut Fields, param: &str) -> Result<Option<String>, WireError> {
    let Some(text) = fields.text(param)? else {
        return Ok(None);
    };
    if (1..=MAX_NAME_BYTES).contains(&text.len()) {
        return Ok(Some(text));
    }
    let message = format!("{param} has {} bytes; give 1 to {MAX_NAME_BYTES}", text.len());
    Err(WireError::invalid_param(param, message))
}

/// `-1` and `0` both mean all tokens: engines differ in which one they take.
fn top_k(fields: &mut Fields) -> Result<u32, WireError> {
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?.unwrap_or(0);
    Ok(small(top_k.max(0)))
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, WireError> {
    let texts = match fields.take("stop")? {
        None => return Ok(Vec::new()),
        Some(Value::Array(texts)) if texts.len() > MAX_STOPS => {
            let message = format!("stop has {} texts; give at most {MAX_STOPS}", texts.len());
            return Err(WireError::invalid_param("stop", message));
        }
        Some(Value::Array(texts)) => texts
            .into_iter()
            .enumerate()
            .map(|(i, text)| (format!("stop[{i}]"), text))
            .collect(),
        Some(text @ Value::String(_)) => vec![("stop".to_owned(), text)],
        Some(other) => return Err(wrong("stop", &other, "a string or an array of strings")),
    };
    let texts = texts.into_iter().map(|(param, text)| match text {
        Value::String(text) if (1..=MAX_STOP_BYTES).contains(&text.len()) => Ok(text),
        other => Err(wrong(
            &param,
            &other,
            &format!("a string of 1 to {MAX_STOP_BYTES} bytes"),
        )),
    });
    texts.collect()
}

/// OpenAI's format: token ids as JSON strings, each with a number from −100 to 100.
fn logit_bias(fields: &mut Fields) -> Result<BTreeMap<u32, f32>, WireError> {
    let members = match fields.take("logit_bias")? {
        None => return Ok(BTreeMap::new()),
        Some(Value::Object(members)) => members,
        Some(other) => return Err(wrong("logit_bias", &other, "an object of token ids and numbers")),
    };
    if members.len() > MAX_BIASED_TOKENS {
        let message = format!(
            "logit_bias has {} tokens; give at most {MAX_BIASED_TOKENS}",
            members.len()
        );
        return Err(WireError::invalid_param("logit_bias", message));
    }
    let biases = members.into_iter().map(|(token, bias)| {
        let id = token.parse::<u32>().map_err(|_| {
            // The key is the client's text: only as much of it is repeated as a number can be long.
            let shown: String = token.chars().take(20).collect();
            let message = format!("logit_bias has the key {shown:?}; give token ids as keys");
            WireError::invalid_param("logit_bias", message)
        })?;
        match bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias)) {
            #[expect(clippy::cast_possible_truncation, reason = "sampling has 32-bit precision")]
            Some(bias) => Ok((id, bias as f32)),
            None => Err(wrong(
                &format!("logit_bias.{id}"),
                &bias,
                "a number from -100 to 100",
            )),
        }
    });
    biases.collect()
}

/// `include_usage` and `continuous_usage_stats`, which as in vLLM is only for streams with the first one.
fn stream_usage(fields: &mut Fields, stream: bool) -> Result<(bool, bool), WireError> {
    let options = match fields.take("stream_options")? {
        None => return Ok((false, false)),
        Some(Value::Object(options)) => options,
        Some(other) => return Err(wrong("stream_options", &other, "an object")),
    };
    if !stream {
        let message = "stream_options is only for streams; set stream to true or leave stream_options out";
        return Err(WireError::invalid_param("stream_options", message));
    }
    let flag = |name: &str| match options.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(wrong(&format!("stream_options.{name}"), other, "true or false")),
    };
    let include = flag("include_usage")?;
    Ok((include, flag("continuous_usage_stats")? && include))
}

fn stop_token_ids(fields: &mut Fields) -> Result<Vec<u32>, WireError> {
    list(
        fields,
        "stop_token_ids",
        MAX_STOP_TOKENS,
        "a token id: an integer of at least 0",
        token_id,
    )
}

fn bad_words(fields: &mut Fields) -> Result<Vec<String>, WireError> {
    let right = format!("a string of 1 to {MAX_BAD_WORD_BYTES} bytes, not of spaces alone");
    list(fields, "bad_words", MAX_BAD_WORDS, &right, |word| {
        let word = word.as_str()?;
        let is_right = word.len() <= MAX_BAD_WORD_BYTES && !word.trim().is_empty();
        is_right.then(|| word.to_owned())
    })
}

/// An array of at most `most` items, each of which `read` takes; `right` describes these.
fn list<T>(
    fields: &mut Fields,
    name: &str,
    most: usize,
    right: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<T>, WireError> {
    let items = match fields.take(name)? {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) if items.len() > most => {
            let message = format!("{name} has {} items; give at most {most}", items.len());
            return Err(WireError::invalid_param(name, message));
        }
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong(name, &other, "an array")),
    };
    let items = items.iter().enumerate();
    items
        .map(|(i, item)| read(item).ok_or_else(|| wrong(&format!("{name}[{i}]"), item, right)))
        .collect()
}

/// What the client names.
fn names_in(fields: &mut Fields) -> Result<BodyNames, WireError> {
    Ok(BodyNames {
        session_id: fields.text("session_id")?,
        user: fields.text("user")?,
        prompt_cache_key: fields.text("prompt_cache_key")?,
        safety_identifier: fields.text("safety_identifier")?,
    })
}

/// The number of likeliest tokens to be returned beside each token.
pub(super) fn top_logprobs(fields: &mut Fields, name: &str, most: i64) -> Result<Option<u32>, WireError> {
    Ok(fields.integer(name, 0..=most)?.map(small))
}

/// Like [`super::fields::integer`], for token ids.
pub(crate) fn token_id(value: &Value) -> Option<u32> {
    integer(value).and_then(|number| u32::try_from(number).ok())
}
