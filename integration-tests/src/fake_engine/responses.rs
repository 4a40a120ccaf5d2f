//! `/v1/responses`, in the shape of vLLM's `entrypoints/openai/responses`: a message of text.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    chat,
    engine::Engine,
    generation::{Job, Usage},
    identity::{Identity, random_id},
    request::{self, Delivery, Refusal, Sampling},
    stream::{AnswerShape, Piece},
};

/// How a response is answered.
pub(super) struct ResponseAnswer {
    engine: Arc<Engine>,
    identity: Identity,
    pub(super) delivery: Delivery,
    body: Value,
    item: String,
    events: u64,
    text: String,
}

/// Reads a response.
pub(super) fn read(
    engine: &Arc<Engine>,
    identity: Identity,
    rank: usize,
    body: &Value,
) -> Result<(Job, ResponseAnswer), Refusal> {
    // vLLM adds a member before it validates, and its message counts that too.
    let mut body = body.clone();
    body["request_id"] = Value::Null;
    let body = &body;
    let input = request::required(body, "input")?;
    let adapter = engine.check_model(body)?;
    let context = engine.options.context_length as usize;
    let sampling = Sampling::read(body, &["max_output_tokens"], None, context)?;
    let prompt = chat::encode(engine, &messages(body, input), &json!({}))?;
    let job = Job::new(engine, rank, adapter, vec![prompt], &sampling, None)?;
    let answer = ResponseAnswer {
        engine: engine.clone(),
        identity,
        delivery: Delivery::read(body),
        body: body.clone(),
        item: format!("msg_{}", random_id()),
        events: 0,
        text: String::new(),
    };
    Ok((job, answer))
}

/// The chat that a response's instructions and input stand for.
fn messages(body: &Value, input: &Value) -> Value {
    let mut messages = Vec::new();
    if let Some(instructions) = body["instructions"].as_str() {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    match input {
        Value::String(text) => messages.push(json!({"role": "user", "content": text})),
        Value::Array(items) => messages.extend(items.iter().map(|item| {
            let content = match &item["content"] {
                Value::Array(parts) => parts
                    .iter()
                    .map(|part| {
                        // `input_text` and `output_text` are texts.
                        let is_text = part["type"].as_str().is_some_and(|kind| kind.ends_with("text"));
                        let kind = if is_text {
                            json!("text")
                        } else {
                            part["type"].clone()
                        };
                        json!({"type": kind, "text": part["text"]})
                    })
                    .collect(),
                content => content.clone(),
            };
            json!({"role": item["role"], "content": content})
        })),
        _ => {}
    }
    Value::Array(messages)
}

impl ResponseAnswer {
    fn item(&self, text: &str, status: &str) -> Value {
        let content = if status == "in_progress" {
            json!([])
        } else {
            json!([part(text)])
        };
        json!({
            "id": self.item,
            "content": content,
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": null,
        })
    }

    fn response(&self, status: &str, output: Value, usage: Option<Usage>) -> Value {
        let incomplete = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        let usage = usage.map(|usage| {
            json!({
                "input_tokens": usage.prompt,
                "input_tokens_details": {
                    "cached_tokens": usage.cached,
                    "cache_write_tokens": 0,
                    "input_tokens_per_turn": [],
                    "cached_tokens_per_turn": [],
                },
                "output_tokens": usage.completion,
                "output_tokens_details": {
                    "reasoning_tokens": 0,
                    "tool_output_tokens": 0,
                    "output_tokens_per_turn": [],
                    "tool_output_tokens_per_turn": [],
                },
                "total_tokens": usage.prompt + usage.completion,
            })
        });
        let body = &self.body;
        let most = match &body["max_output_tokens"] {
            Value::Null => json!(self.engine.options.context_length),
            most => most.clone(),
        };
        json!({
            "id": self.identity.id("resp_"),
            "created_at": self.identity.created,
            "incomplete_details": incomplete,
            "instructions": body["instructions"],
            "metadata": body["metadata"],
            "model": self.identity.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": true,
            "temperature": body["temperature"].as_f64().unwrap_or(1.0),
            "tool_choice": "none",
            "tools": [],
            "top_p": body["top_p"].as_f64().unwrap_or(1.0),
            "background": false,
            "max_output_tokens": most,
            "max_tool_calls": null,
            "previous_response_id": null,
            "prompt": null,
            "reasoning": null,
            "service_tier": "auto",
            "status": status,
            "text": null,
            "top_logprobs": null,
            "truncation": "disabled",
            "usage": usage,
            "user": body["user"],
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "kv_transfer_params": null,
            "ec_transfer_params": null,
            "input_messages": null,
            "output_messages": null,
        })
    }

    fn event(&mut self, kind: &str, mut members: Value) -> String {
        members["sequence_number"] = json!(self.events);
        members["type"] = json!(kind);
        self.events += 1;
        format!("event: {kind}\ndata: {members}\n\n")
    }
}

fn part(text: &str) -> Value {
    json!({"annotations": [], "text": text, "type": "output_text", "logprobs": null})
}

impl AnswerShape for ResponseAnswer {
    fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    fn document(&self, job: &Job, usage: Usage) -> Value {
        let answer = &job.answers[0];
        let is_complete = answer.finish != "length";
        let output = json!([self.item(&answer.text(), "completed")]);
        let status = if is_complete { "completed" } else { "incomplete" };
        self.response(status, output, Some(usage))
    }

    fn opening(&mut self, _: &Job, _: Usage) -> Vec<String> {
        let started = self.response("in_progress", json!([]), None);
        let item = self.item("", "in_progress");
        let id = self.item.clone();
        vec![
            self.event("response.created", json!({"response": started})),
            self.event("response.in_progress", json!({"response": started})),
            self.event(
                "response.output_item.added",
                json!({"item": item, "output_index": 0}),
            ),
            self.event(
                "response.content_part.added",
                json!({
                    "content_index": 0,
                    "item_id": id,
                    "output_index": 0,
                    "part": {"annotations": [], "text": "", "type": "output_text", "logprobs": []},
                }),
            ),
        ]
    }

    fn piece(&mut self, _: &Job, piece: &Piece<'_>) -> Vec<String> {
        let delta = piece.text();
        self.text.push_str(&delta);
        let id = self.item.clone();
        vec![self.event(
            "response.output_text.delta",
            json!({"content_index": 0, "delta": delta, "item_id": id, "logprobs": [], "output_index": 0}),
        )]
    }

    fn closing(&mut self, job: &Job, usage: Usage) -> Vec<String> {
        let (id, text) = (self.item.clone(), self.text.clone());
        let item = self.item(&text, "completed");
        let response = self.document(job, usage);
        vec![
            self.event(
                "response.output_text.done",
                json!({
                    "content_index": 0,
                    "item_id": id,
                    "logprobs": [],
                    "output_index": 0,
                    // Its place; `event` sets the number.
                    "sequence_number": null,
                    "text": text,
                }),
            ),
            self.event(
                "response.content_part.done",
                json!({"content_index": 0, "item_id": id, "output_index": 0, "part": part(&text)}),
            ),
            self.event(
                "response.output_item.done",
                json!({"item": item, "output_index": 0}),
            ),
            self.event("response.completed", json!({"response": response})),
        ]
    }

    fn error(&self, message: &str) -> String {
        let members = json!({
            "code": "500",
            "message": message,
            "param": null,
            "sequence_number": self.events,
            "type": "error",
        });
        format!("event: error\ndata: {members}\n\n")
    }

    fn has_done(&self) -> bool {
        false
    }
}
