//! The preparation of this repository's own engines: that of `transformers`, with OpenAI's shapes converted.
//!
//! Members that templates of some models read, such as `name`, reach the template as the client sent them.

use std::borrow::Cow;

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::{Content, Message, Part, Rules, joined, shape, tool_calls};
use crate::TextError;
use crate::error::json_type;
use crate::template::ContentFormat;
use crate::values::value;

pub(super) fn message<'a>(index: usize, message: &'a Json, rules: &Rules) -> Result<Message<'a>, TextError> {
    let (param, message, role) = shape::message(index, message)?;
    let role = match role {
        "developer" if !rules.has_developer_role => "system",
        role => role,
    };
    let content = content(&param, message, role, rules.content)?;
    let mut others = Vec::with_capacity(message.len());
    for (name, member) in message {
        match (&**name, member) {
            ("role" | "content", _) | ("tool_calls", Json::Null) => {}
            ("tool_calls", calls) => {
                let calls = tool_calls::of(&param, calls)?;
                if !calls.is_empty() {
                    let calls = calls.iter().enumerate();
                    let strict =
                        calls.map(|(index, call)| tool_calls::with_parsed_arguments(&param, index, call));
                    others.push(("tool_calls", strict.collect::<Result<Value, _>>()?));
                }
            }
            (name, member) => others.push((name, value(member))),
        }
    }
    // Clients return the reasoning under the name that their server used; templates read either.
    for (name, other) in [
        ("reasoning", "reasoning_content"),
        ("reasoning_content", "reasoning"),
    ] {
        let missing = |name: &str| message.get(name).is_none_or(Json::is_null);
        if let (true, Some(reasoning @ Json::String(_))) = (missing(name), message.get(other)) {
            others.retain(|(known, _)| *known != name);
            others.push((name, value(reasoning)));
        }
    }
    Ok(Message {
        role,
        content,
        others,
    })
}

fn content<'a>(
    message_param: &str,
    message: &'a Map<String, Json>,
    role: &str,
    format: ContentFormat,
) -> Result<Content<'a>, TextError> {
    let calls_tools = || {
        role == "assistant"
            && (message
                .get("tool_calls")
                .and_then(Json::as_array)
                .is_some_and(|calls| !calls.is_empty())
                || message.get("function_call").is_some_and(Json::is_object))
    };
    let param = format!("{message_param}.content");
    match message.get("content") {
        Some(Json::String(text)) => Ok(Content::Text(Cow::Borrowed(text))),
        Some(Json::Array(parts)) => {
            let texts: Result<Vec<_>, _> = parts
                .iter()
                .enumerate()
                .map(|(index, part)| text_part(&param, index, part))
                .collect();
            Ok(match format {
                ContentFormat::Parts if role != "tool" => {
                    Content::Parts(texts?.into_iter().map(Part::Text).collect())
                }
                _ => Content::Text(joined(texts?, "\n")),
            })
        }
        None | Some(Json::Null) if calls_tools() => Ok(Content::Text(Cow::Borrowed(""))),
        other => Err(shape::wrong_content(&param, other)),
    }
}

fn text_part<'a>(content: &str, index: usize, part: &'a Json) -> Result<Cow<'a, str>, TextError> {
    let param = format!("{content}[{index}]");
    match part.get("type") {
        Some(Json::String(kind)) if kind == "text" => {}
        // The error quotes the type, which is most often one that other models take, such as `image_url`.
        Some(Json::String(kind)) => {
            let text = format!(
                "{param}.type is {:?}; this model takes parts of the form {{\"type\": \"text\", \"text\": …}}",
                shape::shortened(kind)
            );
            return Err(TextError::param(format!("{param}.type"), text));
        }
        None if !part.is_object() => {
            let text = format!(
                "{param} is {}; this model takes parts of the form {{\"type\": \"text\", \"text\": …}}",
                json_type(part)
            );
            return Err(TextError::param(param, text));
        }
        other => return Err(shape::wrong_part(&param, ".type", other)),
    }
    match part.get("text") {
        Some(Json::String(text)) => Ok(Cow::Borrowed(text)),
        other => Err(shape::wrong_part(&param, ".text", other)),
    }
}
