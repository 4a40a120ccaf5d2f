//! `POST /v1/chat/completions`, checked for an engine of this repository.

use serde_json::{Map, Value, json};
use signalbox_protocol::WireError;
use signalbox_tokenize::ChatPrompt;

use super::{
    fields::{Fields, wrong},
    sampling::{GenerationParams, max_tokens, top_logprobs},
    tools::tools,
};

/// Most messages of one conversation. A template runs once per message, and its cost is not linear for all models.
const MAX_MESSAGES: usize = 4_096;

/// OpenAI's limit on the number of likeliest tokens that are returned beside each token.
const MAX_TOP_LOGPROBS: i64 = 20;

/// Parameters that only chats have.
pub(super) const NAMES: [&str; 11] = [
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "echo",
    "chat_template_kwargs",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
];

/// The roles of OpenAI's API. Templates ignore others or print them as they are; models were not trained on either.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// A chat to be continued.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    /// What is to be generated.
    pub(crate) generation: GenerationParams,
    /// OpenAI's array: each an object with a `role` and, where the role needs one, a text `content`.
    pub(crate) messages: Value,
    /// The tools that the prompt describes.
    pub(crate) tools: Option<Value>,
    /// How the chat becomes a prompt.
    pub(crate) rendering: Rendering,
}

/// vLLM's parameters of a chat's prompt.
#[derive(Debug, PartialEq)]
pub(crate) struct Rendering {
    /// More variables of the chat template: an object, if the client sets any.
    template_kwargs: Option<Value>,
    add_generation_prompt: bool,
    continue_final_message: bool,
    add_special_tokens: bool,
}

impl Rendering {
    /// Takes and checks the parameters. Renderer and template refuse what does not go together.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, WireError> {
        let template_kwargs = match fields.take("chat_template_kwargs")? {
            None => None,
            Some(kwargs @ Value::Object(_)) => Some(kwargs),
            Some(other) => {
                return Err(wrong(
                    "chat_template_kwargs",
                    &other,
                    "an object of the template's variables",
                ));
            }
        };
        Ok(Self {
            template_kwargs,
            add_generation_prompt: fields.flag("add_generation_prompt")?.unwrap_or(true),
            continue_final_message: fields.flag("continue_final_message")?.unwrap_or(false),
            add_special_tokens: fields.flag("add_special_tokens")?.unwrap_or(false),
        })
    }

    /// The chat of these messages.
    pub(crate) fn prompt<'a>(&'a self, messages: &'a Value) -> ChatPrompt<'a> {
        ChatPrompt {
            template_kwargs: self.template_kwargs.as_ref(),
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message,
            add_special_tokens: self.add_special_tokens,
            ..ChatPrompt::new(messages)
        }
    }
}

impl ChatRequest {
    /// Takes and checks the parameters of a request to `model`.
    pub(crate) fn take(model: String, fields: &mut Fields) -> Result<Self, WireError> {
        let mut generation = GenerationParams::take(model, fields, 1)?;
        // `max_tokens` is the older name of the same limit.
        let newer = max_tokens(fields, "max_completion_tokens", 1)?;
        generation.max_tokens = newer.or(generation.max_tokens);
        generation.sampling.logprobs = logprobs(fields)?;
        if fields.flag("echo")?.unwrap_or(false) {
            let message = "echo asks for the prompt in the answer, which chats do not have; leave it out";
            return Err(WireError::invalid_param("echo", message));
        }
        let tools = tools(fields)?.map(|chosen| {
            generation.tools = Some(chosen.output);
            (chosen.tools, chosen.constraint)
        });
        let tools = match tools {
            Some((_, Some(_))) if generation.constraint.is_some() => {
                let message = "tool_choice asks for a call, and another member constrains the answer; leave one of them out";
                return Err(WireError::invalid_param("tool_choice", message));
            }
            Some((tools, constraint)) => {
                generation.constraint = constraint.or(generation.constraint);
                Some(tools)
            }
            None => None,
        };
        Ok(Self {
            generation,
            tools,
            messages: messages(fields)?,
            rendering: Rendering::take(fields)?,
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

/// OpenAI's `messages`, checked.
pub(crate) fn messages(fields: &mut Fields) -> Result<Value, WireError> {
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
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role.as_str(),
        other => {
            let param = format!("messages[{i}].role");
            return Err(wrong(
                &param,
                other.unwrap_or(&Value::Null),
                "system, developer, user, assistant or tool",
            ));
        }
    };
    // An assistant's message may hold only tool calls or a refusal.
    let is_optional = role == "assistant";
    if is_optional {
        show_refusals(members);
    }
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

/// An assistant's refusal, which clients send back with the conversation, is what the assistant said: it becomes the text.
fn show_refusals(message: &mut Map<String, Value>) {
    let refusal = message
        .get("refusal")
        .filter(|refusal| refusal.is_string())
        .cloned();
    match (message.get_mut("content"), refusal) {
        (None | Some(Value::Null), Some(refusal)) => _ = message.insert("content".into(), refusal),
        (Some(Value::Array(parts)), _) => {
            for part in parts {
                if part["type"] == "refusal"
                    && let Some(refusal @ Value::String(_)) = part.get("refusal")
                {
                    *part = json!({"type": "text", "text": refusal});
                }
            }
        }
        _ => {}
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
