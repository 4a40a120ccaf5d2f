//! Text to tokens, by the fastest tokenizer known to give exactly the reference's tokens.
//!
//! The reference is Hugging Face's `tokenizers`, which every model's tokenizer is made for. `fastokens` does the same
//! work in a small part of the time, for the kinds of byte-pair encoding it knows. A wrong token would go unnoticed, so
//! it is believed only for a tokenizer with which it gave the reference's tokens for every text of [`corpus`]; whatever it
//! refuses or gets wrong there is left to the reference. Trying it takes longer than loading the reference does, so a
//! thread of its own does that, and the reference answers until it is done.
//!
//! Chats come again with each turn. No merge crosses an added token, so the tokens between two of them depend on nothing
//! else: the fast tokenizer keeps them, and a turn encoded before is looked up by its text. Nothing is kept for the
//! reference, which is left with kinds that are rare and whose tokens may depend on where in a text a turn stands.
//!
//! What `fastokens` costs besides: each thread that encodes has its own table of words, some 20 MiB and 100 at most, which
//! the thread's first prompt fills in a few milliseconds; and texts between added tokens of 64 KiB and more are spread
//! over a pool, of as many threads as there are cores and at most 32, that is begun with the first and otherwise sleeps.

mod corpus;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread;

use bytes::Bytes;
use serde_json::Value as Json;
use tokenizers::Tokenizer;

use crate::TextError;

/// Bytes of text and tokens kept for turns that come again, of each model: about 4 million tokens of English.
/// What was not asked for longest goes first; a turn of more than a 64th is not kept.
const KEPT_BYTES: usize = 32 << 20;

/// White space to one of the two's regular expressions and not to the other's, alone of those below U+20000: it
/// was moved to another category in Unicode 6.3. Mongolian uses it; such a text is left to the reference.
const MONGOLIAN_VOWEL_SEPARATOR: char = '\u{180e}';

/// A model's tokenizer as an encoder. Shared by threads.
pub(crate) struct Encoder {
    reference: Arc<Tokenizer>,
    /// Empty until it has been tried; `None` where it is not exact.
    fast: Arc<OnceLock<Option<Box<fastokens::Tokenizer>>>>,
}

impl Encoder {
    /// Of `reference`, which was loaded from `definition`, a `tokenizer.json`. Begins to try the fast tokenizer.
    pub(crate) fn new(reference: Tokenizer, definition: Bytes) -> Self {
        let reference = Arc::new(reference);
        let fast = Arc::new(OnceLock::new());
        let (trial, outcome) = (Arc::clone(&reference), Arc::clone(&fast));
        let spawned = thread::Builder::new()
            .name("try-tokenizer".to_owned())
            .spawn(move || outcome.set(exact_or_none(&trial, &definition)));
        if let Err(error) = spawned {
            tracing::info!(%error, "prompts are encoded by the reference tokenizer, as the fast one cannot be tried");
            let _ = fast.set(None);
        }
        Self { reference, fast }
    }

    /// The tokens of `text` and no others, special ones recognised.
    ///
    /// # Errors
    /// The tokenizer has no token for a part of the text, nor one for the unknown.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        // What the fast one refuses, the reference refuses in words made for it, or knows better.
        if let Some(Some(fast)) = self.fast.get()
            && let Some(tokens) = by_fast(fast, text)
        {
            return Ok(tokens);
        }
        by_reference(&self.reference, text)
            .map_err(|error| TextError::Encode(format!("The text cannot be tokenized: {error}.")))
    }

    /// Waits until the fast tokenizer has been tried; whether it is used.
    pub(crate) fn wait_until_tried(&self) -> bool {
        self.fast.wait().is_some()
    }

    #[cfg(test)]
    pub(crate) fn reference(&self) -> &Tokenizer {
        &self.reference
    }
}

/// None for a text left to the reference.
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
    // It builds tables on what it takes for granted about a vocabulary, which a strange one may not keep to.
    let tried = catch_unwind(AssertUnwindSafe(|| exact(reference, definition)))
        .unwrap_or_else(|_| Err("it failed on the definition".to_owned()));
    tried
        .inspect_err(|reason| {
            tracing::info!(
                reason,
                "prompts are encoded by the reference tokenizer, not by the fast one"
            )
        })
        .ok()
}

/// The fast tokenizer, or why it is not exact for this definition.
fn exact(reference: &Tokenizer, definition: &[u8]) -> Result<Box<fastokens::Tokenizer>, String> {
    let mut definition: Json = serde_json::from_slice(definition).map_err(|error| error.to_string())?;
    // As in the reference: a prompt is never cut, filled up or framed.
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
            // It believes the ids written down, and makes tables up to the largest; the reference may give others.
            match reference.token_to_id(content).map(u64::from) {
                Some(id) if token["id"].as_u64() == Some(id) => Ok(content.to_owned()),
                _ => Err(format!("added token {content:?} has the id {}", token["id"])),
            }
        })
        .collect::<Result<_, _>>()?;
    let mut fast = fastokens::Tokenizer::from_json(definition).map_err(|error| error.to_string())?;
    fast.enable_segment_cache(KEPT_BYTES);
    for text in corpus::texts(&added) {
        let tokens = by_reference(reference, &text).map_err(|error| format!("{text:?}: {error}"))?;
        if by_fast(&fast, &text).is_some_and(|fast| fast != tokens) {
            return Err(format!("its tokens for {text:?} are others"));
        }
    }
    Ok(Box::new(fast))
}

#[cfg(test)]
mod tests;
