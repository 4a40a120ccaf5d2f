//! Checks OpenAI's `messages` and converts them to the one shape that chat templates expect.
//!
//! Templates expect `content` to be a string and a tool call's `arguments` to be an object. Clients also send arrays of
//! text parts, null content beside tool calls, and arguments as a string of JSON. The conversion is that of vLLM.

use minijinja::Value;
use minijinja::value::Serde;
use serde_json::Value as Json;

use crate::TextError;
use crate::error::json_type;
use crate::template::object;

/// Most messages of one request. The longest conversations of agents have some thousand messages. Each message costs
/// an iteration of the template's loops.
const MAX_MESSAGES: usize = 10_000;

/// The messages as a value for the template. With `system_for_developer`, the role `developer`, OpenAI's newer name of
/// the system role, becomes `system`: for templates without a `developer` role.
pub(crate) fn template_messages(messages: &Json, system_for_developer: bool) -> Result<Value, TextError> {
    let Some(messages) = messages.as_array() else {
        let message = format!(
            "messages is {}; it should be an array of messages",
            json_type(messages)
        );
        return Err(TextError::param("messages", message));
    };
    if messages.is_empty() {
        return Err(TextError::param(
            "messages",
            "messages is empty; it should have at least one message",
        ));
    }
    if messages.len() > MAX_MESSAGES {
        let message = format!(
            "messages has {} entries; the limit is {MAX_MESSAGES}",
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
    let param = format!("messages[{index}]");
    let Some(message) = message.as_object() else {
        let text = format!(
            "{param} is {}; it should be an object with role and content",
            json_type(message)
        );
        return Err(TextError::param(param, text));
    };
    let role = match message.get("role") {
        Some(Json::String(role)) if !role.is_empty() => &**role,
        other => {
            let found = other.map_or("missing", json_type);
            let text = format!("{param}.role is {found}; it should be a string such as \"user\"");
            return Err(TextError::param(format!("{param}.role"), text));
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
    let content = content(&param, message.get("content"), calls_tools)?;
    let mut entries = vec![("role", Value::from(role)), ("content", content)];
    for (name, value) in message {
        match (&**name, value) {
            ("role" | "content", _) | ("tool_calls", Json::Null) => {}
            ("tool_calls", calls) => entries.push(("tool_calls", tool_calls(&param, calls)?)),
            (_, value) => entries.push((name, Value::from(Serde(value)))),
        }
    }
    Ok(object(entries.into_iter()))
}

/// The content of a message as a string. The texts of an array of parts are joined with line breaks.
fn content(message: &str, content: Option<&Json>, calls_tools: bool) -> Result<Value, TextError> {
    let param = format!("{message}.content");
    match content {
        Some(Json::String(text)) => Ok(Value::from(&**text)),
        Some(Json::Array(parts)) => {
            let parts = parts
                .iter()
                .enumerate()
                .map(|(index, part)| text_part(&param, index, part));
            Ok(Value::from(parts.collect::<Result<Vec<_>, _>>()?.join("\n")))
        }
        None | Some(Json::Null) if calls_tools => Ok(Value::from("")),
        other => {
            let found = other.map_or("missing", json_type);
            let text = format!(
                "{param} is {found}; it should be a string or an array of text parts (only an assistant's message with \
                 tool calls needs no content)"
            );
            Err(TextError::param(param, text))
        }
    }
}

fn text_part<'a>(content: &str, index: usize, part: &'a Json) -> Result<&'a str, TextError> {
    let param = format!("{content}[{index}]");
    let wrong = |field: &str, found: &str| {
        let text = format!(
            "{param}{field} is {found}; this model takes parts of the form {{\"type\": \"text\", \"text\": …}}"
        );
        Err(TextError::param(format!("{param}{field}"), text))
    };
    match part.get("type") {
        Some(Json::String(kind)) if kind == "text" => {}
        // The error quotes the type, which is most often one that other models take, such as `image_url`.
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

/// The tool calls with parsed `arguments`, because templates print them with `tojson` or read their members.
fn tool_calls(message: &str, calls: &Json) -> Result<Value, TextError> {
    let param = format!("{message}.tool_calls");
    let Some(calls) = calls.as_array() else {
        let text = format!(
            "{param} is {}; it should be an array of tool calls",
            json_type(calls)
        );
        return Err(TextError::param(param, text));
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
            let param = format!("{param}[{index}].function.arguments");
            TextError::param(
                &param,
                format!("{param} is not JSON ({error}); it should be a JSON object, written as a string"),
            )
        })?;
    }
    Ok(Value::from(Serde(calls)))
}

/// The beginning of a client's text, short enough for an error message.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 40;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
