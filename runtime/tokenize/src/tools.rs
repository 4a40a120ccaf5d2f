//! The tools of a request as the template gets them.

use minijinja::Value;
use serde_json::Value as Json;

use crate::TextError;
use crate::chat::ChatPrompt;
use crate::error::json_type;
use crate::preparation::MessagePreparation;
use crate::values::{object, value, value_or_none};

/// The template's variable `tools`: none if the request has no tools.
///
/// vLLM and SGLang read tools into their schema and print them from it: with its members only, in its order, absent
/// ones as null.
///
/// # Errors
/// `tools` is no array of functions.
pub(crate) fn template_tools(
    chat: &ChatPrompt<'_>,
    preparation: MessagePreparation,
) -> Result<Value, TextError> {
    let none = Value::from(());
    let Some(tools) = chat.tools.filter(|tools| !tools.is_null()) else {
        return Ok(none);
    };
    let Some(list) = tools.as_array() else {
        let text = format!("tools is {}; it should be an array of tools", json_type(tools));
        return Err(TextError::param("tools", text));
    };
    match preparation {
        MessagePreparation::Signalbox => Ok(value(tools)),
        MessagePreparation::Vllm => list
            .iter()
            .enumerate()
            .map(|(index, tool)| vllm_tool(index, tool))
            .collect(),
        MessagePreparation::Sglang => {
            let chosen = chat.tool_choice.unwrap_or(&Json::Null);
            if list.is_empty() || chosen == "none" {
                return Ok(none);
            }
            let name = chosen.pointer("/function/name").and_then(Json::as_str);
            list.iter()
                .enumerate()
                .filter(|(_, tool)| {
                    name.is_none() || tool.pointer("/function/name").and_then(Json::as_str) == name
                })
                .map(|(index, tool)| sglang_tool(index, tool))
                .collect()
        }
    }
}

fn vllm_tool(index: usize, tool: &Json) -> Result<Value, TextError> {
    let function = function(index, tool)?;
    // A tool's flag counts for its function too, unless the function has one.
    let of_tool = tool.get("defer_loading").filter(|flag| !flag.is_null());
    let of_function = function
        .get("defer_loading")
        .filter(|flag| !flag.is_null())
        .or(of_tool);
    let named = ["name", "description", "parameters"].map(|name| (name, member(function, name)));
    let given = [
        ("strict", function.get("strict").filter(|flag| !flag.is_null())),
        ("defer_loading", of_function),
    ];
    let given = given
        .into_iter()
        .filter_map(|(name, flag)| Some((name, value(flag?))));
    let function = object(named.into_iter().chain(given));
    let members = [("type", Value::from("function")), ("function", function)];
    Ok(object(
        members
            .into_iter()
            .chain(of_tool.map(|flag| ("defer_loading", value(flag)))),
    ))
}

fn sglang_tool(index: usize, tool: &Json) -> Result<Value, TextError> {
    let function = function(index, tool)?;
    let strict = function.get("strict").and_then(Json::as_bool).unwrap_or(false);
    let named = ["description", "name", "parameters"].map(|name| (name, member(function, name)));
    let function = object(named.into_iter().chain([("strict", Value::from(strict))]));
    Ok(object(
        [("type", Value::from("function")), ("function", function)].into_iter(),
    ))
}

fn member(function: &Json, name: &str) -> Value {
    value_or_none(function.get(name))
}

fn function(index: usize, tool: &Json) -> Result<&Json, TextError> {
    let function = tool.get("function").filter(|function| function.is_object());
    function
        .filter(|function| function.get("name").is_some_and(Json::is_string))
        .ok_or_else(|| {
            let param = format!("tools[{index}]");
            let text = format!(
                "{param} is no function; it should be {{\"type\": \"function\", \"function\": {{\"name\": …}}}}"
            );
            TextError::param(param, text)
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tools(preparation: MessagePreparation, tools: &Json, choice: Option<&Json>) -> String {
        let messages = json!([]);
        let mut chat = ChatPrompt::new(&messages);
        (chat.tools, chat.tool_choice) = (Some(tools), choice);
        serde_json::to_string(&template_tools(&chat, preparation).unwrap()).unwrap()
    }

    #[test]
    fn each_engine_prints_tools_from_its_own_schema() {
        let given = json!([{"function": {"strict": true, "parameters": {"b": 1, "a": 2}, "name": "f", "x": 1}, "type": "function"}]);
        assert_eq!(
            tools(MessagePreparation::Signalbox, &given, None),
            given.to_string()
        );
        assert_eq!(
            tools(MessagePreparation::Vllm, &given, None),
            r#"[{"type":"function","function":{"name":"f","description":null,"parameters":{"b":1,"a":2},"strict":true}}]"#
        );
        assert_eq!(
            tools(MessagePreparation::Sglang, &given, None),
            r#"[{"type":"function","function":{"description":null,"name":"f","parameters":{"b":1,"a":2},"strict":true}}]"#
        );
    }

    #[test]
    fn sglang_shows_only_the_tools_that_may_be_called() {
        let given = json!([{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}]);
        let choice = json!({"type": "function", "function": {"name": "g"}});
        let shown = tools(MessagePreparation::Sglang, &given, Some(&choice));
        assert!(shown.contains("\"g\"") && !shown.contains("\"f\""), "{shown}");
        assert_eq!(
            tools(MessagePreparation::Sglang, &given, Some(&json!("none"))),
            "null"
        );
        assert_eq!(
            tools(MessagePreparation::Vllm, &given, Some(&json!("none"))),
            tools(MessagePreparation::Vllm, &given, None)
        );
    }

    #[test]
    fn tools_of_the_wrong_shape_are_refused_with_the_parameter() {
        let messages = json!([]);
        for (given, param) in [
            (json!({}), "tools"),
            (json!([{"function": {"name": "f"}}, {"name": "g"}]), "tools[1]"),
        ] {
            let mut chat = ChatPrompt::new(&messages);
            chat.tools = Some(&given);
            let error = template_tools(&chat, MessagePreparation::Vllm).unwrap_err();
            assert_eq!(error.param_name(), Some(param), "{error}");
        }
    }
}
