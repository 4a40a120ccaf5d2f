//! The preparation of SGLang 0.5 (`process_content_for_template_format`, `_apply_jinja_template`, and the request's
//! schema). The router's tokens of a chat are the prompt at an SGLang engine, which takes them beside the messages.

use std::borrow::Cow;

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::{Content, Message, Part, joined, shape, tool_calls};
use crate::TextError;
use crate::template::ContentFormat;
use crate::values::{object, value, value_or_none};

pub(super) fn message<'a>(
    index: usize,
    message: &'a Json,
    format: ContentFormat,
) -> Result<Message<'a>, TextError> {
    let (param, message, role) = shape::message(index, message)?;
    Ok(Message {
        role,
        content: content(&format!("{param}.content"), message.get("content"), format)?,
        others: others(&param, message, role)?,
    })
}

fn content<'a>(
    param: &str,
    content: Option<&'a Json>,
    format: ContentFormat,
) -> Result<Content<'a>, TextError> {
    let parts = match content {
        None | Some(Json::Null) => return Ok(Content::Text(Cow::Borrowed(""))),
        Some(Json::String(text)) => return Ok(Content::Text(Cow::Borrowed(text))),
        Some(Json::Array(parts)) => parts,
        other => return Err(shape::wrong_content(param, other)),
    };
    let parts = parts.iter().enumerate();
    let parts: Vec<_> = parts
        .map(|(index, given)| part(&format!("{param}[{index}]"), given))
        .collect::<Result<_, _>>()?;
    Ok(match format {
        ContentFormat::Parts => Content::Parts(parts),
        ContentFormat::Text => {
            let texts = parts.into_iter().filter_map(|part| match part {
                Part::Text(text) => Some(text),
                Part::ToolReference(_) => None,
            });
            Content::Text(joined(texts.collect(), " "))
        }
    })
}

fn part<'a>(param: &str, part: &'a Json) -> Result<Part<'a>, TextError> {
    let kind = match part.get("type") {
        Some(Json::String(kind)) => &**kind,
        other => return Err(shape::wrong_part(param, ".type", other)),
    };
    match kind {
        "text" | "input_text" => match part.get("text") {
            Some(Json::String(text)) => Ok(Part::Text(Cow::Borrowed(text))),
            other => Err(shape::wrong_part(param, ".text", other)),
        },
        "tool_reference" => match part.get("name") {
            Some(Json::String(name)) => Ok(Part::ToolReference(name)),
            other => Err(shape::wrong_part(param, ".name", other)),
        },
        other => Err(shape::not_text(param, other)),
    }
}

/// The members beside role and content that SGLang passes on, without those that are null.
fn others<'a>(
    param: &str,
    message: &'a Map<String, Json>,
    role: &str,
) -> Result<Vec<(&'a str, Value)>, TextError> {
    let mut others = Vec::new();
    for name in ["tool_call_id", "name", "reasoning_content", "tool_calls"] {
        let Some(member) = message.get(name).filter(|member| !member.is_null()) else {
            continue;
        };
        if name == "tool_calls" && role == "assistant" {
            let calls = tool_calls::of(param, member)?.iter().enumerate();
            let calls: Result<Vec<_>, _> = calls.map(|(index, call)| tool_call(param, index, call)).collect();
            others.push((name, Value::from(calls?)));
        } else {
            others.push((name, value(member)));
        }
    }
    Ok(others)
}

fn tool_call(message_param: &str, index: usize, call: &Json) -> Result<Value, TextError> {
    let member = |members: &Json, name: &str| value_or_none(members.get(name));
    let function = call.get("function").unwrap_or(&Json::Null);
    let arguments = match function.get("arguments") {
        Some(Json::String(source)) => tool_calls::strict_arguments(message_param, index, source)?,
        _ => member(function, "arguments"),
    };
    let called = [("name", member(function, "name")), ("arguments", arguments)];
    let members = [
        ("id", member(call, "id")),
        ("index", member(call, "index")),
        ("type", Value::from("function")),
        ("function", object(called.into_iter())),
    ];
    Ok(object(members.into_iter()))
}
