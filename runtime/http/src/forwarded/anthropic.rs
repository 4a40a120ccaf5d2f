//! The conversation of a request to Anthropic's `/v1/messages`, converted to the messages of a chat as vLLM does it.
//!
//! Source: `AnthropicServingMessages.to_chat_completion_request` in vLLM's `entrypoints/anthropic/serving.py`.

use serde_json::{Map, Value, json};

use super::{conversation::Conversation, lenient};
use crate::{openai::Fields, prepared::Unhashed};

/// The parameters that the prompt is made from.
pub(super) const NAMES: [&str; 6] = [
    "messages",
    "system",
    "tools",
    "chat_template_kwargs",
    "output_config",
    "thinking",
];

/// Claude Code begins its system prompt with a block that differs in each request. vLLM leaves it out.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

/// Between the system prompt and system messages that lead the conversation.
const SYSTEM_SEPARATOR: &str = "\n\n";

/// The request's system prompt and messages as messages of a chat.
pub(super) fn conversation(fields: &mut Fields) -> Conversation {
    let mut conversation = Conversation::default();
    let mut system = match conversation.content(fields, "system") {
        None => String::new(),
        Some(Value::String(text)) => text,
        Some(Value::Array(blocks)) => joined_texts(&blocks),
        Some(_) => {
            conversation.unknown(Unhashed::Unreadable);
            String::new()
        }
    };
    let Some(Value::Array(turns)) = conversation.content(fields, "messages") else {
        conversation.unknown(Unhashed::Unreadable);
        return conversation;
    };
    let mut turns = turns.into_iter().peekable();
    while let Some(turn) = turns.next_if(|turn| turn["role"] == "system") {
        let text = system_text(&turn["content"]);
        if !system.is_empty() && !text.is_empty() {
            system.push_str(SYSTEM_SEPARATOR);
        }
        system.push_str(&text);
    }
    if !system.is_empty() {
        let system = json!({"role": "system", "content": system});
        conversation.messages.push(system);
    }
    for turn in turns {
        if let Err(reason) = append(&mut conversation.messages, turn) {
            conversation.unknown(reason);
        }
    }
    match conversation.content(fields, "tools") {
        Some(Value::Array(tools)) => match chat_tools(tools) {
            Ok(tools) => conversation.tools = Some(tools),
            Err(reason) => conversation.unknown(reason),
        },
        Some(_) => conversation.unknown(Unhashed::Unreadable),
        None => {}
    }
    conversation.template_kwargs = conversation.content(fields, "chat_template_kwargs");
    let effort = lenient::member_text(fields, "output_config", "effort");
    let thinking = lenient::member_text(fields, "thinking", "type");
    conversation.reasoning_effort = match thinking.as_deref() {
        // vLLM asks for this effort unless the template does not know it.
        Some("disabled") => Some("none".into()),
        _ => effort,
    };
    conversation
}

/// The texts of blocks, without the billing header.
fn joined_texts(blocks: &[Value]) -> String {
    let texts = blocks.iter().filter(|block| block["type"] == "text");
    texts
        .filter_map(|block| block["text"].as_str())
        .filter(|text| !text.starts_with(BILLING_HEADER))
        .collect()
}

/// The text of a system message.
fn system_text(content: &Value) -> String {
    match content {
        Value::String(text) if !text.starts_with(BILLING_HEADER) => text.clone(),
        Value::Array(blocks) => joined_texts(blocks),
        _ => String::new(),
    }
}

/// Appends a turn. The results of tools in a turn of the user become messages of their own before it.
fn append(messages: &mut Vec<Value>, turn: Value) -> Result<(), Unhashed> {
    let Value::Object(mut turn) = turn else {
        return Err(Unhashed::Unreadable);
    };
    let role = match turn.get("role").and_then(Value::as_str) {
        // Claude Code writes two names of its own.
        Some("user" | "ctx" | "msg") => "user",
        Some("assistant") => "assistant",
        // Depending on its version and on the template, vLLM leaves it in place or moves it into another turn.
        Some("system") => return Err(Unhashed::InlineSystem),
        _ => return Err(Unhashed::Unreadable),
    };
    match take(&mut turn, "content") {
        text @ Value::String(_) => messages.push(json!({"role": role, "content": text})),
        Value::Array(blocks) => append_blocks(messages, role, blocks)?,
        _ => return Err(Unhashed::Unreadable),
    }
    Ok(())
}

fn append_blocks(messages: &mut Vec<Value>, role: &str, blocks: Vec<Value>) -> Result<(), Unhashed> {
    let mut message = Map::new();
    message.insert("role".into(), role.into());
    let (mut parts, mut calls, mut reasoning) = (Vec::new(), Vec::new(), None::<String>);
    let mut unknown = None;
    for block in blocks {
        let Value::Object(mut block) = block else {
            unknown = Some(Unhashed::Unreadable);
            continue;
        };
        match take(&mut block, "type").as_str() {
            Some("text") => match take(&mut block, "text") {
                Value::String(text) if !text.is_empty() => parts.push(json!({"type": "text", "text": text})),
                _ => {}
            },
            Some("thinking") => {
                if let Value::String(thought) = take(&mut block, "thinking") {
                    reasoning.get_or_insert_default().push_str(&thought);
                }
            }
            Some("redacted_thinking" | "tool_reference") => {}
            Some("tool_use") => calls.push(tool_call(&mut block)),
            Some("tool_result") if role == "user" => match tool_result(&mut block) {
                Ok(result) => messages.push(result),
                Err(reason) => unknown = Some(reason),
            },
            _ => unknown = Some(Unhashed::Unrenderable),
        }
    }
    if let Some(reasoning) = reasoning {
        message.insert("reasoning".into(), reasoning.into());
    }
    if !calls.is_empty() {
        message.insert("tool_calls".into(), calls.into());
    }
    match &mut parts[..] {
        [] => {}
        [only] => {
            message.insert("content".into(), only["text"].take());
        }
        _ => {
            message.insert("content".into(), parts.into());
        }
    }
    if role != "user" || message.contains_key("content") {
        messages.push(Value::Object(message));
    }
    unknown.map_or(Ok(()), Err)
}

fn take(object: &mut Map<String, Value>, name: &str) -> Value {
    object.get_mut(name).map(Value::take).unwrap_or_default()
}

fn tool_call(block: &mut Map<String, Value>) -> Value {
    let arguments = match take(block, "input") {
        Value::Null => json!({}),
        input => input,
    };
    json!({
        "id": take(block, "id"),
        "type": "function",
        "function": {"name": take(block, "name"), "arguments": arguments},
    })
}

/// The message with a tool's result, which is text. Images in it cannot be rendered.
fn tool_result(block: &mut Map<String, Value>) -> Result<Value, Unhashed> {
    let text = match take(block, "content") {
        Value::String(text) => text,
        Value::Array(items) => {
            if items.iter().any(|item| item["type"] != "text") {
                return Err(Unhashed::Unrenderable);
            }
            let texts: Vec<&str> = items.iter().filter_map(|item| item["text"].as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    };
    let id = match take(block, "tool_use_id") {
        Value::Null => "".into(),
        id => id,
    };
    Ok(json!({"role": "tool", "tool_call_id": id, "content": text}))
}

/// The tools in the form of a chat's.
fn chat_tools(tools: Vec<Value>) -> Result<Value, Unhashed> {
    let tools = tools.into_iter().map(|tool| {
        let Value::Object(mut tool) = tool else {
            return Err(Unhashed::Unreadable);
        };
        let Value::Object(mut schema) = take(&mut tool, "input_schema") else {
            return Err(Unhashed::Unreadable);
        };
        schema.entry("type").or_insert_with(|| "object".into());
        let mut function = Map::new();
        for name in ["name", "description"] {
            function.insert(name.into(), take(&mut tool, name));
        }
        function.insert("parameters".into(), schema.into());
        for name in ["strict", "defer_loading"] {
            function.insert(name.into(), take(&mut tool, name));
        }
        function.retain(|_, value| !value.is_null());
        Ok(json!({"type": "function", "function": function}))
    });
    Ok(Value::Array(tools.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(body: Value) -> Conversation {
        conversation(&mut Fields::parse(body.to_string().as_bytes(), &[&NAMES]).unwrap())
    }

    #[test]
    fn anthropics_messages_become_the_messages_that_vllm_makes_of_them() {
        for (body, expected) in [
            (
                json!({"system": "be brief", "messages": [{"role": "user", "content": "hi"}]}),
                json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]),
            ),
            (
                json!({
                    "system": [
                        {"type": "text", "text": "x-anthropic-billing-header: 7"},
                        {"type": "text", "text": "be ", "cache_control": {"type": "ephemeral"}},
                        {"type": "text", "text": "brief"},
                    ],
                    "messages": [
                        {"role": "system", "content": "now"},
                        {"role": "ctx", "content": [{"type": "text", "text": "a"}]},
                        {"role": "assistant", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
                    ],
                }),
                json!([
                    {"role": "system", "content": "be brief\n\nnow"},
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
                ]),
            ),
            (
                // A turn with results of tools only is no message of the user.
                json!({"messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": [
                        {"type": "thinking", "thinking": "hm", "signature": "s"},
                        {"type": "redacted_thinking", "data": "d"},
                        {"type": "text", "text": "wait"},
                        {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
                        {"type": "tool_use", "id": "2", "name": "g"},
                    ]},
                    {"role": "user", "content": [
                        {"type": "tool_result", "tool_use_id": "1", "content": "one"},
                        {"type": "tool_result", "tool_use_id": "2", "content": [
                            {"type": "text", "text": "t"}, {"type": "text", "text": "wo"}]},
                    ]},
                    {"role": "user", "content": [
                        {"type": "tool_result", "tool_use_id": "3"}, {"type": "text", "text": "and?"}]},
                ]}),
                json!([
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "reasoning": "hm", "content": "wait", "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
                        {"id": "2", "type": "function", "function": {"name": "g", "arguments": {}}},
                    ]},
                    {"role": "tool", "tool_call_id": "1", "content": "one"},
                    {"role": "tool", "tool_call_id": "2", "content": "t\nwo"},
                    {"role": "tool", "tool_call_id": "3", "content": ""},
                    {"role": "user", "content": "and?"},
                ]),
            ),
        ] {
            let conversation = messages(body.clone());
            assert_eq!(Value::Array(conversation.messages), expected, "{body}");
            assert_eq!(conversation.unhashed, None, "{body}");
        }
    }

    #[test]
    fn anthropics_tools_and_efforts_become_those_of_a_chat() {
        let conversation = messages(json!({
            "messages": [{"role": "user", "content": "hi"}],
            "output_config": {"effort": "high"},
            "tools": [{"name": "f", "description": "d", "input_schema": {"properties": {}}, "strict": true,
                       "cache_control": {"type": "ephemeral"}}],
        }));
        let tools = json!([{"type": "function", "function": {
            "name": "f", "description": "d", "parameters": {"properties": {}, "type": "object"}, "strict": true}}]);
        assert_eq!(conversation.tools, Some(tools));
        assert_eq!(conversation.reasoning_effort, Some("high".into()));
        let quiet = messages(json!({"messages": [], "thinking": {"type": "disabled"}}));
        assert_eq!(quiet.reasoning_effort, Some("none".into()));
    }

    #[test]
    fn parts_that_are_no_text_leave_a_prompt_unhashed() {
        let image =
            json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}});
        for content in [
            json!([image]),
            json!([{"type": "tool_result", "tool_use_id": "1", "content": [image]}]),
            json!([{"type": "document", "source": {}}]),
        ] {
            let conversation = messages(json!({"messages": [{"role": "user", "content": content}]}));
            assert_eq!(conversation.unhashed, Some(Unhashed::Unrenderable), "{content}");
        }
    }
}
