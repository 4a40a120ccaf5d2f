//! `POST /v1/responses` at the engines of this repository: a request becomes a chat.
//!
//! Nothing is stored. A request has its whole conversation in `input`, and functions are its only tools. What an engine of
//! this repository does not have is refused by name: earlier responses, background work, reasoning, tools that a server runs.
//! `response_answer` makes a response of the chat's answer.

use serde_json::{Map, Value, json};
use signalbox_protocol::WireError;

use crate::{
    forwarded::append_item,
    openai::{ChatRequest, Fields, wrong},
    prepared::ResponseSettings,
};

/// The parameters of a response that have the same name and meaning in a chat.
const SHARED: [&str; 9] = [
    "temperature",
    "top_p",
    "stream",
    "parallel_tool_calls",
    "user",
    "prompt_cache_key",
    "safety_identifier",
    "session_id",
    "cache_salt",
];

/// The other parameters that are read.
const OWN: [&str; 20] = [
    "input",
    "instructions",
    "max_output_tokens",
    "text",
    "tools",
    "tool_choice",
    "metadata",
    "truncation",
    "reasoning",
    "top_logprobs",
    "include",
    "max_tool_calls",
    "background",
    "previous_response_id",
    "conversation",
    "prompt",
    "n",
    "stop",
    "response_format",
    "max_tokens",
];

/// All parameters that are read.
pub(crate) const NAMES: [&[&str]; 2] = [&SHARED, &OWN];

/// What an engine of this repository lacks, with the value that does not ask for it.
const REFUSED: [(&str, Option<&str>, &str); 11] = [
    (
        "previous_response_id",
        None,
        "an earlier response, which is not stored; send its turns in input",
    ),
    (
        "conversation",
        None,
        "a conversation that is stored; send its turns in input",
    ),
    ("prompt", None, "a prompt that is stored; send its text in input"),
    (
        "background",
        Some("false"),
        "an answer in the background; leave it out",
    ),
    (
        "truncation",
        Some("\"disabled\""),
        "a shortened conversation; shorten input",
    ),
    (
        "top_logprobs",
        Some("0"),
        "log probabilities, which /v1/chat/completions has",
    ),
    (
        "max_tool_calls",
        None,
        "a limit on tools that a server runs; leave it out",
    ),
    ("n", Some("1"), "several answers, which /v1/chat/completions has"),
    ("stop", Some("[]"), "stop texts, which /v1/chat/completions has"),
    ("response_format", None, "a format; a response has text.format"),
    ("max_tokens", None, "a limit; a response has max_output_tokens"),
];

/// Takes and checks the parameters of a request for a response.
///
/// # Errors
/// A parameter is wrong, or asks for what the engines do not have.
pub(crate) fn take(name: String, fields: &mut Fields) -> Result<(ChatRequest, ResponseSettings), WireError> {
    fields.check_unique()?;
    for (member, neutral, asked) in REFUSED {
        let neutral = neutral.and_then(|text| serde_json::from_str::<Value>(text).ok());
        if fields.take(member)?.is_some_and(|value| Some(value) != neutral) {
            let message = format!("{member} asks for {asked}");
            return Err(WireError::invalid_param(member, message));
        }
    }
    let mut chat = Vec::new();
    let mut settings = Map::new();
    for member in SHARED {
        if let Some(value) = fields.take(member)? {
            if matches!(member, "temperature" | "top_p" | "parallel_tool_calls") {
                settings.insert(member.to_owned(), value.clone());
            }
            chat.push((member, value));
        }
    }
    if let Some(most) = fields.take("max_output_tokens")? {
        settings.insert("max_output_tokens".to_owned(), most.clone());
        chat.push(("max_completion_tokens", most));
    }
    no_reasoning(fields)?;
    no_logprobs(fields)?;
    let instructions = fields.text("instructions")?.filter(|text| !text.is_empty());
    chat.push((
        "messages",
        messages(instructions.as_deref(), fields.take("input")?)?,
    ));
    settings.insert("instructions".to_owned(), instructions.into());
    let (text, format) = text(fields)?;
    settings.insert("text".to_owned(), text);
    chat.extend(format.map(|format| ("response_format", format)));
    let tools = fields.take("tools")?;
    settings.insert("tools".to_owned(), tools.clone().unwrap_or_else(|| json!([])));
    chat.extend(tools.map(chat_tools).transpose()?.map(|tools| ("tools", tools)));
    let choice = fields.take("tool_choice")?;
    settings.insert(
        "tool_choice".to_owned(),
        choice.clone().unwrap_or_else(|| "auto".into()),
    );
    chat.extend(
        choice
            .map(chat_choice)
            .transpose()?
            .map(|choice| ("tool_choice", choice)),
    );
    match fields.take("metadata")? {
        None => {}
        Some(metadata @ Value::Object(_)) => _ = settings.insert("metadata".to_owned(), metadata),
        Some(other) => return Err(wrong("metadata", &other, "an object")),
    }
    let request = ChatRequest::take(name, &mut Fields::of(chat)).map_err(of_response)?;
    Ok((request, ResponseSettings(settings)))
}

/// An error of the chat, with the names of a response's parameters.
pub(crate) fn of_response(mut error: WireError) -> WireError {
    const NAMES: [(&str, &str); 4] = [
        ("max_completion_tokens", "max_output_tokens"),
        ("response_format.json_schema", "text.format"),
        ("response_format", "text.format"),
        (".function.", "."),
    ];
    for (chat, response) in NAMES {
        error.message = error.message.replace(chat, response);
        error.param = error.param.map(|param| param.replace(chat, response));
    }
    if error
        .param
        .as_ref()
        .is_some_and(|param| param.starts_with("messages"))
    {
        // The chat's messages have other numbers than the items of the input.
        error.message = format!("input becomes a chat of which {}", error.message);
        error.param = Some("input".into());
    }
    error
}

fn no_reasoning(fields: &mut Fields) -> Result<(), WireError> {
    let asks = |value: &Value| match value {
        Value::Object(members) => members
            .iter()
            .any(|(_, value)| !value.is_null() && value != "none"),
        _ => true,
    };
    if fields.take("reasoning")?.is_some_and(|value| asks(&value)) {
        let message = "reasoning asks for reasoning, which the engines do not support; leave it out";
        return Err(WireError::invalid_param("reasoning", message));
    }
    Ok(())
}

/// What is included of tools and reasoning is empty without them; log probabilities would be missed.
fn no_logprobs(fields: &mut Fields) -> Result<(), WireError> {
    match fields.take("include")? {
        None => Ok(()),
        Some(Value::Array(items)) if items.iter().all(|item| item != "message.output_text.logprobs") => {
            Ok(())
        }
        Some(Value::Array(_)) => {
            let message = "include asks for log probabilities, which /v1/chat/completions has";
            Err(WireError::invalid_param("include", message))
        }
        Some(other) => Err(wrong("include", &other, "an array of strings")),
    }
}

fn messages(instructions: Option<&str>, input: Option<Value>) -> Result<Value, WireError> {
    let mut messages = Vec::new();
    if let Some(text) = instructions {
        messages.push(json!({"role": "system", "content": text}));
    }
    match input {
        Some(Value::String(text)) => messages.push(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) if !items.is_empty() => {
            for (i, item) in items.into_iter().enumerate() {
                let kind = item.get("type").cloned().unwrap_or_else(|| "message".into());
                append_item(&mut messages, item).map_err(|_| {
                    wrong(
                        &format!("input[{i}].type"),
                        &kind,
                        "a message with a role, a function_call or a function_call_output",
                    )
                })?;
            }
        }
        other => {
            let value = other.unwrap_or(Value::Null);
            return Err(wrong("input", &value, "a string or an array of items"));
        }
    }
    Ok(Value::Array(messages))
}

/// `text` as the response repeats it, and the format of a chat.
fn text(fields: &mut Fields) -> Result<(Value, Option<Value>), WireError> {
    let plain = || json!({"format": {"type": "text"}});
    let mut members = match fields.take("text")? {
        None => return Ok((plain(), None)),
        Some(Value::Object(members)) => members,
        Some(other) => return Err(wrong("text", &other, "an object")),
    };
    if members
        .get("verbosity")
        .is_some_and(|value| !value.is_null() && value != "medium")
    {
        let message = "text.verbosity asks for an answer of another style, which the engines do not support; leave it out";
        return Err(WireError::invalid_param("text.verbosity", message));
    }
    let format = match members.remove("format") {
        None | Some(Value::Null) => return Ok((plain(), None)),
        Some(format @ Value::Object(_)) => format,
        Some(other) => return Err(wrong("text.format", &other, "an object with a type")),
    };
    let chat = match format["type"].as_str() {
        Some("json_schema") => {
            json!({"type": "json_schema", "json_schema": {"name": format["name"], "schema": format["schema"]}})
        }
        _ => json!({"type": format["type"]}),
    };
    Ok((json!({"format": format}), Some(chat)))
}

/// The functions, whose members a chat has one level deeper.
fn chat_tools(tools: Value) -> Result<Value, WireError> {
    let Value::Array(tools) = tools else {
        return Err(wrong("tools", &tools, "an array of tools"));
    };
    let tools = tools.into_iter().enumerate().map(|(i, tool)| match tool {
        Value::Object(mut function) if function.get("type").is_some_and(|kind| kind == "function") => {
            function.remove("type");
            Ok(json!({"type": "function", "function": function}))
        }
        other => {
            let kind = other.get("type").unwrap_or(&Value::Null);
            Err(wrong(&format!("tools[{i}].type"), kind, "function"))
        }
    });
    tools.collect::<Result<_, _>>().map(Value::Array)
}

fn chat_choice(choice: Value) -> Result<Value, WireError> {
    match &choice {
        Value::String(_) => Ok(choice),
        Value::Object(members) if members.get("type").is_some_and(|kind| kind == "function") => {
            Ok(json!({"type": "function", "function": {"name": choice["name"]}}))
        }
        other => Err(wrong(
            "tool_choice",
            other,
            "none, auto, required or a function's name",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(body: &Value) -> Result<(ChatRequest, ResponseSettings), WireError> {
        let mut fields = Fields::parse(body.to_string().as_bytes(), &NAMES).unwrap();
        take("m".into(), &mut fields)
    }

    #[test]
    fn a_request_for_a_response_becomes_a_chat() {
        let tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true});
        let schema = json!({"type": "object"});
        let (chat, settings) = taken(&json!({
            "instructions": "be brief",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "two"},
            ],
            "max_output_tokens": 9, "temperature": 0, "stream": true, "store": true, "metadata": {"a": "b"},
            "tools": [tool], "tool_choice": "none", "include": ["reasoning.encrypted_content"],
            "text": {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": true}},
        }))
        .unwrap();
        assert_eq!(
            (chat.generation.max_tokens, chat.generation.stream),
            (Some(9), true)
        );
        let constraint = chat.generation.constraint.unwrap();
        assert_eq!(
            constraint.kind,
            signalbox_protocol::ConstraintKind::JsonSchema(schema.to_string())
        );
        assert_eq!(chat.messages[0], json!({"role": "system", "content": "be brief"}));
        assert_eq!(
            chat.messages[1]["content"][0],
            json!({"type": "text", "text": "hi"})
        );
        assert_eq!(chat.messages[2]["tool_calls"][0]["function"]["name"], "f");
        assert_eq!(
            chat.messages[3],
            json!({"role": "tool", "content": "two", "tool_call_id": "1"})
        );
        for (member, value) in [
            ("tools", json!([tool])),
            ("tool_choice", json!("none")),
            ("metadata", json!({"a": "b"})),
            ("max_output_tokens", json!(9)),
        ] {
            assert_eq!(settings.0[member], value, "{member}");
        }
        let (chat, _) =
            taken(&json!({"input": "hi", "tools": [tool], "tool_choice": {"type": "function", "name": "f"}}))
                .unwrap();
        assert!(chat.tools.is_some() && chat.generation.tools.is_some());
        assert_eq!(chat.messages, json!([{"role": "user", "content": "hi"}]));
    }

    #[test]
    fn what_is_wrong_or_not_there_is_refused_by_the_name_of_a_response() {
        for (more, param) in [
            (json!({"input": null}), "input"),
            (json!({"input": []}), "input"),
            (
                json!({"input": [{"type": "item_reference", "id": "x"}]}),
                "input[0].type",
            ),
            (json!({"input": [{"role": "robot", "content": "x"}]}), "input"),
            (json!({"max_output_tokens": 0}), "max_output_tokens"),
            (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
            (json!({"background": true}), "background"),
            (json!({"truncation": "auto"}), "truncation"),
            (json!({"reasoning": {"effort": "low"}}), "reasoning"),
            (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
            (
                json!({"tools": [{"type": "function", "name": ""}]}),
                "tools[0].name",
            ),
            (json!({"tool_choice": {"type": "web_search"}}), "tool_choice"),
            (json!({"text": {"format": {"type": "other"}}}), "text.format.type"),
            (
                json!({"text": {"format": {"type": "json_schema"}}}),
                "text.format.schema",
            ),
            (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
            (json!({"include": ["message.output_text.logprobs"]}), "include"),
            (json!({"temperature": 9}), "temperature"),
        ] {
            let mut body = json!({"input": "hi"});
            body.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            let error = taken(&body).map(|_| ()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{more}: {error}");
        }
        let fine = json!({"input": "hi", "background": false, "truncation": "disabled", "reasoning": {"effort": null},
            "previous_response_id": null, "text": {"format": {"type": "text"}, "verbosity": "medium"}, "tools": []});
        assert!(taken(&fine).is_ok());
    }
}
