//! Asks an engine for its tokens of a few prompts, and compares them with the router's.
//!
//! vLLM and SGLang answer `/tokenize` within milliseconds and without the model, so a tokenizer or chat template that is
//! not the engine's shows before the first request. A beginning-of-sequence token that only one side adds before a plain
//! prompt is mended in the artifacts: engines follow their version of `transformers` there, and not the model's files.

use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use signalbox_tokenize::{ArtifactError, ChatPrompt, ModelArtifacts, ModelText};

use super::{engine::TokenFacts, parity::first_difference, upstream::Upstream};

/// Text with what tokenizers treat differently: spaces, digits, accents, a symbol outside of the basic plane.
const SAMPLE: &str = "Why is the sky blue?  It is 1024 km high, très haut \u{1f600}.\n";

/// A model's tokenizer as its engine uses it, and what is known about its tokens.
#[derive(Debug)]
pub struct CheckedTokenizer {
    /// The artifacts for routers.
    pub artifacts: ModelArtifacts,
    /// The artifacts, loaded.
    pub text: ModelText,
    /// What the comparison showed.
    pub facts: TokenFacts,
}

impl CheckedTokenizer {
    /// Loads `artifacts` and compares the tokens of a plain prompt and of a chat. An engine that does not answer shows
    /// nothing. `model` is the engine's own name of the model.
    ///
    /// # Errors
    /// The artifacts cannot be loaded.
    pub async fn check(
        upstream: &Upstream,
        model: &str,
        artifacts: ModelArtifacts,
    ) -> Result<Self, ArtifactError> {
        let mut checked = Self {
            text: ModelText::load(&artifacts)?,
            artifacts,
            facts: TokenFacts::default(),
        };
        checked.compare_prompt(upstream, model).await?;
        checked.compare_chat(upstream, model).await;
        Ok(checked)
    }

    async fn compare_prompt(&mut self, upstream: &Upstream, model: &str) -> Result<(), ArtifactError> {
        let request = json!({"model": model, "prompt": SAMPLE});
        let Some(engine) = tokenize(upstream, &request).await else {
            return Ok(());
        };
        let Ok(own) = self.text.encode_prompt(SAMPLE) else {
            return Ok(());
        };
        let bos = self.artifacts.special_tokens().bos.as_ref().map(|token| token.id);
        if let Some(add_bos) = bos.and_then(|bos| other_bos(&own, &engine, bos)) {
            tracing::info!(
                add_bos,
                "the engine treats the beginning of a prompt in its own way; following it"
            );
            self.artifacts = self.artifacts.clone().with_add_bos(add_bos);
            self.text = ModelText::load(&self.artifacts)?;
            return Ok(());
        }
        self.facts.first_difference = first_difference(&own, &engine);
        Ok(())
    }

    async fn compare_chat(&mut self, upstream: &Upstream, model: &str) {
        for messages in chats() {
            let request = json!({"model": model, "messages": messages});
            // Some templates refuse a system message, at the engine and here.
            let Some(engine) = tokenize(upstream, &request).await else {
                continue;
            };
            match self.text.encode_chat(&ChatPrompt::new(&messages)) {
                Ok(own) => {
                    let difference = first_difference(&own, &engine);
                    self.facts.chat_is_equal = difference.is_none();
                    // A chat's is named first: most requests are chats.
                    if difference.is_some() {
                        self.facts.first_difference = difference;
                    }
                }
                Err(error) => {
                    self.facts.no_chats = Some(format!(
                        "the engine renders chats and this worker cannot: {error}; chats are routed without their KV \
                         blocks"
                    ));
                }
            }
            return;
        }
    }
}

/// Whether the engine adds `bos` before a prompt, if that is all in which its tokens differ from `own`.
fn other_bos(own: &[u32], engine: &[u32], bos: u32) -> Option<bool> {
    if engine.split_first() == Some((&bos, own)) {
        Some(true)
    } else if own.split_first() == Some((&bos, engine)) {
        Some(false)
    } else {
        None
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_that_only_one_side_adds_is_recognised() {
        for (own, engine, expected) in [
            (&[5, 6][..], &[1, 5, 6][..], Some(true)),
            (&[1, 5, 6], &[5, 6], Some(false)),
            (&[5, 6], &[5, 6], None),
            (&[5, 6], &[2, 5, 6], None),
            (&[5, 6], &[1, 5, 7], None),
            (&[], &[1], Some(true)),
        ] {
            assert_eq!(other_bos(own, engine, 1), expected, "{own:?} {engine:?}");
        }
    }
}
