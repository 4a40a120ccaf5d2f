//! OpenAI's `messages` checked and brought into the one shape chat templates are written for.
//!
//! Templates expect `content` to be a string and a tool call's `arguments` to be an object; clients also send arrays of
//! text parts, null beside tool calls, and arguments as a string of JSON. What is done with those is what vLLM does.

use minijinja::Value;
use minijinja::value::Serde;
use serde_json::Value as Json;

use crate::TextError;
use crate::template::object;

/// Messages of one request. The longest conversations agents send have some thousand; each costs a turn of the
/// template's loops.
const MAX_MESSAGES: usize = 10_000;

/// The messages as a template's value. `system_for_developer`: the template knows no `developer` role, so that OpenAI's
/// newer name for the system role is given the older one.
pub(crate) fn template_messages(messages: &Json, system_for_developer: bool) -> Result<Value, TextError> {
    let Some(messages) = messages.as_array() else {
        let message = format!(
            "messages is {}; it should be an array of messages.",
            json_type(messages)
        );
        return Err(TextError::param("messages", message));
    };
    if messages.is_empty() {
        return Err(TextError::param(
            "messages",
            "messages is empty; it should hold at least one message.",
        ));
    }
    if messages.len() > MAX_MESSAGES {
        let message = format!(
            "messages has {} entries; the limit is {MAX_MESSAGES}.",
            messages.len()
        );
        return Err(TextError::param("messages", message));
    }
    let messages = messages.iter().enumerate();
    messages
        .map(|(index, message)| template_message(index, message, system_for_developer))
        .collect()
}

fn template_message(index: usize, message: &Json, system_for_developer: bool) -> Result<Value, TextError> {
    let here = format!("messages[{index}]");
    let Some(message) = message.as_object() else {
        let text = format!(
            "{here} is {}; it should be an object with role and content.",
            json_type(message)
        );
        return Err(TextError::param(here, text));
    };
    let role = match message.get("role") {
        Some(Json::String(role)) if !role.is_empty() => &**role,
        other => {
            let found = other.map_or("missing", json_type);
            let text = format!("{here}.role is {found}; it should be a string such as \"user\".");
            return Err(TextError::param(format!("{here}.role"), text));
        }
    };
    let calls_tools = role == "assistant"
        && (message
            .get("tool_calls")
            .and_then(Json::as_array)
            .is_some_and(|calls| !calls.is_empty())
            || message.get("function_call").is_some_and(Json::is_object));
    let role = if role == "developer" && system_for_developer {
        "system"
    } else {
        role
    };
    let content = content(&here, message.get("content"), calls_tools)?;
    let mut entries = vec![("role", Value::from(role)), ("content", content)];
    for (name, value) in message {
        match (&**name, value) {
            ("role" | "content", _) | ("tool_calls", Json::Null) => {}
            ("tool_calls", calls) => entries.push(("tool_calls", tool_calls(&here, calls)?)),
            (_, value) => entries.push((name, Value::from(Serde(value)))),
        }
    }
    Ok(object(entries.into_iter()))
}

/// A string, or the texts of an array of parts, a line break between two.
fn content(message: &str, content: Option<&Json>, calls_tools: bool) -> Result<Value, TextError> {
    let here = format!("{message}.content");
    match content {
        Some(Json::String(text)) => Ok(Value::from(&**text)),
        Some(Json::Array(parts)) => {
            let parts = parts
                .iter()
                .enumerate()
                .map(|(index, part)| text_part(&here, index, part));
            Ok(Value::from(parts.collect::<Result<Vec<_>, _>>()?.join("\n")))
        }
        None | Some(Json::Null) if calls_tools => Ok(Value::from("")),
        other => {
            let found = other.map_or("missing", json_type);
            let text = format!(
                "{here} is {found}; it should be a string or an array of text parts (only an assistant's message with \
                 tool calls may go without)."
            );
            Err(TextError::param(here, text))
        }
    }
}

fn text_part<'a>(content: &str, index: usize, part: &'a Json) -> Result<&'a str, TextError> {
    let here = format!("{content}[{index}]");
    let wrong = |field: &str, found: &str| {
        let text = format!(
            "{here}{field} is {found}; this model takes parts of the form {{\"type\": \"text\", \"text\": …}}."
        );
        Err(TextError::param(format!("{here}{field}"), text))
    };
    match part.get("type") {
        Some(Json::String(kind)) if kind == "text" => {}
        // Quoted, since it is most often a kind that other models take: `image_url`.
        Some(Json::String(kind)) => return wrong(".type", &format!("{:?}", shortened(kind))),
        Some(other) => return wrong(".type", json_type(other)),
        None if part.is_object() => return wrong(".type", "missing"),
        None => return wrong("", json_type(part)),
    }
    match part.get("text") {
        Some(Json::String(text)) => Ok(text),
        other => wrong(".text", other.map_or("missing", json_type)),
    }
}

/// Tool calls with their `arguments` parsed: templates print them with `tojson`, or look into them.
fn tool_calls(message: &str, calls: &Json) -> Result<Value, TextError> {
    let here = format!("{message}.tool_calls");
    let Some(calls) = calls.as_array() else {
        let text = format!(
            "{here} is {}; it should be an array of tool calls.",
            json_type(calls)
        );
        return Err(TextError::param(here, text));
    };
    let mut calls = calls.clone();
    for (index, call) in calls.iter_mut().enumerate() {
        let Some(arguments) = call
            .get_mut("function")
            .and_then(|function| function.get_mut("arguments"))
        else {
            continue;
        };
        let Some(source) = arguments.as_str() else {
            continue;
        };
        let parsed = if source.trim().is_empty() {
            Ok(Json::Object(Default::default()))
        } else {
            serde_json::from_str(source)
        };
        *arguments = parsed.map_err(|error| {
            let here = format!("{here}[{index}].function.arguments");
            TextError::param(
                &here,
                format!("{here} is not JSON ({error}); it should be an object, written as a string."),
            )
        })?;
    }
    Ok(Value::from(Serde(calls)))
}

fn json_type(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(text) if text.is_empty() => "an empty string",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

/// What a client sent, short enough to be sent back in an error.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 40;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
