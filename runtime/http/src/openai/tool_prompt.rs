//! Tools for a model whose chat template has no place for them.
//!
//! The tools are described in the system message, in the form that the SmolLM2 models were trained with, which is also close
//! to that of Hermes and Qwen. Calls in earlier turns are written into their messages as the model would have.

use serde_json::{Value, json};

const BEFORE: &str = "You can call functions to answer. You have access to the following tools:\n<tools>";
const BEHIND: &str = "</tools>\n\nIf a tool helps, the answer must be calls of tools in this format and nothing else:\n\
                      <tool_call>[{\"name\": \"function_name\", \"arguments\": {\"argument\": \"value\"}}]</tool_call>";

/// The messages with a description of the tools.
pub(crate) fn with_tools(messages: &Value, tools: &Value) -> Value {
    let mut messages: Vec<Value> = messages.as_array().cloned().unwrap_or_default();
    messages.iter_mut().for_each(write_calls);
    let description = format!("{BEFORE}{tools}{BEHIND}");
    let is_system = |message: &Value| matches!(message["role"].as_str(), Some("system" | "developer"));
    match messages.first_mut() {
        Some(first) if is_system(first) => match &mut first["content"] {
            Value::String(text) => *text = format!("{text}\n\n{description}"),
            Value::Array(parts) => parts.push(json!({"type": "text", "text": description})),
            content => *content = description.into(),
        },
        _ => messages.insert(0, json!({"role": "system", "content": description})),
    }
    Value::Array(messages)
}

/// Writes a message's tool calls into its text.
fn write_calls(message: &mut Value) {
    let Some(calls) = message.get("tool_calls").and_then(Value::as_array) else {
        return;
    };
    let calls: Vec<Value> = calls
        .iter()
        .filter_map(|call| call.get("function"))
        .map(|function| {
            let arguments = match &function["arguments"] {
                Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| json!({})),
                other => other.clone(),
            };
            json!({"name": function["name"], "arguments": arguments})
        })
        .collect();
    if calls.is_empty() {
        return;
    }
    let written = format!("<tool_call>{}</tool_call>", Value::Array(calls));
    match &mut message["content"] {
        Value::String(text) if !text.is_empty() => *text = format!("{text}\n{written}"),
        content => *content = written.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tools_join_the_system_message_and_calls_their_turn() {
        let tools = json!([{"type": "function", "function": {"name": "f"}}]);
        let call =
            json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}});
        let turns = [
            json!({"role": "user", "content": "hi"}),
            json!({"role": "assistant", "content": "", "tool_calls": [call]}),
            json!({"role": "tool", "tool_call_id": "c", "content": "2"}),
        ];
        let messages = with_tools(&json!(turns), &tools);
        assert_eq!(messages[0]["role"], "system");
        assert!(
            messages[0]["content"]
                .as_str()
                .unwrap()
                .contains(&tools.to_string())
        );
        assert_eq!(
            messages[2]["content"],
            r#"<tool_call>[{"name":"f","arguments":{"a":1}}]</tool_call>"#
        );
        let system = json!({"role": "system", "content": "Be kind."});
        let with_system = with_tools(&json!([system, turns[0]]), &tools);
        assert_eq!(with_system.as_array().unwrap().len(), 2);
        assert!(
            with_system[0]["content"]
                .as_str()
                .unwrap()
                .starts_with("Be kind.\n\nYou can call")
        );
    }
}
