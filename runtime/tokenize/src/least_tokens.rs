//! The fewest tokens that a text can have, from its length alone.
//!
//! A text of megabytes takes seconds to encode. Most such texts do not fit the model's context, and this bound shows
//! that without encoding them. It holds only for tokenizers whose tokens together contain every byte of the text: those
//! that drop or join parts of a text (white space, unknown characters) have no bound here.

use serde_json::Value as Json;
use tokenizers::{ModelWrapper, Tokenizer};

use crate::pieces::{TokenPieces, character_of};

/// How many times shorter NFC makes a text at most, in bytes: three for three Hangul letters that become one syllable, and
/// for the sign of the Kelvin, which becomes a `K`.
const NFC_SHORTENS: usize = 3;

/// Bounds the number of tokens from below.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LeastTokens {
    /// The most bytes of a text that one token can stand for; `None` if the tokenizer has no such limit.
    bytes_of_a_token: Option<usize>,
}

impl LeastTokens {
    /// The bound of a tokenizer with these tokens.
    pub(crate) fn of(tokenizer: &Tokenizer, pieces: &TokenPieces) -> Self {
        Self {
            bytes_of_a_token: bytes_of_a_token(tokenizer, pieces),
        }
    }

    /// The fewest tokens that a text of `bytes` bytes can have.
    pub(crate) fn in_bytes(self, bytes: usize) -> usize {
        self.bytes_of_a_token
            .map_or(0, |of_a_token| bytes.div_ceil(of_a_token))
    }
}

fn bytes_of_a_token(tokenizer: &Tokenizer, pieces: &TokenPieces) -> Option<usize> {
    // Such an added token takes all white space beside it.
    let swallows_space = |added: &tokenizers::AddedToken| added.lstrip || added.rstrip;
    if tokenizer.get_added_tokens_decoder().values().any(swallows_space) {
        return None;
    }
    let ModelWrapper::BPE(model) = tokenizer.get_model() else {
        return None;
    };
    let part = |part: Result<Json, serde_json::Error>| part.ok();
    let normalizer = part(serde_json::to_value(tokenizer.get_normalizer()))?;
    let pre_tokenizer = part(serde_json::to_value(tokenizer.get_pre_tokenizer()))?;
    if !keeps_all(&pre_tokenizer) {
        return None;
    }
    let has = |token: String| tokenizer.token_to_id(&token).is_some();
    let mut bytes = 0..=u8::MAX;
    let longest = if is_byte_level(&pre_tokenizer) {
        bytes
            .all(|byte| has(character_of(byte).to_string()))
            .then(|| pieces.longest())?
    } else {
        // A token's text here may be longer than its bytes (`▁` for a space), and a client may write that text itself.
        let vocabulary = tokenizer.get_vocab(true);
        (model.byte_fallback && bytes.all(|byte| has(format!("<0x{byte:02X}>"))))
            .then(|| vocabulary.keys().map(String::len).max())??
    };
    longest
        .checked_mul(shortens(&normalizer)?)
        .filter(|bytes| *bytes > 0)
}

fn members<'a>(part: &'a Json, name: &str) -> &'a [Json] {
    part[name].as_array().map_or(&[], Vec::as_slice)
}

/// How many times shorter a text becomes at most; `None` for no limit.
fn shortens(normalizer: &Json) -> Option<usize> {
    match normalizer["type"].as_str() {
        None if normalizer.is_null() => Some(1),
        Some("NFC") => Some(NFC_SHORTENS),
        Some("Prepend") => Some(1),
        Some("Replace") => {
            let (from, to) = (
                normalizer["pattern"]["String"].as_str()?,
                normalizer["content"].as_str()?,
            );
            (to.len() >= from.len()).then_some(1)
        }
        Some("Sequence") => members(normalizer, "normalizers")
            .iter()
            .try_fold(1_usize, |so_far, part| so_far.checked_mul(shortens(part)?)),
        _ => None,
    }
}

/// Whether splitting a text into words keeps all of it.
fn keeps_all(pre_tokenizer: &Json) -> bool {
    match pre_tokenizer["type"].as_str() {
        None => pre_tokenizer.is_null(),
        Some("ByteLevel" | "Digits" | "Metaspace") => true,
        Some("Split" | "Punctuation") => pre_tokenizer["behavior"]
            .as_str()
            .is_some_and(|behavior| behavior != "Removed"),
        Some("Sequence") => members(pre_tokenizer, "pretokenizers").iter().all(keeps_all),
        Some(_) => false,
    }
}

/// Whether each byte of a word becomes a character of GPT-2's alphabet.
fn is_byte_level(pre_tokenizer: &Json) -> bool {
    pre_tokenizer["type"] == "ByteLevel" || members(pre_tokenizer, "pretokenizers").iter().any(is_byte_level)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use serde_json::json;
    use tokenizers::normalizers::{NFC, NFD};
    use tokenizers::{NormalizedString, Normalizer};

    use super::*;
    use crate::{ModelArtifacts, ModelText};

    static TEXT: LazyLock<ModelText> =
        LazyLock::new(|| ModelText::load(&ModelArtifacts::byte_level()).unwrap());

    fn normalized(text: &str, normalizer: &impl Normalizer) -> String {
        let mut normalized = NormalizedString::from(text);
        normalizer.normalize(&mut normalized).unwrap();
        normalized.get().to_owned()
    }

    #[test]
    fn nfc_shortens_no_character_and_no_decomposed_character_more_than_is_assumed() {
        for character in '\0'..=char::MAX {
            let text = character.to_string();
            let decomposed = normalized(&text, &NFD);
            for long in [text, decomposed] {
                let short = normalized(&long, &NFC).len();
                assert!(short * NFC_SHORTENS >= long.len(), "{long:?}");
            }
        }
    }

    #[test]
    fn parts_that_drop_text_have_no_bound() {
        assert_eq!(shortens(&json!({"type": "Lowercase"})), None);
        assert_eq!(
            shortens(&json!({"type": "Replace", "pattern": {"Regex": " +"}, "content": " "})),
            None
        );
        assert_eq!(
            shortens(&json!({"type": "Replace", "pattern": {"String": "  "}, "content": " "})),
            None
        );
        let nested = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "▁"}]});
        assert_eq!(shortens(&nested), Some(3));
        assert!(!keeps_all(&json!({"type": "WhitespaceSplit"})));
        assert!(!keeps_all(&json!({"type": "Split", "behavior": "Removed"})));
        let words = json!({"type": "Split", "behavior": "Isolated"});
        let sequence = json!({"type": "Sequence", "pretokenizers": [words, {"type": "ByteLevel"}]});
        assert!(keeps_all(&sequence) && is_byte_level(&sequence));
    }

    proptest! {
        #[test]
        fn no_text_has_fewer_tokens_than_the_bound(words in prop::collection::vec(".{0,8}|<\\|im_end\\|>| {1,40}|a{1,40}", 0..40)) {
            let prompt = words.concat();
            let least = TEXT.least_tokens(&prompt);
            prop_assert!(prompt.is_empty() || least > 0, "the byte-level tokenizer has a bound");
            prop_assert!(TEXT.encode_prompt_with(&prompt, false).unwrap().len() >= least);
        }
    }
}
