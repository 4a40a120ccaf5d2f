//! `/v1/completions` of vLLM, and of SGLang, which has the same members.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::{
    chat::{event, stream_error},
    engine::Engine,
    generation::{Job, Usage},
    identity::Identity,
    logprobs,
    request::{self, Delivery, Refusal, Sampling},
    stream::{AnswerShape, Piece},
};

/// What vLLM generates where the request does not say how much.
const DEFAULT_MAX_TOKENS: usize = 16;

/// How a completion is answered.
pub(super) struct CompletionAnswer {
    engine: Arc<Engine>,
    identity: Identity,
    pub(super) delivery: Delivery,
    sampling: Sampling,
    /// The characters of each answer that were sent.
    offsets: Vec<usize>,
}

/// Reads a completion.
pub(super) fn read(
    engine: &Arc<Engine>,
    identity: Identity,
    rank: usize,
    body: &Value,
) -> Result<(Job, CompletionAnswer), Refusal> {
    let prompt = request::required(body, "prompt")?;
    let adapter = engine.check_model(body)?;
    let sampling = Sampling::read(
        body,
        &["max_tokens"],
        Some(DEFAULT_MAX_TOKENS),
        engine.options.context_length as usize,
    )?;
    let prompts = prompts(engine, prompt, body)?;
    // Unlike a chat, a completion without `max_tokens` may be shorter than its default near the end of the context.
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let room = (engine.options.context_length as usize).saturating_sub(longest);
    let sampling = Sampling {
        most: if body["max_tokens"].is_u64() {
            sampling.most
        } else {
            sampling.most.map(|most| most.min(room.max(1)))
        },
        ..sampling
    };
    let job = Job::new(engine, rank, adapter, prompts, &sampling, None)?;
    let answer = CompletionAnswer {
        engine: engine.clone(),
        identity,
        delivery: Delivery::read(body),
        sampling,
        offsets: vec![0; job.answers.len()],
    };
    Ok((job, answer))
}

/// The tokens of each prompt: of a string, a list of strings, a list of token ids, or a list of those.
pub(super) fn prompts(engine: &Engine, prompt: &Value, body: &Value) -> Result<Vec<Vec<u32>>, Refusal> {
    let special = body["add_special_tokens"].as_bool().unwrap_or(true);
    let encode = |text: &str| {
        let encoded = engine.text.encode(text, special);
        encoded.map_err(|error| Refusal::bad(format!("{error:#}")))
    };
    let check = |tokens: Vec<u32>| {
        let vocabulary = engine.text.vocabulary();
        match tokens.iter().find(|token| **token >= vocabulary) {
            Some(token) => Err(Refusal::bad(format!("Token id {token} is out of vocabulary"))),
            None => Ok(tokens),
        }
    };
    let prompts: Vec<Vec<u32>> = match prompt {
        Value::String(text) => vec![encode(text)?],
        Value::Array(items) if items.first().is_some_and(Value::is_number) => {
            vec![check(request::tokens(prompt).ok_or_else(malformed)?)?]
        }
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => encode(text),
                item => check(request::tokens(item).ok_or_else(malformed)?),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(malformed()),
    };
    if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
        return Err(Refusal::bad("You must pass at least one prompt"));
    }
    Ok(prompts)
}

fn malformed() -> Refusal {
    Refusal::invalid(
        Some("body.prompt"),
        "{'type': 'string_type', 'loc': 'body.prompt', 'msg': 'Input should be a valid string'}",
    )
}

impl CompletionAnswer {
    fn logprobs(&self, tokens: &[u32], pieces: &[String], offset: usize) -> Value {
        match self.sampling.logprobs {
            Some(count) => logprobs::completion(&self.engine.text, tokens, pieces, offset, count),
            None => Value::Null,
        }
    }

    fn chunk(&self, choices: Value) -> Map<String, Value> {
        let mut chunk = Map::new();
        chunk.insert("id".into(), json!(self.identity.id("cmpl-")));
        chunk.insert("object".into(), json!("text_completion"));
        chunk.insert("created".into(), json!(self.identity.created));
        chunk.insert("model".into(), json!(self.identity.model));
        chunk.insert("choices".into(), choices);
        chunk
    }
}

impl AnswerShape for CompletionAnswer {
    fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    fn document(&self, job: &Job, usage: Usage) -> Value {
        let ids = self.delivery.token_ids;
        let choices: Vec<Value> = job
            .answers
            .iter()
            .enumerate()
            .map(|(index, answer)| {
                json!({
                    "index": index,
                    "text": answer.text(),
                    "logprobs": self.logprobs(&answer.tokens, &answer.pieces, 0),
                    "finish_reason": answer.finish,
                    "stop_reason": answer.stop_reason,
                    "token_ids": ids.then_some(&answer.tokens),
                    "prompt_logprobs": null,
                    "prompt_token_ids": ids.then(|| &job.prompts[answer.prompt]),
                    "routed_experts": null,
                })
            })
            .collect();
        json!({
            "id": self.identity.id("cmpl-"),
            "object": "text_completion",
            "created": self.identity.created,
            "model": self.identity.model,
            "choices": choices,
            "service_tier": null,
            "system_fingerprint": self.engine.fingerprint(),
            "usage": usage.document(self.engine.options.reports_cached_tokens, false),
            "kv_transfer_params": null,
            "ec_transfer_params": null,
            "metrics": null,
        })
    }

    fn opening(&mut self, _: &Job, _: Usage) -> Vec<String> {
        Vec::new()
    }

    fn piece(&mut self, job: &Job, piece: &Piece<'_>) -> Vec<String> {
        let ids = self.delivery.token_ids;
        let offset = self.offsets[piece.index];
        self.offsets[piece.index] += piece.text().chars().count();
        let prompt = &job.prompts[job.answers[piece.index].prompt];
        let choice = json!({
            "index": piece.index,
            "text": piece.text(),
            "logprobs": self.logprobs(piece.tokens, piece.pieces, offset),
            "finish_reason": piece.finish.map(|(finish, _)| finish),
            "stop_reason": piece.finish.map(|(_, reason)| reason),
            "prompt_token_ids": (ids && piece.before == 0).then_some(prompt),
            "token_ids": ids.then_some(piece.tokens),
        });
        let mut chunk = self.chunk(json!([choice]));
        if self.delivery.continuous_usage {
            chunk.insert("usage".into(), piece.usage.running());
        }
        if piece.finish.is_some() && !self.delivery.include_usage {
            chunk.insert("system_fingerprint".into(), json!(self.engine.fingerprint()));
        }
        vec![event(&chunk)]
    }

    fn closing(&mut self, _: &Job, usage: Usage) -> Vec<String> {
        if !self.delivery.include_usage {
            return Vec::new();
        }
        let mut chunk = self.chunk(json!([]));
        let reports = self.engine.options.reports_cached_tokens;
        chunk.insert("usage".into(), usage.last(reports, false));
        chunk.insert("system_fingerprint".into(), json!(self.engine.fingerprint()));
        vec![event(&chunk)]
    }

    fn error(&self, message: &str) -> String {
        stream_error(message)
    }
}
