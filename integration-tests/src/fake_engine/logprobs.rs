//! Log probabilities: made up, and in the shape of real ones.

use serde_json::{Value, json};

use super::text::Text;

/// The log probability of the `rank`th likeliest alternative.
fn logprob(token: u32, rank: usize) -> f64 {
    -(f64::from(token % 16) / 16.0 + 0.0625) - rank as f64
}

/// The token itself and its alternatives, likeliest first.
fn alternatives(text: &Text, token: u32, count: usize) -> impl Iterator<Item = (u32, f64)> {
    let vocabulary = text.vocabulary();
    (0..count).map(move |rank| ((token + rank as u32) % vocabulary, logprob(token, rank)))
}

fn entry(text: &Text, token: u32, logprob: f64) -> Value {
    let bytes = text.bytes(token);
    json!({"token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes})
}

/// A chat's: `{"content": [{token, logprob, bytes, top_logprobs}]}`.
pub(super) fn chat(text: &Text, tokens: &[u32], count: usize) -> Value {
    let content = tokens.iter().map(|token| {
        let mut document = entry(text, *token, logprob(*token, 0));
        let top: Vec<Value> = alternatives(text, *token, count)
            .map(|(token, logprob)| entry(text, token, logprob))
            .collect();
        document["top_logprobs"] = json!(top);
        document
    });
    json!({"content": content.collect::<Vec<_>>()})
}

/// A completion's: columns. `offset` is where the text of the first token begins.
pub(super) fn completion(
    text: &Text,
    tokens: &[u32],
    pieces: &[String],
    offset: usize,
    count: usize,
) -> Value {
    let mut at = offset;
    let mut offsets = Vec::new();
    for piece in pieces {
        offsets.push(at);
        at += piece.chars().count();
    }
    let top = tokens.iter().map(|token| {
        let alternatives = alternatives(text, *token, count.max(1));
        let members = alternatives.map(|(token, logprob)| (text.piece(token), json!(logprob)));
        Value::Object(members.collect())
    });
    json!({
        "text_offset": offsets,
        "token_logprobs": tokens.iter().map(|token| logprob(*token, 0)).collect::<Vec<_>>(),
        "tokens": pieces,
        "top_logprobs": top.collect::<Vec<_>>(),
    })
}
