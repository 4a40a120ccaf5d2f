//! SGLang's chats and `/generate`, in the shapes of its 0.5.23 (read, not captured).

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{
    chat::{Chat, ChatAnswer, event},
    completions,
    engine::Engine,
    generation::{Answer, Job, Usage},
    identity::Identity,
    request::{self, Delivery, Refusal, Sampling},
    stream::{AnswerShape, Piece},
};

/// Reads a chat: `input_ids` replace the rendered messages, and streams cannot have token ids.
pub(super) fn read_chat(
    engine: &Arc<Engine>,
    identity: Identity,
    rank: usize,
    body: &Value,
) -> Result<(Job, SglangChat), Refusal> {
    let delivery = Delivery::read(body);
    if delivery.stream && delivery.token_ids {
        return Err(Refusal::bad(
            "return_token_ids is not supported with streaming on /v1/chat/completions",
        ));
    }
    let tokens = request::tokens(&body["input_ids"]);
    let Chat { job, answer } = Chat::read(engine, identity, rank, body, tokens)?;
    Ok((job, SglangChat(answer)))
}

/// How SGLang answers a chat.
pub(super) struct SglangChat(ChatAnswer);

impl SglangChat {
    fn split(&self, answer: &Answer) -> (Option<String>, String) {
        let reasoning = self.0.engine.options.reasoning_tokens.min(answer.pieces.len());
        let (thought, said) = answer.pieces.split_at(reasoning);
        ((reasoning > 0).then(|| thought.concat()), said.concat())
    }

    fn logprobs(&self, tokens: &[u32]) -> Value {
        self.0.logprobs(tokens)
    }

    fn usage(&self, usage: Usage) -> Value {
        let details = self
            .0
            .engine
            .options
            .reports_cached_tokens
            .then(|| json!({"cached_tokens": usage.cached}));
        json!({
            "prompt_tokens": usage.prompt,
            "total_tokens": usage.prompt + usage.completion,
            "completion_tokens": usage.completion,
            "prompt_tokens_details": details,
            "reasoning_tokens": 0,
        })
    }

    fn chunk(&self, choices: Value, usage: Value) -> String {
        let chat = &self.0;
        let mut chunk = Map::new();
        chunk.insert("id".into(), json!(chat.identity.id("")));
        chunk.insert("object".into(), json!("chat.completion.chunk"));
        chunk.insert("created".into(), json!(chat.identity.created));
        chunk.insert("model".into(), json!(chat.identity.model));
        chunk.insert("choices".into(), choices);
        chunk.insert("usage".into(), usage);
        event(&chunk)
    }

    fn running_usage(&self, usage: Usage) -> Value {
        if self.0.delivery.continuous_usage {
            self.usage(usage)
        } else {
            Value::Null
        }
    }
}

/// What ended an answer: the stop string or token, and the end token where none of those did.
fn matched(answer: &Answer) -> Value {
    match (answer.finish, &answer.stop_reason) {
        ("stop", Value::Null) => json!(answer.tokens.last()),
        (_, reason) => reason.clone(),
    }
}

fn choice(index: usize, delta: Value, logprobs: Value, finish: Value, matched: Value) -> Value {
    json!([{
        "index": index,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": finish,
        "matched_stop": matched,
    }])
}

fn delta(role: Value, content: Value, reasoning: Value, calls: Value) -> Value {
    json!({"role": role, "content": content, "reasoning_content": reasoning, "tool_calls": calls})
}

impl AnswerShape for SglangChat {
    fn delivery(&self) -> &Delivery {
        self.0.delivery()
    }

    fn document(&self, job: &Job, usage: Usage) -> Value {
        let chat = &self.0;
        let choices: Vec<Value> = job
            .answers
            .iter()
            .enumerate()
            .map(|(index, answer)| {
                let (reasoning, content) = self.split(answer);
                let calls = chat.tool_call.as_ref().map(|call| json!([call.document()]));
                let content = if calls.is_some() {
                    Value::Null
                } else {
                    json!(content)
                };
                json!({
                    "index": index,
                    "message": {
                        "role": "assistant",
                        "content": content,
                        "reasoning_content": reasoning,
                        "tool_calls": calls,
                    },
                    "logprobs": self.logprobs(&answer.tokens),
                    "finish_reason": chat.finish(answer.finish),
                    "matched_stop": matched(answer),
                })
            })
            .collect();
        json!({
            "id": chat.identity.id(""),
            "object": "chat.completion",
            "created": chat.identity.created,
            "model": chat.identity.model,
            "choices": choices,
            "usage": self.usage(usage),
            "metadata": {"weight_version": "default"},
        })
    }

    fn opening(&mut self, job: &Job, usage: Usage) -> Vec<String> {
        let opening = |index| {
            let delta = delta(json!("assistant"), json!(""), Value::Null, Value::Null);
            let choice = choice(index, delta, Value::Null, Value::Null, Value::Null);
            self.chunk(choice, self.running_usage(usage))
        };
        (0..job.answers.len()).map(opening).collect()
    }

    fn piece(&mut self, job: &Job, piece: &Piece<'_>) -> Vec<String> {
        let null = Value::Null;
        let reasoning = self.0.engine.options.reasoning_tokens;
        let delta = match &self.0.tool_call {
            Some(call) => {
                let own = call.delta(piece.before, piece.tokens.len());
                delta(
                    null.clone(),
                    null.clone(),
                    null.clone(),
                    own["tool_calls"].clone(),
                )
            }
            None if piece.before < reasoning => {
                let split = (reasoning - piece.before).min(piece.pieces.len());
                let (thought, said) = piece.pieces.split_at(split);
                let said = (!said.is_empty()).then(|| said.concat());
                delta(null.clone(), json!(said), json!(thought.concat()), null.clone())
            }
            None => delta(null.clone(), json!(piece.text()), null.clone(), null.clone()),
        };
        let logprobs = self.logprobs(piece.tokens);
        let usage = self.running_usage(piece.usage);
        let mut events = vec![self.chunk(
            choice(piece.index, delta, logprobs, null.clone(), null.clone()),
            usage,
        )];
        if let Some((finish, _)) = piece.finish {
            // The finish reason comes in an event of its own.
            let empty = json!({"role": null, "content": null, "reasoning_content": null, "tool_calls": null});
            let finish = json!(self.0.finish(finish));
            let matched = matched(&job.answers[piece.index]);
            events.push(self.chunk(choice(piece.index, empty, null, finish, matched), Value::Null));
        }
        events
    }

    fn closing(&mut self, _: &Job, usage: Usage) -> Vec<String> {
        if !self.0.delivery.include_usage {
            return Vec::new();
        }
        vec![self.chunk(json!([]), self.usage(usage))]
    }

    fn error(&self, message: &str) -> String {
        let error = json!({
            "object": "error", "message": message, "type": "InternalServerError", "param": null, "code": 500,
        });
        format!("data: {}\n\n", json!({"error": error}))
    }
}

/// How `/generate` is answered: texts and ids are cumulative.
pub(super) struct NativeAnswer {
    identity: Identity,
    pub(super) delivery: Delivery,
    text: String,
    tokens: Vec<u32>,
}

/// Reads a native generation: `text` or `input_ids`, with `sampling_params`.
pub(super) fn read_native(
    engine: &Arc<Engine>,
    identity: Identity,
    rank: usize,
    body: &Value,
) -> Result<(Job, NativeAnswer), Refusal> {
    let prompt = match (&body["input_ids"], &body["text"]) {
        (Value::Null, Value::Null) => {
            return Err(Refusal::bad(
                "Either text, input_ids or input_embeds should be provided.",
            ));
        }
        (Value::Null, text) => text,
        (ids, _) => ids,
    };
    let prompts = completions::prompts(engine, prompt, body)?;
    let mut members = json!({"cache_salt": body["cache_salt"]});
    if let (Some(members), Some(sampling)) = (members.as_object_mut(), body["sampling_params"].as_object()) {
        members.extend(sampling.clone());
    }
    let context = engine.options.context_length as usize;
    let sampling = Sampling::read(&members, &["max_new_tokens"], Some(128), context)?;
    let adapter = body["lora_path"].as_str().map(String::from);
    let job = Job::new(engine, rank, adapter, prompts, &sampling, None)?;
    let answer = NativeAnswer {
        identity,
        delivery: Delivery::read(body),
        text: String::new(),
        tokens: Vec::new(),
    };
    Ok((job, answer))
}

impl NativeAnswer {
    fn state(&self, text: &str, tokens: &[u32], usage: Usage, finish: Value) -> Value {
        json!({
            "text": text,
            "output_ids": tokens,
            "meta_info": {
                "id": self.identity.id(""),
                "finish_reason": finish,
                "prompt_tokens": usage.prompt,
                "weight_version": "default",
                "completion_tokens": usage.completion,
                "cached_tokens": usage.cached,
            },
        })
    }
}

fn finish(finish: &str, answer: &Answer) -> Value {
    match finish {
        "length" => json!({"type": "length", "length": answer.tokens.len()}),
        _ => json!({"type": "stop", "matched": matched(answer)}),
    }
}

impl AnswerShape for NativeAnswer {
    fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    fn document(&self, job: &Job, usage: Usage) -> Value {
        let answer = &job.answers[0];
        self.state(
            &answer.text(),
            &answer.tokens,
            usage,
            finish(answer.finish, answer),
        )
    }

    fn opening(&mut self, _: &Job, _: Usage) -> Vec<String> {
        Vec::new()
    }

    fn piece(&mut self, job: &Job, piece: &Piece<'_>) -> Vec<String> {
        self.text.push_str(&piece.text());
        self.tokens.extend_from_slice(piece.tokens);
        let finish = piece.finish.map_or(Value::Null, |(reason, _)| {
            finish(reason, &job.answers[piece.index])
        });
        let state = self.state(&self.text, &self.tokens, piece.usage, finish);
        vec![format!("data: {state}\n\n")]
    }

    fn closing(&mut self, _: &Job, _: Usage) -> Vec<String> {
        Vec::new()
    }

    fn error(&self, message: &str) -> String {
        let error =
            json!({"message": message, "type": "InternalServerError", "code": 500, "retryable": true});
        format!("data: {}\n\n", json!({"error": error}))
    }
}
