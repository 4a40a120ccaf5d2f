//! The conversation of a request to `/v1/responses`, converted to the messages of a chat as vLLM does it.
//!
//! Source: `construct_input_messages`, `construct_tool_dicts` and `should_continue_final_message` in vLLM's
//! `entrypoints/openai/responses/utils.py`.

use serde_json::{Map, Value, json};

use super::{conversation::Conversation, lenient};
use crate::{openai::Fields, prepared::Unhashed};

/// The parameters that the prompt is made from.
pub(super) const NAMES: [&str; 9] = [
    "input",
    "instructions",
    "tools",
    "reasoning",
    "chat_template_kwargs",
    "previous_response_id",
    "previous_response",
    "previous_input_messages",
    "prompt",
];

/// Parameters that name turns which only an engine has.
const STORED: [&str; 4] = [
    "previous_response_id",
    "previous_response",
    "previous_input_messages",
    "prompt",
];

/// The request's instructions and input as messages.
pub(super) fn conversation(fields: &mut Fields) -> Conversation {
    let mut conversation = Conversation::default();
    for name in STORED {
        if lenient::is_given(fields, name) {
            conversation.unknown(Unhashed::StoredTurns);
        }
    }
    if let Some(instructions) = lenient::text(fields, "instructions").filter(|text| !text.is_empty()) {
        let system = json!({"role": "system", "content": instructions});
        conversation.messages.push(system);
    }
    match conversation.content(fields, "input") {
        Some(Value::String(text)) => {
            let user = json!({"role": "user", "content": text});
            conversation.messages.push(user);
        }
        Some(Value::Array(items)) => {
            if items.last().is_some_and(is_partial) {
                conversation.continue_final_message = true;
                conversation.add_generation_prompt = false;
            }
            for item in items {
                if let Err(reason) = append(&mut conversation.messages, item) {
                    conversation.unknown(reason);
                }
            }
        }
        _ => conversation.unknown(Unhashed::Unreadable),
    }
    match conversation.content(fields, "tools") {
        Some(Value::Array(tools)) if !tools.is_empty() => match function_tools(tools) {
            Ok(tools) => conversation.tools = Some(tools),
            Err(reason) => conversation.unknown(reason),
        },
        _ => {}
    }
    conversation.template_kwargs = conversation.content(fields, "chat_template_kwargs");
    conversation.reasoning_effort = lenient::member_text(fields, "reasoning", "effort");
    conversation
}

/// Whether the answer continues this item, the last one.
fn is_partial(item: &Value) -> bool {
    let kind = item["type"].as_str().unwrap_or("message");
    let status = item["status"].as_str();
    matches!(kind, "message" | "reasoning") && matches!(status, Some("in_progress" | "incomplete"))
}

/// Appends an item of the input. Reasoning, text and tool calls of one turn of the assistant are items of their own, and
/// become one message.
pub(super) fn append(messages: &mut Vec<Value>, item: Value) -> Result<(), Unhashed> {
    let Value::Object(mut item) = item else {
        return Err(Unhashed::Unreadable);
    };
    let kind = item.get("type").and_then(Value::as_str);
    let is_assistant = item.get("role").is_some_and(|role| role == "assistant");
    match kind {
        Some("function_call") => {
            if item.get("namespace").is_some_and(|name| !name.is_null()) {
                return Err(Unhashed::Unrenderable);
            }
            let call = json!({
                "id": take(&mut item, "call_id"),
                "type": "function",
                "function": {"name": take(&mut item, "name"), "arguments": take(&mut item, "arguments")},
            });
            match assistant(messages) {
                Some(turn) => match turn.entry("tool_calls").or_insert(Value::Null) {
                    Value::Array(calls) => calls.push(call),
                    none => *none = Value::Array(vec![call]),
                },
                None => messages.push(json!({"role": "assistant", "tool_calls": [call]})),
            }
        }
        Some("function_call_output") => messages.push(json!({
            "role": "tool",
            "content": content(take(&mut item, "output")),
            "tool_call_id": take(&mut item, "call_id"),
        })),
        Some("reasoning") => {
            if item
                .get("encrypted_content")
                .is_some_and(|secret| !secret.is_null())
            {
                return Err(Unhashed::Unrenderable);
            }
            let text = ["content", "summary"]
                .into_iter()
                .find_map(|name| first_text(item.get(name)?));
            add_to_assistant(messages, "reasoning", text.unwrap_or_default());
        }
        None | Some("message") if is_assistant => {
            let text = item.get("content").and_then(first_text);
            add_to_assistant(messages, "content", text.unwrap_or_default());
        }
        None | Some("message") if item.contains_key("role") => messages.push(json!({
            "role": take(&mut item, "role"),
            "content": content(take(&mut item, "content")),
        })),
        _ => return Err(Unhashed::Unrenderable),
    }
    Ok(())
}

fn take(item: &mut Map<String, Value>, name: &str) -> Value {
    item.get_mut(name).map(Value::take).unwrap_or_default()
}

/// The last message, if it is the assistant's.
fn assistant(messages: &mut [Value]) -> Option<&mut Map<String, Value>> {
    let last = messages.last_mut()?.as_object_mut()?;
    last.get("role")
        .is_some_and(|role| role == "assistant")
        .then_some(last)
}

/// Adds a part to the assistant's message, or a new message if the last one has this part already.
fn add_to_assistant(messages: &mut Vec<Value>, part: &str, text: String) {
    if let Some(turn) = assistant(messages)
        && turn.get(part).is_none_or(Value::is_null)
    {
        turn.insert(part.to_owned(), Value::String(text));
        return;
    }
    messages.push(json!({"role": "assistant", part: text}));
}

/// A string, or the text of the first part.
fn first_text(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => match parts.first()? {
            Value::String(text) => Some(text.clone()),
            part => part["text"].as_str().map(str::to_owned),
        },
        _ => None,
    }
}

/// The content with the parts' types of a chat. Other parts than text keep their type, and cannot be rendered.
fn content(mut content: Value) -> Value {
    for part in content.as_array_mut().into_iter().flatten() {
        if matches!(part["type"].as_str(), Some("input_text" | "output_text")) {
            part["type"] = "text".into();
        }
    }
    content
}

/// The functions among the tools, in the form of a chat's. Engines run the tools of other kinds themselves, and no
/// template sees them.
fn function_tools(tools: Vec<Value>) -> Result<Value, Unhashed> {
    let mut functions = Vec::new();
    for tool in tools {
        let Value::Object(tool) = tool else {
            return Err(Unhashed::Unreadable);
        };
        match tool.get("type").and_then(Value::as_str) {
            Some("function") => {
                let function = tool.into_iter().filter(|(name, _)| name != "type");
                functions.push(json!({"type": "function", "function": function.collect::<Map<_, _>>()}));
            }
            // vLLM flattens the names of the tools inside, by a rule of its own.
            Some("namespace") => return Err(Unhashed::Unrenderable),
            _ => {}
        }
    }
    Ok(Value::Array(functions))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn responses(body: Value) -> Conversation {
        conversation(&mut Fields::parse(body.to_string().as_bytes(), &[&NAMES]).unwrap())
    }

    #[test]
    fn the_input_of_responses_becomes_the_messages_that_vllm_makes_of_it() {
        let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{\"a\": 1}"});
        let tool_call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
        for (body, messages) in [
            (
                json!({"instructions": "be brief", "input": "hi"}),
                json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]),
            ),
            (
                json!({"input": [
                    {"role": "developer", "content": "be brief"},
                    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                    {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
                     "content": [{"type": "output_text", "text": "hello", "annotations": []}]},
                    {"role": "user", "content": "bye"},
                ]}),
                json!([
                    {"role": "developer", "content": "be brief"},
                    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                    {"role": "assistant", "content": "hello"},
                    {"role": "user", "content": "bye"},
                ]),
            ),
            (
                // One turn of the assistant in four items, and the tools' results.
                json!({"input": [
                    {"role": "user", "content": "hi"},
                    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}], "summary": []},
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "wait"}]},
                    call("1"), call("2"),
                    {"type": "function_call_output", "call_id": "1", "output": "one"},
                    {"type": "function_call_output", "call_id": "2", "output": "two"},
                ]}),
                json!([
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "reasoning": "hm", "content": "wait", "tool_calls": [tool_call("1"), tool_call("2")]},
                    {"role": "tool", "content": "one", "tool_call_id": "1"},
                    {"role": "tool", "content": "two", "tool_call_id": "2"},
                ]),
            ),
            (
                json!({"input": [
                    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}]},
                    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "again"}]},
                ]}),
                json!([{"role": "assistant", "reasoning": "short"}, {"role": "assistant", "reasoning": "again"}]),
            ),
        ] {
            let conversation = responses(body.clone());
            assert_eq!(Value::Array(conversation.messages), messages, "{body}");
            assert_eq!(conversation.unhashed, None, "{body}");
        }
    }

    #[test]
    fn an_input_that_ends_in_a_partial_answer_is_continued() {
        let partial = json!({"role": "assistant", "status": "incomplete", "content": [{"type": "output_text", "text": "to be"}]});
        let conversation = responses(json!({"input": [{"role": "user", "content": "go on"}, partial]}));
        assert!(conversation.continue_final_message && !conversation.add_generation_prompt);
        let whole = responses(json!({"input": [{"role": "user", "content": "go on"}]}));
        assert!(!whole.continue_final_message && whole.add_generation_prompt);
    }

    #[test]
    fn functions_are_the_tools_of_responses_that_a_template_sees() {
        let conversation = responses(json!({"input": "hi", "reasoning": {"effort": "low"}, "tools": [
            {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true},
            {"type": "web_search"},
        ]}));
        let tools = json!([{"type": "function", "function":
            {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true}}]);
        assert_eq!(conversation.tools, Some(tools));
        assert_eq!(conversation.reasoning_effort, Some("low".into()));
        let spaced =
            responses(json!({"input": "hi", "tools": [{"type": "namespace", "name": "n", "tools": []}]}));
        assert_eq!(spaced.unhashed, Some(Unhashed::Unrenderable));
    }
}
