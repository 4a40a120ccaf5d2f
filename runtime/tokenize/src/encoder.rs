//! Text to tokens, with the fastest tokenizer that gives exactly the reference's tokens.
//!
//! The reference is Hugging Face's `tokenizers`, for which every model's tokenizer is made. `fastokens` is several
//! times faster for the kinds of byte-pair encoding it supports. Nobody would notice a wrong token, so `fastokens` is
//! used only for a definition with which it gives the reference's tokens for every text of [`corpus`]. The reference
//! encodes everything else. The check takes longer than loading the reference, so it runs on a thread of its own, and
//! the reference encodes until the check is done.
//!
//! Each request of a chat repeats the earlier turns. No merge crosses an added token, so the tokens between two added
//! tokens depend only on the text between them. The fast tokenizer caches these segments: a turn encoded before is a
//! look-up. The reference has no such cache. It is left with rare kinds, whose tokens may depend on the position of a
//! turn in the text.
//!
//! `fastokens` has two more costs. Each thread that encodes has its own table of words, about 20 MiB and at most 100,
//! which the thread's first prompt fills in a few milliseconds. A text of 64 KiB or more between two added tokens is
//! split over a thread pool of one thread per core, at most 32. The first such text starts the pool, which sleeps when
//! idle.

mod corpus;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread;

use bytes::Bytes;
use serde_json::Value as Json;
use tokenizers::Tokenizer;

use crate::TextError;

/// Bytes of text and tokens that a model's segment cache holds: about 4 million tokens of English. The least recently
/// used segments are evicted first. A segment of more than a 64th of the bytes is not cached.
const SEGMENT_CACHE_BYTES: usize = 32 << 20;

/// The only character below U+20000 that is white space in one tokenizer's regular expressions and not in the other's:
/// Unicode 6.3 changed its category. The reference encodes every text that contains it (Mongolian text).
const MONGOLIAN_VOWEL_SEPARATOR: char = '\u{180e}';

/// The encoder of one model, shared by threads.
pub(crate) struct Encoder {
    reference: Arc<Tokenizer>,
    /// Empty until the check is done; `None` if the fast tokenizer is not exact for this model.
    fast: Arc<OnceLock<Option<Box<fastokens::Tokenizer>>>>,
}

impl Encoder {
    /// The token as the vocabulary writes it; `None` for an id without a token.
    pub(crate) fn written(&self, token: u32) -> Option<String> {
        self.reference.id_to_token(token)
    }

    /// The encoder of `reference`, which was loaded from `definition`, a `tokenizer.json`. Starts the thread that
    /// checks the fast tokenizer.
    pub(crate) fn new(reference: Tokenizer, definition: Bytes) -> Self {
        let reference = Arc::new(reference);
        let fast = Arc::new(OnceLock::new());
        let (checked_against, outcome) = (Arc::clone(&reference), Arc::clone(&fast));
        let spawned = thread::Builder::new()
            .name("check-tokenizer".to_owned())
            .spawn(move || outcome.set(exact_or_none(&checked_against, &definition)));
        if let Err(error) = spawned {
            tracing::info!(
                %error,
                "the reference tokenizer encodes prompts: the thread that checks the fast one cannot start"
            );
            let _ = fast.set(None);
        }
        Self { reference, fast }
    }

    /// The tokens of `text`, special tokens recognised. Nothing is added before or after the text.
    ///
    /// # Errors
    /// The tokenizer has no token for a part of the text and no token for unknown text.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        // The reference encodes a text that the fast tokenizer refuses, or gives the error.
        if let Some(Some(fast)) = self.fast.get()
            && let Some(tokens) = by_fast(fast, text)
        {
            return Ok(tokens);
        }
        by_reference(&self.reference, text)
            .map_err(|error| TextError::Encode(format!("the text cannot be tokenized: {error}")))
    }

    /// Waits until the fast tokenizer has been checked. Returns whether it is used.
    pub(crate) fn wait_until_checked(&self) -> bool {
        self.fast.wait().is_some()
    }

    #[cfg(test)]
    pub(crate) fn reference(&self) -> &Tokenizer {
        &self.reference
    }
}

/// `None` for a text that the reference must encode.
fn by_fast(fast: &fastokens::Tokenizer, text: &str) -> Option<Vec<u32>> {
    if text.contains(MONGOLIAN_VOWEL_SEPARATOR) {
        return None;
    }
    fast.encode(text).ok()
}

fn by_reference(reference: &Tokenizer, text: &str) -> tokenizers::Result<Vec<u32>> {
    Ok(reference.encode_fast(text, false)?.get_ids().to_vec())
}

fn exact_or_none(reference: &Tokenizer, definition: &[u8]) -> Option<Box<fastokens::Tokenizer>> {
    // `fastokens` may panic while it builds its tables for an unusual vocabulary.
    let checked = catch_unwind(AssertUnwindSafe(|| exact(reference, definition)))
        .unwrap_or_else(|_| Err("the fast tokenizer panicked while loading the definition".to_owned()));
    checked
        .inspect_err(|reason| {
            tracing::info!(
                reason,
                "the reference tokenizer encodes prompts, not the fast one"
            )
        })
        .ok()
}

/// The fast tokenizer, or the reason why it is not exact for this definition.
fn exact(reference: &Tokenizer, definition: &[u8]) -> Result<Box<fastokens::Tokenizer>, String> {
    let mut definition: Json = serde_json::from_slice(definition).map_err(|error| error.to_string())?;
    // As for the reference: a prompt is never truncated, padded or framed by special tokens.
    for part in ["truncation", "padding", "post_processor"] {
        definition[part] = Json::Null;
    }
    let added = definition["added_tokens"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let added: Vec<String> = added
        .iter()
        .map(|token| {
            let content = token["content"].as_str().unwrap_or_default();
            // `fastokens` takes the written id and builds tables up to the largest; the reference may assign another.
            let written = &token["id"];
            match reference.token_to_id(content).map(u64::from) {
                Some(id) if written.as_u64() == Some(id) => Ok(content.to_owned()),
                _ => Err(format!(
                    "added token {content:?} has the id {written} in the definition and another in the reference"
                )),
            }
        })
        .collect::<Result<_, _>>()?;
    let mut fast = fastokens::Tokenizer::from_json(definition).map_err(|error| error.to_string())?;
    fast.enable_segment_cache(SEGMENT_CACHE_BYTES);
    for text in corpus::texts(&added) {
        let tokens = by_reference(reference, &text).map_err(|error| format!("{text:?}: {error}"))?;
        if by_fast(&fast, &text).is_some_and(|fast| fast != tokens) {
            return Err(format!(
                "the fast tokenizer and the reference give different tokens for {text:?}"
            ));
        }
    }
    Ok(Box::new(fast))
}

#[cfg(test)]
mod tests;
