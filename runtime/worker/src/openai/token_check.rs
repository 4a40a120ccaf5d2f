//! Asks an engine for its tokens of a few prompts, and compares them with the router's.
//!
//! vLLM and SGLang answer `/tokenize` within milliseconds and without the model, so a tokenizer or chat template that is
//! not the engine's shows before the first request.

use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use signalbox_tokenize::{ChatPrompt, ModelText};

use super::{engine::TokenFacts, parity::first_difference, upstream::Upstream};

/// Text with what tokenizers treat differently: spaces, digits, accents, a symbol outside of the basic plane.
const SAMPLE: &str = "Why is the sky blue?  It is 1024 km high, très haut \u{1f600}.\n";

/// Compares the tokens of a chat and of a plain prompt. An engine that does not answer shows nothing.
pub async fn check_tokens(upstream: &Upstream, model: &str, text: &ModelText) -> TokenFacts {
    let mut facts = TokenFacts::default();
    let prompt = json!({"model": model, "prompt": SAMPLE});
    if let (Some(engine), Ok(own)) = (tokenize(upstream, &prompt).await, text.encode_prompt(SAMPLE)) {
        facts.first_difference = first_difference(&own, &engine);
        facts.adds_bos = bos_difference(&own, &engine, text);
    }
    for messages in chats() {
        let chat = json!({"model": model, "messages": messages});
        // Some templates refuse a system message, at the engine and here.
        let own = text.encode_chat(&ChatPrompt::new(&messages));
        let (Some(engine), Ok(own)) = (tokenize(upstream, &chat).await, own) else {
            continue;
        };
        let difference = first_difference(&own, &engine);
        facts.chat_is_equal = difference.is_none();
        // A chat's is named first: most requests are chats.
        facts.first_difference = difference.or(facts.first_difference);
        break;
    }
    facts
}

/// Whether the engine puts the beginning-of-sequence token before a prompt, if that is all that differs. It depends on
/// the engine's release of transformers, and not on the model's files alone.
fn bos_difference(own: &[u32], engine: &[u32], text: &ModelText) -> Option<bool> {
    let bos = text.special_tokens().bos.as_ref()?.id;
    if engine.strip_prefix(&[bos]) == Some(own) {
        return Some(true);
    }
    (own.strip_prefix(&[bos]) == Some(engine)).then_some(false)
}

fn chats() -> [Value; 2] {
    let user = json!({"role": "user", "content": SAMPLE});
    let assistant = json!({"role": "assistant", "content": "Because of Rayleigh scattering."});
    let system = json!({"role": "system", "content": "You are a helpful assistant."});
    [
        json!([system, user, assistant, user]),
        json!([user, assistant, user]),
    ]
}

async fn tokenize(upstream: &Upstream, request: &Value) -> Option<Vec<u32>> {
    #[derive(Deserialize)]
    struct Answer {
        tokens: Vec<u32>,
    }
    let request = Bytes::from(request.to_string());
    let answer = upstream.ask(Method::POST, "/tokenize", request).await.ok()?;
    if answer.status != StatusCode::OK {
        return None;
    }
    serde_json::from_slice(&answer.body)
        .map(|answer: Answer| answer.tokens)
        .ok()
}
