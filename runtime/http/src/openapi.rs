//! `GET /openapi.json`: the document of what this listener serves, made from the tables below and the names that the code
//! checks.
//!
//! It describes engines of this repository. An engine next door reads bodies itself: its routes take any JSON object, and its
//! answers and errors are its own. Parameters that are refused are not listed, and unknown ones are ignored, so that a body
//! may have more members than the document names.

use serde_json::{Map, Value, json};
use signalbox_protocol::{Endpoint, ErrorKind};

/// Errors that any request with a body may end with.
const BODY_ERRORS: [ErrorKind; 10] = [
    ErrorKind::InvalidRequest,
    ErrorKind::ModelNotFound,
    ErrorKind::MethodNotAllowed,
    ErrorKind::RequestTimeout,
    ErrorKind::TooLarge,
    ErrorKind::UnsupportedMedia,
    ErrorKind::Overloaded,
    ErrorKind::Internal,
    ErrorKind::Unavailable,
    ErrorKind::DeadlineExceeded,
];

/// The document. `answered` are the paths whose requests go to workers; `has_metrics`: there is `/metrics`.
pub(crate) fn document(answered: impl Iterator<Item = (&'static str, Endpoint)>, has_metrics: bool) -> Value {
    let mut paths = Map::new();
    for (path, endpoint) in answered {
        paths.insert(path.to_owned(), json!({"post": post(endpoint)}));
    }
    let status = |name: &str, schema: &str| read(name, &[("200", schema), ("503", "Status")]);
    for (path, operation) in [
        ("/v1/models", read("the served models", &[("200", "Models")])),
        ("/health", status("the health of all workers", "Status")),
        ("/live", read("whether the process runs", &[("200", "Status")])),
        ("/ready", status("whether requests are accepted", "Status")),
        ("/openapi.json", read("this document", &[("200", "Object")])),
        (
            "/tokenizer_info",
            read(
                "the special tokens of the one model",
                &[("200", "Object"), ("404", "Error")],
            ),
        ),
    ] {
        paths.insert(path.to_owned(), json!({"get": operation}));
    }
    let mut model = read(
        "a served model",
        &[("200", "Model"), ("404", "Error"), ("503", "Error")],
    );
    model["parameters"] = json!([{
        "name": "id", "in": "path", "required": true, "description": "The model's name, which may have slashes.",
        "schema": {"type": "string", "minLength": 1},
    }]);
    paths.insert("/v1/models/{id}".to_owned(), json!({"get": model}));
    if has_metrics {
        let text = json!({"text/plain": {"schema": {"type": "string"}}});
        let page = json!({"200": {"description": "Metrics", "content": text}});
        paths.insert(
            "/metrics".to_owned(),
            json!({"get": {"summary": "the metrics of Prometheus", "responses": page}}),
        );
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Signalbox",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The APIs of OpenAI, Anthropic and the engines, in front of a fleet of engines.",
        },
        "paths": paths,
        "components": {"schemas": schemas()},
    })
}

fn read(summary: &str, answers: &[(&str, &str)]) -> Value {
    let responses: Map<String, Value> = answers
        .iter()
        .map(|(status, schema)| ((*status).to_owned(), response("", schema)))
        .collect();
    json!({"summary": summary, "responses": responses})
}

fn response(description: &str, schema: &str) -> Value {
    json!({"description": description, "content": {"application/json": {"schema": reference(schema)}}})
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn post(endpoint: Endpoint) -> Value {
    let (summary, request, answer) = match endpoint {
        Endpoint::Chat => ("a chat", "ChatRequest", "Chat"),
        Endpoint::Completions => ("completions of prompts", "CompletionRequest", "Completion"),
        Endpoint::Tokenize => ("the tokens of a text or a chat", "TokenizeRequest", "Tokens"),
        Endpoint::Detokenize => ("the text of tokens", "DetokenizeRequest", "Text"),
        Endpoint::Responses => ("a response", "ResponseRequest", "Response"),
        Endpoint::Messages => ("a message, by engines that have it", "ForwardedRequest", "Object"),
        Endpoint::Embeddings => (
            "embeddings, by engines that make them",
            "ForwardedRequest",
            "Object",
        ),
        Endpoint::Rerank | Endpoint::Score => (
            "ratings of documents, by engines that rate them",
            "ForwardedRequest",
            "Object",
        ),
    };
    let mut responses = Map::new();
    let error = if endpoint == Endpoint::Messages {
        "AnthropicError"
    } else {
        "Error"
    };
    for kind in BODY_ERRORS {
        let description = kind.openai_code().unwrap_or_else(|| kind.openai_type());
        responses.insert(kind.status().to_string(), response(description, error));
    }
    let mut answered = response("The answer", answer);
    if endpoint.generates() {
        // The schema of each event. The data of all but the last, `[DONE]`, is JSON.
        let data = json!({"type": "string"});
        answered["content"]["text/event-stream"] = json!({"schema": object(&[("data", data)])});
    }
    responses.insert("200".into(), answered);
    json!({
        "summary": summary,
        "requestBody": {
            "required": true,
            "content": {"application/json": {"schema": reference(request)}},
        },
        "responses": responses,
    })
}

fn schemas() -> Value {
    let index = json!({"type": "integer", "minimum": 0});
    let text = json!({"type": "string"});
    let finish = json!({"enum": ["stop", "length", "tool_calls", null]});
    let token = json!({"type": "integer", "minimum": 0});
    json!({
        "Object": {"type": "object"},
        "Status": {"type": "object", "required": ["status"], "properties": {"status": text}},
        "Error": object(&[("error", object(&[
            ("message", text.clone()),
            ("type", text.clone()),
            ("param", nullable("string")),
            ("code", nullable("string")),
        ]))]),
        "AnthropicError": object(&[
            ("type", json!({"const": "error"})),
            ("error", object(&[("type", text.clone()), ("message", text.clone())])),
        ]),
        "Model": object(&[
            ("id", text.clone()),
            ("object", json!({"const": "model"})),
            ("created", index.clone()),
            ("owned_by", text.clone()),
            ("max_model_len", nullable("integer")),
        ]),
        "Models": object(&[
            ("object", json!({"const": "list"})),
            ("data", json!({"type": "array", "items": reference("Model")})),
        ]),
        "Usage": object(&[
            ("prompt_tokens", index.clone()),
            ("completion_tokens", index.clone()),
            ("total_tokens", index.clone()),
        ]),
        "Chat": answer("chat.completion", object(&[
            ("index", index.clone()),
            ("message", object(&[("role", json!({"const": "assistant"})), ("content", nullable("string"))])),
            ("logprobs", nullable("object")),
            ("finish_reason", finish.clone()),
        ])),
        "Completion": answer("text_completion", object(&[
            ("index", index.clone()),
            ("text", text.clone()),
            ("logprobs", nullable("object")),
            ("finish_reason", finish),
        ])),
        "Response": object(&[
            ("id", text.clone()),
            ("object", json!({"const": "response"})),
            ("created_at", index.clone()),
            ("status", json!({"enum": ["completed", "incomplete"]})),
            ("model", text.clone()),
            ("output", json!({"type": "array", "minItems": 1, "items": object(&[
                ("id", text.clone()),
                ("type", json!({"enum": ["message", "function_call"]})),
                ("status", json!({"enum": ["completed", "incomplete"]})),
            ])})),
            ("usage", object(&[
                ("input_tokens", index.clone()),
                ("output_tokens", index.clone()),
                ("total_tokens", index.clone()),
            ])),
        ]),
        "Tokens": object(&[
            ("count", index),
            ("max_model_len", nullable("integer")),
            ("tokens", json!({"type": "array", "items": token})),
            ("token_strs", json!({"type": ["array", "null"], "items": text})),
        ]),
        "Text": object(&[("prompt", text)]),
        "ChatRequest": request(&["messages"], CHAT),
        "CompletionRequest": request(&["prompt"], COMPLETION),
        "TokenizeRequest": {
            "type": "object",
            "properties": members(TOKENIZE),
            "anyOf": [{"required": ["prompt"]}, {"required": ["messages"]}],
        },
        "DetokenizeRequest": {
            "type": "object",
            "required": ["tokens"],
            "properties": {"model": {"type": "string"}, "tokens": {"type": "array", "items": token}},
        },
        "ResponseRequest": {
            "type": "object",
            "required": ["model", "input"],
            "properties": members(RESPONSE),
        },
        "ForwardedRequest": request(&[], &[]),
    })
}

/// An object that has all these members, and perhaps more.
fn object(members: &[(&str, Value)]) -> Value {
    let required: Vec<&str> = members.iter().map(|(name, _)| *name).collect();
    let properties: Map<String, Value> = members
        .iter()
        .map(|(name, schema)| ((*name).to_owned(), schema.clone()))
        .collect();
    json!({"type": "object", "required": required, "properties": properties})
}

fn nullable(kind: &str) -> Value {
    json!({"type": [kind, "null"]})
}

fn answer(kind: &str, choice: Value) -> Value {
    object(&[
        ("id", json!({"type": "string"})),
        ("object", json!({"const": kind})),
        ("created", json!({"type": "integer"})),
        ("model", json!({"type": "string"})),
        (
            "choices",
            json!({"type": "array", "minItems": 1, "items": choice}),
        ),
        ("usage", reference("Usage")),
    ])
}

/// A request's body: the model, these members of which some are required, and those of all generations.
fn request(required: &[&str], own: &[Member]) -> Value {
    let mut properties = members(own);
    if !own.is_empty() {
        properties.extend(members(GENERATION));
    }
    properties.insert("model".into(), json!({"type": "string", "minLength": 1}));
    let required: Vec<&str> = required.iter().copied().chain(["model"]).collect();
    json!({"type": "object", "required": required, "properties": properties})
}

/// A parameter and its JSON schema.
type Member = (&'static str, &'static str);

fn members(members: &[Member]) -> Map<String, Value> {
    members
        .iter()
        .map(|(name, schema)| {
            (
                (*name).to_owned(),
                serde_json::from_str(schema).unwrap_or(Value::Bool(true)),
            )
        })
        .collect()
}

const FLAG: &str = r#"{"type": ["boolean", "null"]}"#;

const TEMPERATURE: Member = (
    "temperature",
    r#"{"type": ["number", "null"], "minimum": 0, "maximum": 2}"#,
);

const TOP_P: Member = (
    "top_p",
    r#"{"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1}"#,
);

/// The parameters of chats and completions.
pub(crate) const GENERATION: &[Member] = &[
    TEMPERATURE,
    TOP_P,
    (
        "top_k",
        r#"{"type": ["integer", "null"], "minimum": -1, "maximum": 4294967295}"#,
    ),
    (
        "seed",
        r#"{"type": ["integer", "null"], "minimum": -9223372036854775808, "maximum": 9223372036854775807}"#,
    ),
    (
        "stop",
        r#"{"anyOf": [{"type": "null"}, {"type": "string", "minLength": 1, "maxLength": 256},
            {"type": "array", "maxItems": 4, "items": {"type": "string", "minLength": 1, "maxLength": 256}}]}"#,
    ),
    (
        "n",
        r#"{"type": ["integer", "null"], "minimum": 1, "maximum": 128}"#,
    ),
    (
        "presence_penalty",
        r#"{"type": ["number", "null"], "minimum": -2, "maximum": 2}"#,
    ),
    (
        "frequency_penalty",
        r#"{"type": ["number", "null"], "minimum": -2, "maximum": 2}"#,
    ),
    (
        "logit_bias",
        r#"{"type": ["object", "null"], "maxProperties": 1024, "propertyNames": {"pattern": "^[0-9]{1,3}$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}"#,
    ),
    ("ignore_eos", FLAG),
    (
        "max_tokens",
        r#"{"type": ["integer", "null"], "minimum": 0, "maximum": 4294967295}"#,
    ),
    ("stream", FLAG),
    (
        "stream_options",
        r#"{"type": ["object", "null"], "properties": {"include_usage": {"type": ["boolean", "null"]}}}"#,
    ),
    ("user", r#"{"type": ["string", "null"]}"#),
    ("prompt_cache_key", r#"{"type": ["string", "null"]}"#),
    ("session_id", r#"{"type": ["string", "null"]}"#),
    ("safety_identifier", r#"{"type": ["string", "null"]}"#),
    ("min_tokens", r#"{"type": ["integer", "null"], "minimum": 0}"#),
    (
        "stop_token_ids",
        r#"{"type": ["array", "null"], "maxItems": 256, "items": {"type": "integer", "minimum": 0}}"#,
    ),
    (
        "bad_words",
        r#"{"type": ["array", "null"], "items": {"type": "string", "minLength": 1}}"#,
    ),
    (
        "min_p",
        r#"{"type": ["number", "null"], "minimum": 0, "maximum": 1}"#,
    ),
    (
        "repetition_penalty",
        r#"{"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 100}"#,
    ),
    ("return_token_ids", FLAG),
    (
        "response_format",
        r#"{"type": ["object", "null"], "required": ["type"], "properties": {
            "type": {"enum": ["text", "json_object", "json_schema"]},
            "json_schema": {"type": "object", "required": ["schema"], "properties": {"schema": {"type": "object"}}}}}"#,
    ),
    (
        "structured_outputs",
        r#"{"type": ["object", "null"], "description": "One of its members is set.", "properties": {
            "json": {"anyOf": [{"type": "object"}, {"type": "string"}, {"type": "null"}]},
            "json_object": {"type": ["boolean", "null"]},
            "regex": {"type": ["string", "null"]},
            "choice": {"type": ["array", "null"], "items": {"type": "string"}},
            "grammar": {"type": ["string", "null"], "description": "In Lark's syntax."}}}"#,
    ),
    (
        "cache_salt",
        r#"{"type": ["string", "null"], "minLength": 1, "maxLength": 128}"#,
    ),
    (
        "priority",
        r#"{"type": ["integer", "null"], "minimum": -2147483648, "maximum": 2147483647,
            "description": "A lower one is earlier, as in vLLM."}"#,
    ),
];

/// The parameters of chats alone.
pub(crate) const CHAT: &[Member] = &[
    (
        "messages",
        r#"{"type": "array", "minItems": 1, "maxItems": 4096, "items": {"type": "object",
            "required": ["role", "content"], "properties": {
                "role": {"enum": ["system", "developer", "user", "assistant", "tool", "function"]},
                "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object",
                    "required": ["type", "text"], "properties": {"type": {"const": "text"}, "text": {"type": "string"}}}}]}}}}"#,
    ),
    (
        "max_completion_tokens",
        r#"{"type": ["integer", "null"], "minimum": 1, "maximum": 4294967295}"#,
    ),
    ("logprobs", FLAG),
    (
        "top_logprobs",
        r#"{"type": ["integer", "null"], "minimum": 0, "maximum": 20}"#,
    ),
    ("echo", r#"{"enum": [false, null]}"#),
    ("chat_template_kwargs", r#"{"type": ["object", "null"]}"#),
    ("add_generation_prompt", FLAG),
    ("continue_final_message", FLAG),
    ("add_special_tokens", FLAG),
    (
        "tools",
        r#"{"type": ["array", "null"], "maxItems": 128, "items": {"type": "object", "required": ["type", "function"],
            "properties": {"type": {"const": "function"}, "function": {"type": "object", "required": ["name"], "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 128}, "description": {"type": ["string", "null"]},
                "parameters": {"type": ["object", "null"]}}}}}}"#,
    ),
    (
        "tool_choice",
        r#"{"anyOf": [{"enum": ["none", "auto", "required", null]}, {"type": "object", "required": ["type", "function"],
            "properties": {"type": {"const": "function"}, "function": {"type": "object", "required": ["name"], "properties": {
                "name": {"type": "string"}}}}}]}"#,
    ),
    ("parallel_tool_calls", FLAG),
];

/// The parameters of completions alone.
pub(crate) const COMPLETION: &[Member] = &[
    (
        "prompt",
        r#"{"anyOf": [{"type": "string", "minLength": 1},
            {"type": "array", "minItems": 1, "maxItems": 2048, "items": {"type": "string", "minLength": 1}},
            {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
            {"type": "array", "minItems": 1, "maxItems": 2048,
                "items": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}}]}"#,
    ),
    (
        "logprobs",
        r#"{"type": ["integer", "null"], "minimum": 0, "maximum": 20}"#,
    ),
    ("echo", FLAG),
    ("suffix", r#"{"enum": ["", null]}"#),
    (
        "best_of",
        r#"{"type": ["integer", "null"], "minimum": 1, "description": "Equal to n."}"#,
    ),
    ("add_special_tokens", FLAG),
    ("tools", r#"{"type": ["array", "null"], "maxItems": 0}"#),
    ("tool_choice", r#"{"enum": ["none", null]}"#),
];

/// The parameters of responses.
const RESPONSE: &[Member] = &[
    ("model", r#"{"type": "string", "minLength": 1}"#),
    (
        "input",
        r#"{"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "minItems": 1, "maxItems": 4096, "items": {
            "anyOf": [
                {"type": "object", "required": ["role", "content"], "properties": {"type": {"const": "message"},
                    "role": {"enum": ["system", "developer", "user", "assistant"]}, "content": {"type": "string"}}},
                {"type": "object", "required": ["type", "call_id", "name", "arguments"], "properties": {
                    "type": {"const": "function_call"}, "call_id": {"type": "string"}, "name": {"type": "string"},
                    "arguments": {"type": "string"}}},
                {"type": "object", "required": ["type", "call_id", "output"], "properties": {
                    "type": {"const": "function_call_output"}, "call_id": {"type": "string"},
                    "output": {"type": "string"}}}]}}]}"#,
    ),
    ("instructions", r#"{"type": ["string", "null"]}"#),
    (
        "max_output_tokens",
        r#"{"type": ["integer", "null"], "minimum": 1, "maximum": 4294967295}"#,
    ),
    TEMPERATURE,
    TOP_P,
    ("stream", FLAG),
    (
        "text",
        r#"{"type": ["object", "null"], "properties": {"format": {"type": ["object", "null"], "required": ["type"],
            "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}, "name": {"type": "string"},
                "schema": {"type": "object"}}}}}"#,
    ),
    (
        "tools",
        r#"{"type": ["array", "null"], "maxItems": 128, "items": {"type": "object", "required": ["type", "name"],
            "properties": {"type": {"const": "function"}, "name": {"type": "string", "minLength": 1, "maxLength": 128},
                "description": {"type": ["string", "null"]}, "parameters": {"type": ["object", "null"]}}}}"#,
    ),
    (
        "tool_choice",
        r#"{"anyOf": [{"enum": ["none", "auto", "required", null]}, {"type": "object", "required": ["type", "name"],
            "properties": {"type": {"const": "function"}, "name": {"type": "string"}}}]}"#,
    ),
    ("parallel_tool_calls", FLAG),
    ("metadata", r#"{"type": ["object", "null"]}"#),
    ("user", r#"{"type": ["string", "null"]}"#),
    ("prompt_cache_key", r#"{"type": ["string", "null"]}"#),
    ("safety_identifier", r#"{"type": ["string", "null"]}"#),
    ("truncation", r#"{"enum": ["disabled", null]}"#),
];

/// The parameters of `/tokenize`.
const TOKENIZE: &[Member] = &[
    (
        "model",
        r#"{"type": "string", "description": "May be left out if one model is served."}"#,
    ),
    ("prompt", r#"{"type": "string"}"#),
    ("messages", r#"{"type": "array"}"#),
    ("tools", r#"{"type": ["array", "null"]}"#),
    ("chat_template_kwargs", r#"{"type": ["object", "null"]}"#),
    ("add_generation_prompt", FLAG),
    ("continue_final_message", FLAG),
    ("add_special_tokens", FLAG),
    ("return_token_strs", FLAG),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::openai::{CHAT_NAMES, COMPLETION_NAMES};

    #[test]
    fn the_document_lists_the_parameters_that_are_checked() {
        for (names, own) in [(CHAT_NAMES, CHAT), (COMPLETION_NAMES, COMPLETION)] {
            // The last of the three are those that are refused.
            let checked: BTreeSet<&str> = names[..2]
                .iter()
                .flat_map(|names| names.iter().copied())
                .collect();
            let listed = own.iter().chain(GENERATION).map(|(name, _)| *name);
            assert_eq!(listed.chain(["model"]).collect::<BTreeSet<_>>(), checked);
        }
    }

    #[test]
    fn every_schema_is_json_and_every_reference_leads_to_one() {
        for (name, schema) in [GENERATION, CHAT, COMPLETION, RESPONSE, TOKENIZE].concat() {
            assert!(
                serde_json::from_str::<Value>(schema).is_ok_and(|schema| schema.is_object()),
                "{name}"
            );
        }
        let answered = Endpoint::ALL.map(|endpoint| (endpoint.path(), endpoint));
        let document = document(answered.into_iter(), true);
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#").skip(1) {
            let pointer = reference.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
        for endpoint in Endpoint::ALL {
            assert!(document["paths"][endpoint.path()]["post"].is_object());
        }
    }
}
