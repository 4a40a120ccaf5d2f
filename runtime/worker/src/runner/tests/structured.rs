//! Answers that obey a schema, and answers with tool calls.

use serde_json::json;
use signalbox_protocol::{Constraint, ConstraintKind, ToolOutput};

use super::*;

fn long() -> SamplingParams {
    SamplingParams {
        max_tokens: 800,
        ..SamplingParams::default()
    }
}

fn constrained(stream: bool, seed: u64, kind: ConstraintKind) -> GenerateRequest {
    let sampling = SamplingParams {
        seed: Some(seed),
        ..long()
    };
    let mut request = request(stream, sampling);
    request.constraint = Some(Constraint {
        param: "response_format".into(),
        kind,
    });
    request
}

fn person() -> ConstraintKind {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
    });
    ConstraintKind::JsonSchema(schema.to_string())
}

#[test]
fn the_simulated_engine_obeys_a_schema_and_ends_with_it() {
    let runner = start(sim(fast()));
    let mut answers = std::collections::HashSet::new();
    for seed in 0..20 {
        let answer = submit(&runner, &constrained(true, seed, person()), prompt(3));
        answer.wait().unwrap();
        let (text, finish) = answer.choice(0);
        assert_eq!(finish, "stop", "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(value["name"].is_string() && value["tags"].is_array(), "{text}");
        assert!((0..=150).contains(&value["age"].as_i64().unwrap()), "{text}");
        assert_eq!(value.as_object().unwrap().len(), 3, "{text}");
        answers.insert(text);
    }
    assert!(answers.len() > 10, "answers differ: {answers:?}");
}

#[test]
fn a_constrained_answer_continues_at_another_engine_with_the_same_bytes() {
    let runner = start(sim(fast()));
    let mut request = constrained(true, 7, person());
    request.wants_token_ids = true;
    let whole = submit(&runner, &request, prompt(3));
    whole.wait().unwrap();
    let (bytes, pieces) = {
        let pieces = whole.pieces.lock().unwrap();
        (pieces.queued.clone(), pieces.ids.clone())
    };
    let mut delivered = Vec::new();
    for (ids, end) in pieces {
        delivered.extend(ids);
        let mut rest = request.clone();
        rest.continuation = Some(signalbox_protocol::Continuation {
            delivered_tokens: delivered.len() as u32,
            first_piece: String::new(),
        });
        let continued = submit(&runner, &rest, [prompt(3), delivered.clone()].concat());
        continued.wait().unwrap();
        assert_eq!(
            continued.pieces.lock().unwrap().queued,
            bytes[end..],
            "behind {} tokens",
            delivered.len()
        );
    }
}

#[test]
fn a_grammar_that_cannot_be_used_is_refused_with_the_clients_member() {
    let kind = ConstraintKind::Regex("a(".into());
    let answer = submit(&start(sim(fast())), &constrained(true, 1, kind), prompt(3));
    let error = answer.wait().unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidRequest);
    assert_eq!(error.param.as_deref(), Some("response_format"));
}

/// The deltas of a stream's tool calls, and its text and finish reason.
fn calls(answer: &AnswerRecord) -> (Vec<Value>, String, String) {
    let deltas = answer
        .events()
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["tool_calls"].get(0).cloned())
        .collect();
    let (text, finish) = answer.choice(0);
    (deltas, text, finish)
}

#[test]
fn tool_calls_are_streamed_and_whole() {
    let generated =
        "I look.<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}</tool_call>";
    let with_tools = |stream| {
        let mut request = request(stream, long());
        request.format.tools = Some(ToolOutput::Auto { one_call: false });
        let answer = submit(
            &start(ScriptedEngine::generating(&[generated, "<eos>"])),
            &request,
            prompt(3),
        );
        answer.wait().unwrap();
        answer
    };
    let (deltas, text, finish) = calls(&with_tools(true));
    assert_eq!((text.as_str(), finish.as_str()), ("I look.", "tool_calls"));
    assert_eq!(deltas[0]["function"], json!({"name": "weather", "arguments": ""}));
    assert_eq!(
        (&deltas[0]["index"], &deltas[0]["type"]),
        (&json!(0), &json!("function"))
    );
    let id = deltas[0]["id"].as_str().unwrap();
    assert!(id.starts_with("call_"), "{id}");
    assert!(deltas.len() > 5, "the arguments arrive as they are generated");
    let arguments: String = deltas[1..]
        .iter()
        .map(|delta| delta["function"]["arguments"].as_str().unwrap())
        .collect();
    assert_eq!(arguments, r#"{"city": "Bern"}"#);

    let whole = with_tools(false).pieces.lock().unwrap().queued.clone();
    let whole: Value = serde_json::from_slice(&whole).unwrap();
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "I look.");
    let call = json!({"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}});
    assert_eq!(choice["message"]["tool_calls"], json!([call]));
}

#[test]
fn text_without_a_call_is_the_message_of_a_request_with_tools() {
    let mut request = request(true, long());
    request.format.tools = Some(ToolOutput::Auto { one_call: false });
    let answer = submit(
        &start(ScriptedEngine::generating(&["It rains.", "<eos>"])),
        &request,
        prompt(3),
    );
    answer.wait().unwrap();
    assert_eq!(calls(&answer), (vec![], "It rains.".into(), "stop".into()));
}
