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
#[derive(Debug, Clone)]
pub(crate) struct LeastTokens(Option<Bound>);

#[derive(Debug, Clone)]
struct Bound {
    /// The most bytes of a text that one token can stand for.
    bytes_of_a_token: usize,
    /// The bytes that have no token, if there are any that a text can have: a tokenizer drops them or joins them.
    unknown: Vec<u8>,
}

impl LeastTokens {
    /// The bound of a tokenizer with these tokens.
    pub(crate) fn of(tokenizer: &Tokenizer, pieces: &TokenPieces) -> Self {
        Self(bound(tokenizer, pieces))
    }

    /// The fewest tokens that `text` can have: 0 if the tokenizer has no bound.
    pub(crate) fn in_text(&self, text: &str) -> usize {
        let Some(bound) = &self.0 else {
            return 0;
        };
        let bytes = if bound.unknown.is_empty() {
            text.len()
        } else {
            text.bytes().filter(|byte| !bound.unknown.contains(byte)).count()
        };
        bytes.div_ceil(bound.bytes_of_a_token)
    }
}

fn bound(tokenizer: &Tokenizer, pieces: &TokenPieces) -> Option<Bound> {
    // Such an added token takes all white space beside it.
    let swallows_space = |added: &tokenizers::AddedToken| added.lstrip || added.rstrip;
    if tokenizer.get_added_tokens_decoder().values().any(swallows_space) {
        return None;
    }
    let ModelWrapper::BPE(model) = tokenizer.get_model() else {
        return None;
    };
    let normalizer = serde_json::to_value(tokenizer.get_normalizer()).ok()?;
    let pre_tokenizer = serde_json::to_value(tokenizer.get_pre_tokenizer()).ok()?;
    let shortens = shortens(&normalizer)?;
    if !keeps_all(&pre_tokenizer) {
        return None;
    }
    let has = |token: String| tokenizer.token_to_id(&token).is_some();
    let (longest, unknown) = if is_byte_level(&pre_tokenizer) {
        let unknown = bytes_of_text().filter(|byte| !has(character_of(*byte).to_string()));
        (pieces.longest(), unknown.collect())
    } else if model.byte_fallback && bytes_of_text().all(|byte| has(format!("<0x{byte:02X}>"))) {
        // A token's text here may be longer than its bytes (`▁` for a space), and a client may write that text itself.
        let longest = tokenizer.get_vocab(true).keys().map(String::len).max()?;
        (longest, Vec::new())
    } else {
        return None;
    };
    // Bytes that have a token may become some that have none.
    if shortens > 1 && !unknown.is_empty() {
        return None;
    }
    let bytes_of_a_token = longest.checked_mul(shortens).filter(|bytes| *bytes > 0)?;
    Some(Bound {
        bytes_of_a_token,
        unknown,
    })
}

/// The bytes that UTF-8 uses.
fn bytes_of_text() -> impl Iterator<Item = u8> {
    (0..=0xF4).filter(|byte| !matches!(byte, 0xC0 | 0xC1))
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
