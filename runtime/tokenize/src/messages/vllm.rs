//! The preparation of vLLM 0.32 (`_parse_chat_message_content`, `_postprocess_messages`, `_convert_developer_to_system`,
//! `_consolidate_system_messages`, and the request's schema, which keeps the members of a tool call in its own order).

use std::borrow::Cow;

use minijinja::Value;
use minijinja::value::ValueKind;
use serde_json::{Map, Value as Json};

use super::{Content, Message, Part, joined, shape, tool_calls};
use crate::TextError;
use crate::template::ContentFormat;
use crate::values::{object, parsed, value, value_or_none};

/// A line that one client puts before its system prompt, with a value that differs in every request. vLLM removes it
/// because no prefix behind it would ever be found in the KV cache.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

pub(super) fn message<'a>(
    index: usize,
    message: &'a Json,
    format: ContentFormat,
) -> Result<Message<'a>, TextError> {
    let (param, message, role) = shape::message(index, message)?;
    let content_param = format!("{param}.content");
    let mut parts = parts(&content_param, message.get("content"))?;
    if role == "system" {
        without_billing_header(&mut parts);
    }
    let content = match format {
        ContentFormat::Text => text(parts),
        ContentFormat::Parts if role == "tool" && parts.iter().all(Part::is_text) => {
            Content::Text(joined(parts.into_iter().filter_map(Part::text).collect(), "\n"))
        }
        ContentFormat::Parts => Content::Parts(parts),
    };
    Ok(Message {
        role,
        content,
        others: others(&param, message, role)?,
    })
}

/// The content as a string: texts that are not empty, joined with line breaks.
fn text(parts: Vec<Part<'_>>) -> Content<'_> {
    let texts = parts.into_iter().map(Part::into_text);
    Content::Text(joined(texts.filter(|text| !text.is_empty()).collect(), "\n"))
}

fn parts<'a>(param: &str, content: Option<&'a Json>) -> Result<Vec<Part<'a>>, TextError> {
    match content {
        None | Some(Json::Null) => Ok(Vec::new()),
        Some(Json::String(text)) => Ok(vec![Part::Text(Cow::Borrowed(text))]),
        Some(Json::Array(parts)) => {
            let parts = parts.iter().enumerate();
            let parts = parts.map(|(index, given)| part(&format!("{param}[{index}]"), given));
            parts.filter_map(Result::transpose).collect()
        }
        other => Err(shape::wrong_content(param, other)),
    }
}

/// `None` for a part that vLLM leaves out.
fn part<'a>(param: &str, part: &'a Json) -> Result<Option<Part<'a>>, TextError> {
    let members = match part {
        Json::String(text) => return Ok(Some(Part::Text(Cow::Borrowed(text)))),
        Json::Object(members) => members,
        other => return Err(shape::wrong_part(param, "", Some(other))),
    };
    let kind = match members.get("type") {
        Some(Json::String(kind)) => &**kind,
        None if members.contains_key("text") => return Err(shape::wrong_part(param, ".type", None)),
        None => return Err(shape::not_text(param, "")),
        other => return Err(shape::wrong_part(param, ".type", other)),
    };
    let member = match kind {
        "text" | "input_text" | "output_text" => "text",
        "refusal" => "refusal",
        "thinking" => "thinking",
        "tool_reference" => "name",
        other => return Err(shape::not_text(param, other)),
    };
    match members.get(member) {
        Some(Json::String(name)) if kind == "tool_reference" => Ok(Some(Part::ToolReference(name))),
        Some(Json::String(text)) => Ok(Some(Part::Text(Cow::Borrowed(text)))),
        None | Some(Json::Null) => Ok(None),
        other => Err(shape::wrong_part(param, &format!(".{member}"), other)),
    }
}

impl<'a> Part<'a> {
    fn is_text(&self) -> bool {
        matches!(self, Self::Text(_))
    }

    fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text),
            Self::ToolReference(_) => None,
        }
    }

    fn into_text(self) -> Cow<'a, str> {
        match self {
            Self::Text(text) => text,
            Self::ToolReference(name) => Cow::Borrowed(name),
        }
    }
}

fn without_billing_header(parts: &mut Vec<Part<'_>>) {
    parts.retain_mut(|part| {
        let Part::Text(text) = part else { return true };
        if !text.starts_with(BILLING_HEADER) {
            return true;
        }
        let rest = text.split_once('\n').map_or("", |(_, rest)| rest).to_owned();
        let keep = !rest.is_empty();
        *text = Cow::Owned(rest);
        keep
    });
}

/// The members beside role and content that vLLM passes on.
fn others<'a>(
    param: &str,
    message: &'a Map<String, Json>,
    role: &str,
) -> Result<Vec<(&'a str, Value)>, TextError> {
    let given = |name: &str| message.get(name).filter(|member| !member.is_null());
    let mut others = Vec::new();
    match role {
        "assistant" => {
            if let Some(calls) = given("tool_calls") {
                let calls = tool_calls::of(param, calls)?.iter().enumerate();
                let calls: Vec<Value> = calls
                    .map(|(index, call)| tool_call(param, index, call))
                    .collect::<Result<_, _>>()?;
                if !calls.is_empty() {
                    others.push(("tool_calls", Value::from(calls)));
                }
            }
            if let Some(reasoning) = given("reasoning").or_else(|| given("reasoning_content")) {
                let reasoning = value(reasoning);
                others.push(("reasoning", reasoning.clone()));
                others.push(("reasoning_content", reasoning));
            }
        }
        "tool" => {
            if let Some(id) = message.get("tool_call_id") {
                others.push(("tool_call_id", value(id)));
            }
        }
        "developer" => {
            others.push(("tools", value_or_none(message.get("tools"))));
        }
        _ => {}
    }
    for name in ["name", "task"] {
        if let Some(Json::String(text)) = message.get(name) {
            others.push((name, Value::from(&**text)));
        }
    }
    Ok(others)
}

fn tool_call(message_param: &str, index: usize, call: &Json) -> Result<Value, TextError> {
    let function = call.get("function").and_then(Json::as_object);
    let kind = call.get("type").map_or(Some("function"), Json::as_str);
    let (Some("function"), Some(function)) = (kind, function) else {
        let param = format!("{message_param}.tool_calls[{index}]");
        let text = format!(
            "{param} is no call of a function; it should be {{\"id\": …, \"type\": \"function\", \"function\": …}}"
        );
        return Err(TextError::param(param, text));
    };
    let mut called = vec![("arguments", arguments(function.get("arguments")))];
    called.extend(function.get("name").map(|name| ("name", value(name))));
    let mut members = Vec::with_capacity(3);
    members.extend(call.get("id").map(|id| ("id", value(id))));
    members.push(("function", object(called.into_iter())));
    members.push(("type", Value::from("function")));
    Ok(object(members.into_iter()))
}

/// Arguments that are no object, or no JSON, become an empty object: they are part of the conversation's past, and
/// vLLM lets the conversation go on.
fn arguments(arguments: Option<&Json>) -> Value {
    let parsed = match arguments {
        Some(Json::String(source)) => parsed(source),
        Some(given @ Json::Object(_)) => Some(value(given)),
        _ => None,
    };
    parsed
        .filter(|parsed| parsed.kind() == ValueKind::Map)
        .unwrap_or_else(tool_calls::empty)
}

/// The messages for a template without the role `developer`: if there is a developer's message, it and all system
/// messages become one system message, the first of all.
pub(super) fn with_system_for_developer(mut messages: Vec<Message<'_>>) -> Vec<Message<'_>> {
    if messages.iter().all(|message| message.role != "developer") {
        return messages;
    }
    for message in &mut messages {
        if message.role == "developer" {
            message.role = "system";
            message.others.retain(|(name, _)| *name != "tools");
        }
    }
    if messages.iter().skip(1).all(|message| message.role != "system") {
        return messages;
    }
    let (system, others): (Vec<_>, Vec<_>) =
        messages.into_iter().partition(|message| message.role == "system");
    let texts = system.into_iter().map(|message| match message.content {
        Content::Text(text) => text,
        Content::Parts(parts) => joined(parts.into_iter().filter_map(Part::text).collect(), "\n"),
    });
    let merged = Message {
        role: "system",
        content: Content::Text(joined(texts.filter(|text| !text.is_empty()).collect(), "\n\n")),
        others: Vec::new(),
    };
    std::iter::once(merged).chain(others).collect()
}
