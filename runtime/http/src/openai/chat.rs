//! `POST /v1/chat/completions`, checked for an engine of this repository.

use serde_json::Value;
use signalbox_protocol::WireError;

use super::{
    fields::{Fields, wrong},
    sampling::{GenerationParams, max_tokens, top_logprobs},
};

/// Most messages of one conversation. A template runs once per message, and its cost is not linear for all models.
const MAX_MESSAGES: usize = 4_096;

/// OpenAI's limit on the number of likeliest tokens that are returned beside each token.
const MAX_TOP_LOGPROBS: i64 = 20;

/// Parameters that only chats have.
pub(super) const NAMES: [&str; 4] = ["messages", "max_completion_tokens", "top_logprobs", "echo"];

/// A chat to be continued.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    /// What is to be generated.
    pub(crate) generation: GenerationParams,
    /// OpenAI's array: each an object with a `role` and, where the role needs one, a text `content`.
    pub(crate) messages: Value,
}

impl ChatRequest {
    /// Takes and checks the parameters of a request to `model`.
    pub(crate) fn take(model: String, fields: &mut Fields) -> Result<Self, WireError> {
        let mut generation = GenerationParams::take(model, fields)?;
        // `max_tokens` is the older name of the same limit.
        let newer = max_tokens(fields, "max_completion_tokens")?;
        generation.max_tokens = newer.or(generation.max_tokens);
        generation.sampling.logprobs = logprobs(fields)?;
        if fields.flag("echo")?.unwrap_or(false) {
            let message = "echo asks for the prompt in the answer, which chats do not have; leave it out";
            return Err(WireError::invalid_param("echo", message));
        }
        Ok(Self {
            generation,
            messages: messages(fields)?,
        })
    }
}

fn logprobs(fields: &mut Fields) -> Result<Option<u32>, WireError> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    match top_logprobs(fields, "top_logprobs", MAX_TOP_LOGPROBS)? {
        Some(top) if top > 0 && !wanted => {
            let message =
                "top_logprobs is only for answers with logprobs; set logprobs to true or leave it out";
            Err(WireError::invalid_param("top_logprobs", message))
        }
        top => Ok(wanted.then(|| top.unwrap_or(0))),
    }
}

fn messages(fields: &mut Fields) -> Result<Value, WireError> {
    let mut messages = match fields.take("messages")? {
        None => {
            return Err(WireError::invalid_param(
                "messages",
                "messages is missing; give an array of messages",
            ));
        }
        Some(Value::Array(messages)) => messages,
        Some(other) => return Err(wrong("messages", &other, "an array of messages")),
    };
    if !(1..=MAX_MESSAGES).contains(&messages.len()) {
        let message = format!(
            "messages has {} messages; give 1 to {MAX_MESSAGES}",
            messages.len()
        );
        return Err(WireError::invalid_param("messages", message));
    }
    for (i, message) in messages.iter_mut().enumerate() {
        check_message(i, message)?;
    }
    Ok(Value::Array(messages))
}

fn check_message(i: usize, message: &mut Value) -> Result<(), WireError> {
    let Value::Object(members) = message else {
        return Err(wrong(
            &format!("messages[{i}]"),
            message,
            "an object with role and content",
        ));
    };
    let role = match members.get("role") {
        Some(Value::String(role)) if !role.is_empty() => role.as_str(),
        other => {
            let param = format!("messages[{i}].role");
            return Err(wrong(
                &param,
                other.unwrap_or(&Value::Null),
                "system, user or assistant",
            ));
        }
    };
    // An assistant's message may hold only tool calls or a refusal.
    let is_optional = role == "assistant";
    match members.get("content") {
        Some(Value::String(_)) => Ok(()),
        Some(Value::Array(parts)) => parts
            .iter()
            .enumerate()
            .try_for_each(|(j, part)| check_part(&format!("messages[{i}].content[{j}]"), part)),
        None | Some(Value::Null) if is_optional => {
            members.insert("content".into(), Value::String(String::new()));
            Ok(())
        }
        other => {
            let right = "a string or an array of text parts";
            Err(wrong(
                &format!("messages[{i}].content"),
                other.unwrap_or(&Value::Null),
                right,
            ))
        }
    }
}

fn check_part(param: &str, part: &Value) -> Result<(), WireError> {
    match part.get("type").and_then(Value::as_str) {
        Some("text") => match part.get("text") {
            Some(Value::String(_)) => Ok(()),
            other => Err(wrong(
                &format!("{param}.text"),
                other.unwrap_or(&Value::Null),
                "a string",
            )),
        },
        Some(kind @ ("image_url" | "input_audio" | "file" | "video_url" | "audio_url" | "refusal")) => {
            let message = format!("{param}.type is {kind}, which the served models do not take; give text");
            Err(WireError::invalid_param(format!("{param}.type"), message))
        }
        _ => Err(wrong(
            &format!("{param}.type"),
            part.get("type").unwrap_or(&Value::Null),
            "text",
        )),
    }
}
