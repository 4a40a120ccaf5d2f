//! The shape that all engines require of messages.

use serde_json::{Map, Value as Json};

use crate::TextError;
use crate::error::json_type;

/// Most messages of one request. The longest conversations of agents have some thousand messages. Each message costs
/// an iteration of the template's loops.
const MAX_MESSAGES: usize = 10_000;

/// The messages as a list that is neither empty nor too long.
pub(super) fn list(messages: &Json) -> Result<&[Json], TextError> {
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
    Ok(messages)
}

/// The parameter's name of message `index`, its members and its role.
pub(super) fn message(index: usize, message: &Json) -> Result<(String, &Map<String, Json>, &str), TextError> {
    let param = format!("messages[{index}]");
    let Some(message) = message.as_object() else {
        let text = format!(
            "{param} is {}; it should be an object with role and content",
            json_type(message)
        );
        return Err(TextError::param(param, text));
    };
    match message.get("role") {
        Some(Json::String(role)) if !role.is_empty() => Ok((param, message, role)),
        other => {
            let found = other.map_or("missing", json_type);
            let text = format!("{param}.role is {found}; it should be a string such as \"user\"");
            Err(TextError::param(format!("{param}.role"), text))
        }
    }
}

/// The beginning of a client's text, short enough for an error message.
pub(super) fn shortened(text: &str) -> String {
    const LONGEST: usize = 40;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The error for a part of a message that is no text, such as an image.
pub(super) fn not_text(param: &str, kind: &str) -> TextError {
    let kind = shortened(kind);
    let message =
        format!("{param} is a part of type {kind:?}; only the engine can render parts that are no text");
    TextError::unrenderable(param, message)
}

/// The error for a member of a part that is missing or has the wrong type.
pub(super) fn wrong_part(param: &str, field: &str, found: Option<&Json>) -> TextError {
    let found = found.map_or("missing", json_type);
    let text = format!(
        "{param}{field} is {found}; this model takes parts of the form {{\"type\": \"text\", \"text\": …}}"
    );
    TextError::param(format!("{param}{field}"), text)
}

/// The error for content that is neither a string nor an array.
pub(super) fn wrong_content(param: &str, found: Option<&Json>) -> TextError {
    let found = found.map_or("missing", json_type);
    let text = format!(
        "{param} is {found}; it should be a string or an array of text parts (only an assistant's message with tool \
         calls needs no content)"
    );
    TextError::param(param, text)
}
