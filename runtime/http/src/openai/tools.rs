//! The members that ask for tool calls or constrain the answer's text.
//!
//! `tools` are rendered by the model's chat template. A call that is required, or of a named tool, is constrained by a JSON
//! schema, as in vLLM: an array of calls, or the arguments of the named tool.

use serde_json::{Map, Value, json};
use signalbox_protocol::{Constraint, ConstraintKind, ToolOutput, WireError};

use super::fields::{Fields, wrong};

/// Most tools of a request. Each is a part of the prompt.
const MAX_TOOLS: usize = 128;

/// Longest name of a tool in bytes.
const MAX_TOOL_NAME_BYTES: usize = 128;

/// Most texts that `structured_outputs.choice` chooses among.
const MAX_TEXTS: usize = 1_024;

/// The tools of a chat.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChatTools {
    /// For the chat template.
    pub(crate) tools: Value,
    /// How the answer's text becomes calls.
    pub(crate) output: ToolOutput,
    /// What the answer obeys, if it has to be calls.
    pub(crate) constraint: Option<Constraint>,
}

/// What `response_format` and `structured_outputs` ask for.
pub(super) fn constraint(fields: &mut Fields) -> Result<Option<Constraint>, WireError> {
    let format = response_format(fields)?;
    let structured = structured_outputs(fields)?;
    match (format, structured) {
        (Some(_), Some(_)) => Err(WireError::invalid_param(
            "structured_outputs",
            "structured_outputs and response_format both constrain the answer; give one of them",
        )),
        (format, structured) => Ok(format.or(structured)),
    }
}

fn response_format(fields: &mut Fields) -> Result<Option<Constraint>, WireError> {
    const RIGHT: &str = "text, json_object or json_schema";
    let Some(format) = fields.take("response_format")? else {
        return Ok(None);
    };
    let kind = match &format {
        Value::String(kind) => Some(kind.as_str()),
        Value::Object(members) => members.get("type").and_then(Value::as_str),
        other => return Err(wrong("response_format", other, "an object with a type")),
    };
    match kind {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Constraint {
            param: "response_format".into(),
            kind: ConstraintKind::JsonObject,
        })),
        Some("json_schema") => {
            let param = "response_format.json_schema.schema";
            match format.pointer("/json_schema/schema") {
                Some(schema @ Value::Object(_)) => Ok(Some(Constraint {
                    param: param.into(),
                    kind: ConstraintKind::JsonSchema(schema.to_string()),
                })),
                other => Err(wrong(
                    param,
                    other.unwrap_or(&Value::Null),
                    "a JSON schema: an object",
                )),
            }
        }
        Some(kind) => {
            let shown: String = kind.chars().take(40).collect();
            let message = format!("response_format.type is {shown:?}; give {RIGHT}");
            Err(WireError::invalid_param("response_format.type", message))
        }
        None => Err(wrong("response_format.type", &Value::Null, RIGHT)),
    }
}

/// vLLM's member: exactly one of its kinds of constraints, and members of style.
fn structured_outputs(fields: &mut Fields) -> Result<Option<Constraint>, WireError> {
    let members = match fields.take("structured_outputs")? {
        None => return Ok(None),
        Some(Value::Object(members)) if members.values().all(Value::is_null) => return Ok(None),
        Some(Value::Object(members)) => members,
        Some(other) => return Err(wrong("structured_outputs", &other, "an object")),
    };
    let mut found = None;
    for (name, value) in members.iter().filter(|(_, value)| !value.is_null()) {
        let param = format!("structured_outputs.{name}");
        let kind = match (name.as_str(), value) {
            ("json", Value::String(schema)) => ConstraintKind::JsonSchema(schema.clone()),
            ("json", schema @ Value::Object(_)) => ConstraintKind::JsonSchema(schema.to_string()),
            ("json", other) => return Err(wrong(&param, other, "a JSON schema: an object, or its text")),
            ("regex", Value::String(regex)) => ConstraintKind::Regex(regex.clone()),
            ("grammar", Value::String(grammar)) => ConstraintKind::Grammar(grammar.clone()),
            ("regex" | "grammar", other) => return Err(wrong(&param, other, "a string")),
            ("choice", texts) => ConstraintKind::Choice(choice(&param, texts)?),
            ("json_object", Value::Bool(true)) => ConstraintKind::JsonObject,
            ("json_object", Value::Bool(false)) => continue,
            ("json_object", other) => return Err(wrong(&param, other, "true or false")),
            // Answers have no free whitespace anyway, and the library follows the schema.
            ("disable_any_whitespace" | "disable_fallback", Value::Bool(_)) => continue,
            ("disable_additional_properties", Value::Bool(false)) => continue,
            _ => {
                let shown: String = name.chars().take(40).collect();
                let message = format!(
                    "structured_outputs has the member {shown:?}; give one of json, regex, choice, grammar and json_object"
                );
                return Err(WireError::invalid_param("structured_outputs", message));
            }
        };
        if found.replace(Constraint { param, kind }).is_some() {
            let message = "structured_outputs has several constraints; give one of json, regex, choice, grammar and \
                           json_object";
            return Err(WireError::invalid_param("structured_outputs", message));
        }
    }
    Ok(found)
}

fn choice(param: &str, texts: &Value) -> Result<Vec<String>, WireError> {
    let right = format!("an array of 1 to {MAX_TEXTS} strings that are not empty");
    let list = texts
        .as_array()
        .filter(|list| (1..=MAX_TEXTS).contains(&list.len()))
        .ok_or_else(|| wrong(param, texts, &right))?;
    let texts = list.iter().enumerate().map(|(i, text)| match text {
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        other => Err(wrong(
            &format!("{param}[{i}]"),
            other,
            "a string that is not empty",
        )),
    });
    texts.collect()
}

/// The tools of a request, checked.
pub(crate) fn described_tools(fields: &mut Fields) -> Result<Vec<Value>, WireError> {
    let tools = match fields.take("tools")? {
        None => Vec::new(),
        Some(Value::Array(tools)) if tools.len() > MAX_TOOLS => {
            let message = format!("tools has {} tools; give at most {MAX_TOOLS}", tools.len());
            return Err(WireError::invalid_param("tools", message));
        }
        Some(Value::Array(tools)) => tools,
        Some(other) => return Err(wrong("tools", &other, "an array of tools")),
    };
    for (i, tool) in tools.iter().enumerate() {
        check_tool(&format!("tools[{i}]"), tool)?;
    }
    Ok(tools)
}

/// The tools that the answer may call.
pub(super) fn tools(fields: &mut Fields) -> Result<Option<ChatTools>, WireError> {
    let tools = described_tools(fields)?;
    let choice = fields.take("tool_choice")?;
    let one_call = !fields.flag("parallel_tool_calls")?.unwrap_or(true);
    if tools.is_empty() {
        return match choice {
            None | Some(Value::String(_)) if choice.as_ref().is_none_or(|choice| choice != "required") => {
                Ok(None)
            }
            _ => Err(WireError::invalid_param(
                "tool_choice",
                "tool_choice asks for a call, and the request has no tools; give tools",
            )),
        };
    }
    let (output, constraint) = match &choice {
        Some(Value::String(choice)) if choice == "none" => return Ok(None),
        None => (ToolOutput::Auto { one_call }, None),
        Some(Value::String(choice)) if choice == "auto" => (ToolOutput::Auto { one_call }, None),
        Some(Value::String(choice)) if choice == "required" => (
            ToolOutput::Required { one_call },
            Some(calls_schema(&tools, one_call)?),
        ),
        Some(choice @ Value::Object(_)) => named(choice, &tools)?,
        Some(other) => {
            return Err(wrong(
                "tool_choice",
                other,
                "none, auto, required or a function's name",
            ));
        }
    };
    let constraint = constraint.map(|schema| Constraint {
        param: "tools".into(),
        kind: ConstraintKind::JsonSchema(schema.to_string()),
    });
    Ok(Some(ChatTools {
        tools: Value::Array(tools),
        output,
        constraint,
    }))
}

fn check_tool(param: &str, tool: &Value) -> Result<(), WireError> {
    if tool.get("type").and_then(Value::as_str) != Some("function") {
        let kind = tool.get("type").unwrap_or(&Value::Null);
        return Err(wrong(&format!("{param}.type"), kind, "function"));
    }
    let function = tool.get("function").unwrap_or(&Value::Null);
    if !function.is_object() {
        return Err(wrong(
            &format!("{param}.function"),
            function,
            "an object with a name",
        ));
    }
    let name = function.get("name").unwrap_or(&Value::Null);
    if !name
        .as_str()
        .is_some_and(|name| (1..=MAX_TOOL_NAME_BYTES).contains(&name.len()))
    {
        let right = format!("a string of 1 to {MAX_TOOL_NAME_BYTES} bytes");
        return Err(wrong(&format!("{param}.function.name"), name, &right));
    }
    match function.get("parameters") {
        None | Some(Value::Null | Value::Object(_)) => Ok(()),
        Some(other) => Err(wrong(
            &format!("{param}.function.parameters"),
            other,
            "a JSON schema: an object",
        )),
    }
}

fn name(tool: &Value) -> &str {
    tool.pointer("/function/name")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The schema of a tool's arguments; without one, any object.
fn parameters(tool: &Value) -> Map<String, Value> {
    let given = tool.pointer("/function/parameters").and_then(Value::as_object);
    let mut schema = given.cloned().unwrap_or_default();
    if !["type", "$ref", "anyOf", "allOf", "oneOf"]
        .iter()
        .any(|key| schema.contains_key(*key))
    {
        schema.insert("type".into(), "object".into());
    }
    schema
}

fn named(choice: &Value, tools: &[Value]) -> Result<(ToolOutput, Option<Value>), WireError> {
    let wanted = match choice.pointer("/function/name") {
        Some(Value::String(wanted)) => wanted,
        other => {
            let other = other.unwrap_or(&Value::Null);
            return Err(wrong(
                "tool_choice.function.name",
                other,
                "the name of one of tools",
            ));
        }
    };
    let Some(tool) = tools.iter().find(|tool| name(tool) == wanted) else {
        let shown: String = wanted.chars().take(MAX_TOOL_NAME_BYTES).collect();
        let message = format!("tool_choice names the tool {shown:?}, which is not one of tools");
        return Err(WireError::invalid_param("tool_choice.function.name", message));
    };
    let output = ToolOutput::Named { name: wanted.clone() };
    Ok((output, Some(Value::Object(parameters(tool)))))
}

/// The schema of an array of calls. Definitions of the tools' schemas are those of the whole schema, to which references point.
fn calls_schema(tools: &[Value], one_call: bool) -> Result<Value, WireError> {
    let mut definitions = Map::new();
    let mut calls = Vec::with_capacity(tools.len());
    for (i, tool) in tools.iter().enumerate() {
        let mut schema = parameters(tool);
        for key in ["$defs", "definitions"] {
            let Some(Value::Object(own)) = schema.remove(key) else {
                continue;
            };
            for (name, definition) in own {
                let all = definitions.entry(key).or_insert_with(|| json!({}));
                let Some(all) = all.as_object_mut() else { continue };
                let known = all.entry(name.clone()).or_insert_with(|| definition.clone());
                if *known != definition {
                    let param = format!("tools[{i}].function.parameters.{key}");
                    let shown: String = name.chars().take(40).collect();
                    let message =
                        format!("{param} defines {shown:?} in another way than an earlier tool; rename it");
                    return Err(WireError::invalid_param(param, message));
                }
            }
        }
        calls.push(json!({
            "type": "object",
            "properties": {"name": {"type": "string", "enum": [name(tool)]}, "parameters": schema},
            "required": ["name", "parameters"],
            "additionalProperties": false,
        }));
    }
    let mut schema = json!({"type": "array", "minItems": 1, "items": {"anyOf": calls}});
    if let Some(members) = schema.as_object_mut() {
        if one_call {
            members.insert("maxItems".into(), 1.into());
        }
        members.extend(definitions);
    }
    Ok(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] = [
        "response_format",
        "structured_outputs",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
    ];

    fn fields(body: &Value) -> Fields {
        Fields::parse(body.to_string().as_bytes(), &[&NAMES]).unwrap()
    }

    fn kind(body: &Value) -> Option<ConstraintKind> {
        constraint(&mut fields(body))
            .unwrap()
            .map(|constraint| constraint.kind)
    }

    #[test]
    fn each_kind_of_constraint_is_read() {
        let schema = json!({"type": "object"});
        let text = schema.to_string();
        for (body, expected) in [
            (json!({}), None),
            (
                json!({"response_format": {"type": "text"}, "structured_outputs": {}}),
                None,
            ),
            (
                json!({"response_format": {"type": "json_object"}}),
                Some(ConstraintKind::JsonObject),
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}),
                Some(ConstraintKind::JsonSchema(text.clone())),
            ),
            (
                json!({"structured_outputs": {"json": schema, "regex": null}}),
                Some(ConstraintKind::JsonSchema(text.clone())),
            ),
            (
                json!({"structured_outputs": {"json": text}}),
                Some(ConstraintKind::JsonSchema(text.clone())),
            ),
            (
                json!({"structured_outputs": {"regex": "a+"}}),
                Some(ConstraintKind::Regex("a+".into())),
            ),
            (
                json!({"structured_outputs": {"grammar": "start: \"a\""}}),
                Some(ConstraintKind::Grammar("start: \"a\"".into())),
            ),
            (
                json!({"structured_outputs": {"choice": ["a", "b"]}}),
                Some(ConstraintKind::Choice(vec!["a".into(), "b".into()])),
            ),
            (
                json!({"structured_outputs": {"json_object": true}}),
                Some(ConstraintKind::JsonObject),
            ),
        ] {
            assert_eq!(kind(&body), expected, "{body}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (body, param) in [
            (
                json!({"response_format": {"type": "xml"}}),
                "response_format.type",
            ),
            (json!({"response_format": 3}), "response_format"),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format.json_schema.schema",
            ),
            (
                json!({"structured_outputs": {"regex": 1}}),
                "structured_outputs.regex",
            ),
            (
                json!({"structured_outputs": {"regex": "a", "json": {}}}),
                "structured_outputs",
            ),
            (
                json!({"structured_outputs": {"structural_tag": "x"}}),
                "structured_outputs",
            ),
            (
                json!({"structured_outputs": {"choice": []}}),
                "structured_outputs.choice",
            ),
            (
                json!({"structured_outputs": {"choice": ["a", 1]}}),
                "structured_outputs.choice[1]",
            ),
            (
                json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}),
                "structured_outputs",
            ),
        ] {
            let error = constraint(&mut fields(&body)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
        }
    }

    fn function(name: &str, parameters: Value) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    }

    #[test]
    fn the_choice_says_how_the_answer_becomes_calls() {
        let take = |choice: Value, parallel: Value| {
            let list = [
                function("f", json!({"properties": {}})),
                function("g", json!({"type": "object"})),
            ];
            let body = json!({"tools": list, "tool_choice": choice, "parallel_tool_calls": parallel});
            tools(&mut fields(&body)).unwrap()
        };
        let auto = |one_call| Some(ToolOutput::Auto { one_call });
        assert_eq!(
            take(Value::Null, Value::Null).map(|tools| tools.output),
            auto(false)
        );
        assert_eq!(
            take(json!("auto"), json!(false)).map(|tools| tools.output),
            auto(true)
        );
        assert_eq!(take(json!("none"), Value::Null), None);
        let required = take(json!("required"), json!(false)).unwrap();
        assert_eq!(required.output, ToolOutput::Required { one_call: true });
        let Some(Constraint {
            kind: ConstraintKind::JsonSchema(schema),
            ..
        }) = required.constraint
        else {
            panic!("a schema")
        };
        let schema: Value = serde_json::from_str(&schema).unwrap();
        assert_eq!(schema["maxItems"], 1);
        assert_eq!(
            schema["items"]["anyOf"][1]["properties"]["name"]["enum"],
            json!(["g"])
        );
        let named = take(
            json!({"type": "function", "function": {"name": "f"}}),
            Value::Null,
        )
        .unwrap();
        assert_eq!(named.output, ToolOutput::Named { name: "f".into() });
        let schema = r#"{"properties":{},"type":"object"}"#.to_owned();
        assert_eq!(named.constraint.unwrap().kind, ConstraintKind::JsonSchema(schema));
    }

    #[test]
    fn definitions_of_several_tools_are_those_of_the_whole_schema() {
        let with = |definition: Value| json!({"$ref": "#/$defs/D", "$defs": {"D": definition}});
        let equal = [
            function("f", with(json!({"type": "object"}))),
            function("g", with(json!({"type": "object"}))),
        ];
        let schema = calls_schema(&equal, false).unwrap();
        assert_eq!(schema["$defs"]["D"], json!({"type": "object"}));
        assert!(
            schema["items"]["anyOf"][0]["properties"]["parameters"]
                .get("$defs")
                .is_none()
        );
        let differing = [
            function("f", with(json!({}))),
            function("g", with(json!({"type": "object"}))),
        ];
        let error = calls_schema(&differing, false).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("tools[1].function.parameters.$defs"));
    }

    #[test]
    fn wrong_tools_and_choices_are_refused_by_name() {
        let list = json!([function("f", json!({}))]);
        for (body, param) in [
            (json!({"tools": {}}), "tools"),
            (json!({"tools": [{"function": {"name": "f"}}]}), "tools[0].type"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
            (
                json!({"tools": [function("", json!({}))]}),
                "tools[0].function.name",
            ),
            (
                json!({"tools": [function("f", json!(1))]}),
                "tools[0].function.parameters",
            ),
            (json!({"tools": list, "tool_choice": "always"}), "tool_choice"),
            (
                json!({"tools": list, "tool_choice": {"function": {"name": "g"}}}),
                "tool_choice.function.name",
            ),
            (
                json!({"tools": list, "tool_choice": {}}),
                "tool_choice.function.name",
            ),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tools": vec![function("f", json!({})); 129]}), "tools"),
        ] {
            let error = tools(&mut fields(&body)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
        }
    }
}
