//! The routes whose answers are no text: embeddings, scores, tokens. What they compute is made up from the tokens.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    chat, completions,
    engine::Engine,
    identity::Identity,
    request::{self, Refusal},
    text::Text,
};

/// Numbers in each embedding.
const DIMENSIONS: u64 = 8;

/// `/v1/embeddings`
pub(super) fn embeddings(engine: &Engine, identity: &Identity, body: &Value) -> Result<Value, Refusal> {
    let input = request::required(body, "input")?;
    engine.check_model(body)?;
    let prompts = completions::prompts(engine, input, body)?;
    let data: Vec<Value> = prompts
        .iter()
        .enumerate()
        .map(|(index, prompt)| {
            let seed = Text::fingerprint(prompt);
            let number = |at: u64| f64::from((seed.rotate_left(at as u32 * 8) & 0xff) as u32) / 128.0 - 1.0;
            let embedding: Vec<f64> = (0..DIMENSIONS).map(number).collect();
            json!({"index": index, "object": "embedding", "embedding": embedding})
        })
        .collect();
    Ok(json!({
        "id": identity.id("embd-"),
        "object": "list",
        "created": identity.created,
        "model": identity.model,
        "data": data,
        "usage": usage(&prompts),
    }))
}

/// `/v1/score`
pub(super) fn score(engine: &Engine, identity: &Identity, body: &Value) -> Result<Value, Refusal> {
    engine.check_model(body)?;
    let queries = either(body, "queries", "text_1")?;
    let documents = either(body, "documents", "text_2")?;
    let pairs = pairs(engine, queries, documents)?;
    let data: Vec<Value> = pairs
        .iter()
        .enumerate()
        .map(|(index, pair)| json!({"index": index, "object": "score", "score": share(pair)}))
        .collect();
    Ok(json!({
        "id": identity.id("score-"),
        "object": "list",
        "created": identity.created,
        "model": identity.model,
        "data": data,
        "usage": usage(&pairs),
    }))
}

/// `/v1/rerank`
pub(super) fn rerank(engine: &Engine, identity: &Identity, body: &Value) -> Result<Value, Refusal> {
    engine.check_model(body)?;
    let query = request::required(body, "query")?;
    let documents = request::required(body, "documents")?;
    let pairs = pairs(engine, query, documents)?;
    let texts = request::strings(documents);
    let mut results: Vec<(f64, Value)> = pairs
        .iter()
        .zip(texts)
        .enumerate()
        .map(|(index, (pair, text))| {
            let score = share(pair);
            let document = json!({"text": text, "multi_modal": null});
            (
                score,
                json!({"index": index, "document": document, "relevance_score": score}),
            )
        })
        .collect();
    results.sort_by(|one, other| other.0.total_cmp(&one.0));
    let most = body["top_n"]
        .as_u64()
        .filter(|most| *most > 0)
        .unwrap_or(u64::MAX);
    let results: Vec<Value> = results
        .into_iter()
        .map(|(_, result)| result)
        .take(most as usize)
        .collect();
    let tokens: usize = pairs.iter().map(Vec::len).sum();
    Ok(json!({
        "id": identity.id("rerank-"),
        "model": identity.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": results,
    }))
}

/// `/tokenize`
pub(super) fn tokenize(engine: &Arc<Engine>, body: &Value) -> Result<Value, Refusal> {
    engine.check_model(body)?;
    let tokens = match body.get("messages") {
        Some(messages) => chat::encode(engine, messages, body)?,
        None => {
            let prompt = request::required(body, "prompt")?;
            let mut prompts = completions::prompts(engine, prompt, body)?;
            prompts.swap_remove(0)
        }
    };
    let names = body["return_token_strs"].as_bool().unwrap_or(false).then(|| {
        let names = tokens.iter().map(|token| engine.text.name(*token));
        names.collect::<Vec<_>>()
    });
    Ok(json!({
        "count": tokens.len(),
        "max_model_len": engine.options.context_length,
        "tokens": tokens,
        "token_strs": names,
    }))
}

/// `/detokenize`
pub(super) fn detokenize(engine: &Engine, body: &Value) -> Result<Value, Refusal> {
    engine.check_model(body)?;
    let tokens = request::tokens(request::required(body, "tokens")?).unwrap_or_default();
    let text = engine.text.decode(&tokens);
    let text = text.map_err(|error| Refusal::bad(format!("{error:#}")))?;
    Ok(json!({"prompt": text}))
}

fn either<'a>(body: &'a Value, one: &str, other: &str) -> Result<&'a Value, Refusal> {
    match body.get(one) {
        Some(value) => Ok(value),
        None => request::required(body, other),
    }
}

/// Each query with its document, or the one query with each document.
fn pairs(engine: &Engine, queries: &Value, documents: &Value) -> Result<Vec<Vec<u32>>, Refusal> {
    let queries = completions::prompts(engine, queries, &Value::Null)?;
    let documents = completions::prompts(engine, documents, &Value::Null)?;
    let pair = |(index, document): (usize, Vec<u32>)| {
        let query = &queries[index % queries.len()];
        [query.as_slice(), &document].concat()
    };
    Ok(documents.into_iter().enumerate().map(pair).collect())
}

/// A number from 0 to 1.
fn share(tokens: &[u32]) -> f64 {
    f64::from((Text::fingerprint(tokens) >> 40) as u32) / f64::from(1 << 24)
}

fn usage(prompts: &[Vec<u32>]) -> Value {
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    json!({
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": null,
        "completion_tokens_details": null,
    })
}
