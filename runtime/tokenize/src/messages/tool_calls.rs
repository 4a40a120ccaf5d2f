//! The tool calls of an assistant's message. Templates print the arguments with `tojson` or read their members, so
//! they get them parsed.

use minijinja::Value;
use serde_json::Value as Json;

use crate::TextError;
use crate::error::json_type;
use crate::values::{object, parsed, value};

/// The array `tool_calls` of the message that `message_param` names.
pub(super) fn of<'a>(message_param: &str, calls: &'a Json) -> Result<&'a [Json], TextError> {
    calls.as_array().map(Vec::as_slice).ok_or_else(|| {
        let param = format!("{message_param}.tool_calls");
        let text = format!(
            "{param} is {}; it should be an array of tool calls",
            json_type(calls)
        );
        TextError::param(param, text)
    })
}

/// The call with its members as they are and its arguments parsed. Empty arguments are an empty object.
pub(super) fn with_parsed_arguments(
    message_param: &str,
    index: usize,
    call: &Json,
) -> Result<Value, TextError> {
    let Some(call_members) = call.as_object() else {
        return Ok(value(call));
    };
    let members: Result<Vec<_>, TextError> = call_members
        .iter()
        .map(|(name, member)| match (&**name, member) {
            ("function", Json::Object(function)) => {
                let function: Result<Vec<_>, TextError> = function
                    .iter()
                    .map(|(name, member)| match (&**name, member) {
                        ("arguments", Json::String(source)) => {
                            Ok(("arguments", strict_arguments(message_param, index, source)?))
                        }
                        (name, member) => Ok((name, value(member))),
                    })
                    .collect();
                Ok(("function", object(function?.into_iter())))
            }
            (name, member) => Ok((name, value(member))),
        })
        .collect();
    Ok(object(members?.into_iter()))
}

/// The arguments of call `index`, which are JSON or nothing.
pub(super) fn strict_arguments(message_param: &str, index: usize, source: &str) -> Result<Value, TextError> {
    if source.trim().is_empty() {
        return Ok(empty());
    }
    parsed(source).ok_or_else(|| {
        let param = format!("{message_param}.tool_calls[{index}].function.arguments");
        let reason = serde_json::from_str::<Json>(source)
            .err()
            .map(|error| format!(" ({error})"))
            .unwrap_or_default();
        let text = format!("{param} is not JSON{reason}; it should be a JSON object, written as a string");
        TextError::param(&param, text)
    })
}

/// An object without members.
pub(super) fn empty() -> Value {
    object(std::iter::empty())
}
