//! `/v1/chat/completions` of vLLM.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{
    engine::Engine,
    generation::{Answer, Job, Usage},
    identity::Identity,
    logprobs,
    request::{self, Delivery, Refusal, Sampling},
    stream::{AnswerShape, Piece},
    tools::ToolCall,
};

/// A chat, ready to run.
pub(super) struct Chat {
    pub(super) job: Job,
    pub(super) answer: ChatAnswer,
}

/// How a chat is answered.
pub(super) struct ChatAnswer {
    pub(super) engine: Arc<Engine>,
    pub(super) identity: Identity,
    pub(super) delivery: Delivery,
    pub(super) sampling: Sampling,
    pub(super) tool_call: Option<ToolCall>,
}

impl Chat {
    /// Reads a chat. `tokens` replaces the rendered messages (SGLang's `input_ids`).
    pub(super) fn read(
        engine: &Arc<Engine>,
        identity: Identity,
        rank: usize,
        body: &Value,
        tokens: Option<Vec<u32>>,
    ) -> Result<Self, Refusal> {
        let messages = request::required(body, "messages")?;
        let adapter = engine.check_model(body)?;
        let sampling = Sampling::read(
            body,
            &["max_completion_tokens", "max_tokens"],
            None,
            engine.options.context_length as usize,
        )?;
        let tool_call = ToolCall::of(body, engine.options.tool_parser)?;
        let forced = match &tool_call {
            Some(call) => Some(call.generated()),
            None => structured(&body["response_format"])?,
        };
        let prompt = match tokens {
            Some(tokens) => tokens,
            None => encode(engine, messages, body)?,
        };
        let job = Job::new(engine, rank, adapter, vec![prompt], &sampling, forced.as_deref())?;
        let answer = ChatAnswer {
            engine: engine.clone(),
            identity,
            delivery: Delivery::read(body),
            sampling,
            tool_call,
        };
        Ok(Self { job, answer })
    }
}

/// The tokens of a chat's messages, rendered with what the request has for the template.
pub(super) fn encode(engine: &Engine, messages: &Value, body: &Value) -> Result<Vec<u32>, Refusal> {
    let list = messages.as_array().map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() {
        return Err(Refusal::bad(
            "Cannot apply chat template to an empty conversation. Provide at least one message.",
        ));
    }
    let parts = list
        .iter()
        .filter_map(|message| message["content"].as_array())
        .flatten();
    for part in parts {
        if part["type"] != "text" {
            return Err(Refusal::bad(format!(
                "{} is not a multimodal model",
                engine.options.model
            )));
        }
    }
    let mut chat = body.as_object().cloned().unwrap_or_default();
    chat.insert("messages".into(), messages.clone());
    let tokens = engine.text.encode_chat(&chat);
    tokens.map_err(|error| Refusal::bad(format!("{error:#}")))
}

/// The text that `response_format` forces: a small document, for a check that the member arrived.
fn structured(format: &Value) -> Result<Option<String>, Refusal> {
    match format["type"].as_str() {
        Some("json_object") => Ok(Some(r#"{"answer": 42}"#.into())),
        Some("json_schema") => {
            let schema = &format["json_schema"]["schema"];
            let kind = schema["type"].as_str().unwrap_or("object");
            if ![
                "object", "array", "string", "number", "integer", "boolean", "null",
            ]
            .contains(&kind)
            {
                return Err(Refusal::bad(format!("Grammar error: Invalid type: {kind}")));
            }
            Ok(Some(super::tools::instance(schema).to_string()))
        }
        _ => Ok(None),
    }
}

impl ChatAnswer {
    fn message(&self, answer: &Answer) -> Value {
        let (reasoning, content) = self.split(answer);
        let mut message = json!({
            "role": "assistant",
            "content": content,
            "refusal": null,
            "annotations": null,
            "audio": null,
            "function_call": null,
        });
        if let Some(call) = &self.tool_call {
            message["content"] = json!("");
            message["tool_calls"] = json!([call.document()]);
        }
        message["reasoning"] = json!(reasoning);
        message
    }

    /// The reasoning and the rest.
    fn split(&self, answer: &Answer) -> (Option<String>, String) {
        let reasoning = self.engine.options.reasoning_tokens.min(answer.pieces.len());
        if reasoning == 0 {
            return (None, answer.text());
        }
        let (reasoning, content) = answer.pieces.split_at(reasoning);
        (Some(reasoning.concat()), content.concat())
    }

    pub(super) fn finish(&self, finish: &'static str) -> &'static str {
        let is_whole = self
            .tool_call
            .as_ref()
            .is_some_and(ToolCall::ends_with_tool_calls);
        if is_whole && finish == "stop" {
            "tool_calls"
        } else {
            finish
        }
    }

    pub(super) fn logprobs(&self, tokens: &[u32]) -> Value {
        match self.sampling.logprobs {
            Some(alternatives) if !tokens.is_empty() => {
                logprobs::chat(&self.engine.text, tokens, alternatives)
            }
            _ => Value::Null,
        }
    }

    fn chunk(&self, choices: Value, usage: Option<Value>) -> Map<String, Value> {
        let mut chunk = Map::new();
        chunk.insert("id".into(), json!(self.identity.id("chatcmpl-")));
        chunk.insert("object".into(), json!("chat.completion.chunk"));
        chunk.insert("created".into(), json!(self.identity.created));
        chunk.insert("model".into(), json!(self.identity.model));
        chunk.insert("choices".into(), choices);
        if let Some(usage) = usage {
            chunk.insert("usage".into(), usage);
        }
        chunk
    }

    fn running_usage(&self, usage: Usage) -> Option<Value> {
        self.delivery.continuous_usage.then(|| usage.running())
    }

    fn delta(&self, piece: &Piece<'_>) -> Value {
        if let Some(call) = &self.tool_call {
            return call.delta(piece.before, piece.tokens.len());
        }
        let reasoning = self.engine.options.reasoning_tokens;
        if piece.before < reasoning {
            let split = (reasoning - piece.before).min(piece.pieces.len());
            let (thought, said) = piece.pieces.split_at(split);
            let mut delta = json!({"reasoning": thought.concat()});
            if !said.is_empty() {
                delta["content"] = json!(said.concat());
            }
            return delta;
        }
        let text = piece.text();
        if text.is_empty() && piece.finish.is_none() {
            return json!({});
        }
        json!({"content": text})
    }
}

impl AnswerShape for ChatAnswer {
    fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    fn document(&self, job: &Job, usage: Usage) -> Value {
        let token_ids = |tokens: &[u32]| self.delivery.token_ids.then(|| tokens.to_vec());
        let choices: Vec<Value> = job
            .answers
            .iter()
            .enumerate()
            .map(|(index, answer)| {
                json!({
                    "index": index,
                    "message": self.message(answer),
                    "logprobs": self.logprobs(&answer.tokens),
                    "finish_reason": self.finish(answer.finish),
                    "stop_reason": answer.stop_reason,
                    "token_ids": token_ids(&answer.tokens),
                    "routed_experts": null,
                })
            })
            .collect();
        json!({
            "id": self.identity.id("chatcmpl-"),
            "object": "chat.completion",
            "created": self.identity.created,
            "model": self.identity.model,
            "choices": choices,
            "service_tier": null,
            "system_fingerprint": self.engine.fingerprint(),
            "usage": usage.document(self.engine.options.reports_cached_tokens, true),
            "prompt_logprobs": null,
            "prompt_token_ids": token_ids(&job.prompts[0]),
            "prompt_text": null,
            "kv_transfer_params": null,
            "ec_transfer_params": null,
            "metrics": null,
        })
    }

    fn opening(&mut self, job: &Job, usage: Usage) -> Vec<String> {
        let opening = |index: usize| {
            let choice = json!({
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": null,
                "finish_reason": null,
            });
            let mut chunk = self.chunk(json!([choice]), self.running_usage(usage));
            let prompt = self.delivery.token_ids.then(|| &job.prompts[0]);
            chunk.insert("prompt_token_ids".into(), json!(prompt));
            chunk.insert("prompt_text".into(), Value::Null);
            event(&chunk)
        };
        (0..job.answers.len()).map(opening).collect()
    }

    fn piece(&mut self, _: &Job, piece: &Piece<'_>) -> Vec<String> {
        let delta = self.delta(piece);
        if delta.as_object().is_some_and(Map::is_empty) && piece.finish.is_none() && !self.delivery.token_ids
        {
            return Vec::new();
        }
        let mut choice = json!({
            "index": piece.index,
            "delta": delta,
            "logprobs": self.logprobs(piece.tokens),
            "finish_reason": piece.finish.map(|(finish, _)| self.finish(finish)),
        });
        if let Some((_, stop_reason)) = piece.finish {
            choice["stop_reason"] = stop_reason.clone();
        }
        choice["token_ids"] = json!(self.delivery.token_ids.then_some(piece.tokens));
        let mut chunk = self.chunk(json!([choice]), self.running_usage(piece.usage));
        if piece.finish.is_some() && !self.delivery.include_usage {
            chunk.insert("system_fingerprint".into(), json!(self.engine.fingerprint()));
        }
        vec![event(&chunk)]
    }

    fn closing(&mut self, _: &Job, usage: Usage) -> Vec<String> {
        if !self.delivery.include_usage {
            return Vec::new();
        }
        let reports = self.engine.options.reports_cached_tokens;
        let mut chunk = self.chunk(json!([]), Some(usage.last(reports, true)));
        chunk.insert("system_fingerprint".into(), json!(self.engine.fingerprint()));
        vec![event(&chunk)]
    }

    fn error(&self, message: &str) -> String {
        stream_error(message)
    }
}

/// The event of a document.
pub(super) fn event(document: &Map<String, Value>) -> String {
    format!("data: {}\n\n", Value::Object(document.clone()))
}

/// The event of an error. vLLM writes it with Python's `json.dumps`, which puts spaces behind colons and commas.
pub(super) fn stream_error(message: &str) -> String {
    let message = Value::from(message);
    format!(
        "data: {{\"error\": {{\"message\": {message}, \"type\": \"InternalServerError\", \"param\": null, \"code\": 500}}}}\n\n"
    )
}
