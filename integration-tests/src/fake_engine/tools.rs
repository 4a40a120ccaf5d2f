//! Tool calls: always of the tool that the request names, or the first one, with arguments that its schema allows.

use serde_json::{Map, Value, json};

use super::{identity::random_id, request::Refusal};

/// After this many generated tokens a stream names the tool; the tokens before have no text, as at vLLM.
const NAMED_AFTER: usize = 2;

/// A call that the answer consists of.
#[derive(Debug, Clone)]
pub(super) struct ToolCall {
    id: String,
    name: String,
    arguments: String,
    /// Whether the request named the tool: vLLM then finishes with `stop`.
    is_named: bool,
}

impl ToolCall {
    /// The call that the request leads to, if any.
    pub(super) fn of(body: &Value, has_parser: bool) -> Result<Option<Self>, Refusal> {
        let tools = body["tools"].as_array().map(Vec::as_slice).unwrap_or_default();
        let choice = &body["tool_choice"];
        if tools.is_empty() || choice == "none" {
            return Ok(None);
        }
        let named = choice["function"]["name"].as_str();
        if named.is_none() && choice != "required" && !has_parser {
            return Err(Refusal::bad(
                "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set",
            ));
        }
        let tool = tools
            .iter()
            .find(|tool| named.is_none_or(|name| tool["function"]["name"] == name))
            .ok_or_else(|| {
                Refusal::bad(format!(
                    "The tool specified in `tool_choice` does not match any of the specified `tools`: {}",
                    named.unwrap_or_default()
                ))
            })?;
        let function = &tool["function"];
        Ok(Some(Self {
            id: format!("chatcmpl-tool-{}", random_id()),
            name: function["name"].as_str().unwrap_or_default().into(),
            arguments: instance(&function["parameters"]).to_string(),
            is_named: named.is_some(),
        }))
    }

    /// What the model writes for this call.
    pub(super) fn generated(&self) -> String {
        format!(
            "[{{\"name\": {}, \"parameters\": {}}}]",
            Value::from(self.name.as_str()),
            self.arguments
        )
    }

    /// Whether the finish reason is `tool_calls`.
    pub(super) fn ends_with_tool_calls(&self) -> bool {
        !self.is_named
    }

    /// The call in a whole answer.
    pub(super) fn document(&self) -> Value {
        json!({
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        })
    }

    /// The delta of `count` tokens after `before` others: most have none.
    pub(super) fn delta(&self, before: usize, count: usize) -> Value {
        let has = |token: usize| (before..before + count).contains(&token);
        let function = match (has(NAMED_AFTER), has(NAMED_AFTER + 1)) {
            (true, true) => json!({"name": self.name, "arguments": self.arguments}),
            (true, false) => json!({"name": self.name}),
            (false, true) => {
                let call = json!({"index": 0, "function": {"arguments": self.arguments}});
                return json!({"content": null, "tool_calls": [call]});
            }
            (false, false) => return json!({}),
        };
        let call = json!({"id": self.id, "type": "function", "index": 0, "function": function});
        json!({"content": null, "tool_calls": [call]})
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn arguments(&self) -> Value {
        serde_json::from_str(&self.arguments).unwrap_or_default()
    }
}

/// A value that the schema allows: for objects the members it names, for strings and numbers the simplest ones.
pub(super) fn instance(schema: &Value) -> Value {
    if let Some(first) = schema["enum"].as_array().and_then(|values| values.first()) {
        return first.clone();
    }
    match schema["type"].as_str() {
        Some("string") => json!("Paris"),
        Some("integer") => json!(42),
        Some("number") => json!(4.2),
        Some("boolean") => json!(true),
        Some("null") => Value::Null,
        Some("array") => json!([instance(&schema["items"])]),
        _ => {
            let members = schema["properties"].as_object().into_iter().flatten();
            let members: Map<String, Value> = members
                .map(|(name, schema)| (name.clone(), instance(schema)))
                .collect();
            Value::Object(members)
        }
    }
}
