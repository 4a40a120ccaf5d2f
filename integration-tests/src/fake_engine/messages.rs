//! Anthropic's `/v1/messages`, in the shape of vLLM's `entrypoints/anthropic`. Tool calls are read from there; the rest was captured.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    chat,
    engine::Engine,
    generation::{Job, Usage},
    identity::Identity,
    request::{self, Delivery, Refusal, Sampling},
    stream::{AnswerShape, Piece},
    tools::ToolCall,
};

/// How a message is answered.
pub(super) struct MessageAnswer {
    engine: Arc<Engine>,
    identity: Identity,
    pub(super) delivery: Delivery,
    tool_call: Option<ToolCall>,
}

/// Reads a message.
pub(super) fn read(
    engine: &Arc<Engine>,
    identity: Identity,
    rank: usize,
    body: &Value,
) -> Result<(Job, MessageAnswer), Refusal> {
    request::required(body, "messages")?;
    request::required(body, "max_tokens")?;
    let adapter = engine.check_model(body)?;
    let mut sampling = Sampling::read(
        body,
        &["max_tokens"],
        None,
        engine.options.context_length as usize,
    )?;
    sampling.stop = request::strings(&body["stop_sequences"]);
    let chat = as_chat(body);
    let tool_call = ToolCall::of(&chat, engine.options.tool_parser)?;
    let forced = tool_call.as_ref().map(ToolCall::generated);
    let prompt = chat::encode(engine, &chat["messages"], &chat)?;
    let job = Job::new(engine, rank, adapter, vec![prompt], &sampling, forced.as_deref())?;
    let answer = MessageAnswer {
        engine: engine.clone(),
        identity,
        delivery: Delivery::read(body),
        tool_call,
    };
    Ok((job, answer))
}

/// The chat that vLLM makes of a message: the system prompt first, texts as parts, tools in OpenAI's shape.
fn as_chat(body: &Value) -> Value {
    let mut messages = Vec::new();
    match &body["system"] {
        Value::String(text) => messages.push(json!({"role": "system", "content": text})),
        Value::Array(blocks) => {
            let text: String = blocks.iter().filter_map(|block| block["text"].as_str()).collect();
            messages.push(json!({"role": "system", "content": text}));
        }
        _ => {}
    }
    for message in body["messages"].as_array().into_iter().flatten() {
        let content = match &message["content"] {
            Value::Array(blocks) => blocks
                .iter()
                .map(|block| json!({"type": block["type"], "text": block["text"]}))
                .collect(),
            content => content.clone(),
        };
        messages.push(json!({"role": message["role"], "content": content}));
    }
    let mut chat = json!({"messages": messages});
    if let Some(tools) = body["tools"].as_array().filter(|tools| !tools.is_empty()) {
        let tools = tools.iter().map(|tool| {
            let function = json!({
                "name": tool["name"],
                "description": tool["description"],
                "parameters": tool["input_schema"],
            });
            json!({"type": "function", "function": function})
        });
        chat["tools"] = tools.collect();
        chat["tool_choice"] = match body["tool_choice"]["type"].as_str() {
            Some("any") => json!("required"),
            Some("tool") => json!({"type": "function", "function": {"name": body["tool_choice"]["name"]}}),
            Some("none") => json!("none"),
            _ => json!("auto"),
        };
    }
    chat
}

impl MessageAnswer {
    fn stop(&self, finish: &str, stop_reason: &Value) -> (&'static str, Value) {
        match finish {
            "length" => ("max_tokens", Value::Null),
            _ if self.tool_call.is_some() => ("tool_use", Value::Null),
            _ if stop_reason.is_string() => ("stop_sequence", stop_reason.clone()),
            _ => ("end_turn", Value::Null),
        }
    }

    fn usage(&self, usage: Usage) -> Value {
        if !self.engine.options.reports_cached_tokens {
            return json!({"input_tokens": usage.prompt, "output_tokens": usage.completion});
        }
        json!({
            "input_tokens": usage.prompt - usage.cached - usage.created,
            "output_tokens": usage.completion,
            "cache_creation_input_tokens": usage.created,
            "cache_read_input_tokens": usage.cached,
        })
    }
}

fn event(kind: &str, mut members: Value) -> String {
    let mut document = json!({"type": kind});
    if let (Some(document), Some(members)) = (document.as_object_mut(), members.as_object_mut()) {
        document.append(members);
    }
    format!("event: {kind}\ndata: {document}\n\n")
}

impl AnswerShape for MessageAnswer {
    fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    fn document(&self, job: &Job, usage: Usage) -> Value {
        let answer = &job.answers[0];
        let block = match &self.tool_call {
            Some(call) => json!({
                "type": "tool_use", "id": call.id(), "name": call.name(), "input": call.arguments(),
            }),
            None => json!({"type": "text", "text": answer.text()}),
        };
        let (reason, sequence) = self.stop(answer.finish, &answer.stop_reason);
        let mut document = json!({
            "id": self.identity.id("chatcmpl-"),
            "type": "message",
            "role": "assistant",
            "content": [block],
            "model": self.identity.model,
            "stop_reason": reason,
        });
        if sequence.is_string() {
            document["stop_sequence"] = sequence;
        }
        document["usage"] = self.usage(usage);
        document
    }

    fn opening(&mut self, _: &Job, usage: Usage) -> Vec<String> {
        let message = json!({
            "id": self.identity.id("chatcmpl-"),
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.identity.model,
            "stop_reason": null,
            "stop_sequence": null,
            "usage": {"input_tokens": usage.prompt, "output_tokens": 0},
        });
        let block = match &self.tool_call {
            Some(call) => json!({"type": "tool_use", "id": call.id(), "name": call.name(), "input": {}}),
            None => json!({"type": "text", "text": ""}),
        };
        vec![
            event("message_start", json!({"message": message})),
            event("content_block_start", json!({"content_block": block, "index": 0})),
        ]
    }

    fn piece(&mut self, _: &Job, piece: &Piece<'_>) -> Vec<String> {
        let delta = match &self.tool_call {
            None => json!({"type": "text_delta", "text": piece.text()}),
            Some(call) if piece.before == 0 => {
                json!({"type": "input_json_delta", "partial_json": call.arguments().to_string()})
            }
            Some(_) => return Vec::new(),
        };
        vec![event("content_block_delta", json!({"delta": delta, "index": 0}))]
    }

    fn closing(&mut self, job: &Job, usage: Usage) -> Vec<String> {
        let answer = &job.answers[0];
        let (reason, sequence) = self.stop(answer.finish, &answer.stop_reason);
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        vec![
            event("content_block_stop", json!({"index": 0})),
            event(
                "message_delta",
                json!({"delta": delta, "usage": self.usage(usage)}),
            ),
            event("message_stop", json!({})),
        ]
    }

    fn error(&self, message: &str) -> String {
        event(
            "error",
            json!({"error": {"type": "internal_error", "message": message}}),
        )
    }

    fn has_done(&self) -> bool {
        false
    }
}
