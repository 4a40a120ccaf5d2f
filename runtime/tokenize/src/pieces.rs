//! The exact bytes of every token, computed once at load, so that decoding a token is a look-up.

use serde_json::Value as Json;
use tokenizers::Tokenizer;

use crate::ArtifactError;

/// Most ids of a vocabulary. The largest published vocabularies have 262,144 tokens. The table takes 4 bytes an id.
const MAX_VOCABULARY: u32 = 1 << 22;

/// The bytes of all tokens, concatenated in the order of their ids.
pub(crate) struct TokenPieces {
    bytes: Vec<u8>,
    /// The end of each token's bytes. A token's bytes begin at the end of the previous token's.
    ends: Vec<u32>,
    /// Ids of the special tokens, ascending.
    special: Vec<u32>,
}

impl TokenPieces {
    pub(crate) fn of(tokenizer: &Tokenizer) -> Result<Self, ArtifactError> {
        let form = PieceForm::of(tokenizer)?;
        let size = tokenizer
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |id| id.saturating_add(1));
        if size > MAX_VOCABULARY {
            let reason = format!(
                "a token has the id {}; the largest id may be {}",
                size - 1,
                MAX_VOCABULARY - 1
            );
            return Err(ArtifactError::Tokenizer(reason));
        }
        let mut pieces = Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(size as usize),
            special: Vec::new(),
        };
        for id in 0..size {
            // An id without a token has no bytes.
            if let Some(token) = tokenizer.id_to_token(id) {
                form.append(&token, &mut pieces.bytes);
            }
            pieces.ends.push(u32::try_from(pieces.bytes.len()).map_err(|_| {
                ArtifactError::Tokenizer(
                    "the texts of all tokens together exceed the limit of 4 GiB".to_owned(),
                )
            })?);
        }
        let added = tokenizer.get_added_tokens_decoder();
        pieces
            .special
            .extend(added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id));
        pieces.special.sort_unstable();
        Ok(pieces)
    }

    /// The largest id plus one.
    pub(crate) fn len(&self) -> u32 {
        self.ends.len() as u32
    }

    /// The token's bytes. Empty for an id outside the vocabulary.
    pub(crate) fn bytes(&self, token: u32) -> &[u8] {
        let index = token as usize;
        let Some(end) = self.ends.get(index) else {
            return &[];
        };
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..*end as usize]
    }

    /// The most bytes of a token.
    pub(crate) fn longest(&self) -> usize {
        (0..self.len())
            .map(|token| self.bytes(token).len())
            .max()
            .unwrap_or(0)
    }

    pub(crate) fn is_special(&self, token: u32) -> bool {
        self.special.binary_search(&token).is_ok()
    }
}

/// How a vocabulary writes the bytes of its tokens. The `decoder` of `tokenizer.json` is the reverse.
enum PieceForm {
    /// As GPT-2: each byte is one printable character.
    ByteLevel,
    /// As SentencePiece: plain text with replacements (`▁` for a space), and `<0x0A>` for a byte.
    Plain {
        replacements: Vec<(String, String)>,
        byte_fallback: bool,
    },
}

const SUPPORTED_DECODERS: &str = "ByteLevel; Metaspace; \
     a sequence of Replace (of a string), ByteFallback, Fuse and Strip (of leading spaces)";

impl PieceForm {
    fn of(tokenizer: &Tokenizer) -> Result<Self, ArtifactError> {
        let decoder = tokenizer.get_decoder().map(serde_json::to_value).transpose();
        let decoder = decoder
            .map_err(|error| ArtifactError::Tokenizer(error.to_string()))?
            .unwrap_or_default();
        let unsupported = |step: &Json| ArtifactError::Unsupported {
            key: "tokenizer.json's decoder".to_owned(),
            found: step.to_string(),
            supported: SUPPORTED_DECODERS.to_owned(),
        };
        let steps = match decoder.get("decoders").and_then(Json::as_array) {
            Some(steps) => steps.iter().collect(),
            None => vec![&decoder],
        };
        let mut replacements = Vec::new();
        let mut byte_fallback = false;
        for step in steps {
            match step["type"].as_str() {
                Some("ByteLevel") => return Ok(Self::ByteLevel),
                Some("ByteFallback") => byte_fallback = true,
                Some("Fuse") => {}
                // The tokenizer adds this space before the first word of a text. A generation continues a text, so its
                // leading space belongs to it and stays.
                Some("Strip") if step["content"] == " " && step["stop"] == 0 => {}
                Some("Replace") => match (step["pattern"]["String"].as_str(), step["content"].as_str()) {
                    (Some(pattern), Some(content)) => {
                        replacements.push((pattern.to_owned(), content.to_owned()))
                    }
                    _ => return Err(unsupported(step)),
                },
                Some("Metaspace") => match step["replacement"].as_str() {
                    Some(replacement) => replacements.push((replacement.to_owned(), " ".to_owned())),
                    None => return Err(unsupported(step)),
                },
                _ => return Err(unsupported(step)),
            }
        }
        Ok(Self::Plain {
            replacements,
            byte_fallback,
        })
    }

    fn append(&self, token: &str, out: &mut Vec<u8>) {
        match self {
            Self::ByteLevel => {
                let start = out.len();
                for character in token.chars() {
                    match byte_of(character) {
                        Some(byte) => out.push(byte),
                        None => {
                            // An added token, which is plain text outside the alphabet.
                            out.truncate(start);
                            out.extend_from_slice(token.as_bytes());
                            return;
                        }
                    }
                }
            }
            Self::Plain {
                replacements,
                byte_fallback,
            } => match fallback_byte(token).filter(|_| *byte_fallback) {
                Some(byte) => out.push(byte),
                None => {
                    let replace = |text: String, (from, to): &(String, String)| text.replace(from, to);
                    out.extend_from_slice(replacements.iter().fold(token.to_owned(), replace).as_bytes());
                }
            },
        }
    }
}

/// The byte of a token such as `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 {
        u8::from_str_radix(digits, 16).ok()
    } else {
        None
    }
}

/// Whether GPT-2's alphabet writes this byte as the Latin-1 character of the same number, which is printable. The other
/// 68 bytes are, in order, the characters from U+0100 on.
fn is_written_as_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The byte that a character of GPT-2's alphabet stands for.
fn byte_of(character: char) -> Option<u8> {
    let code = u32::from(character);
    match u8::try_from(code) {
        Ok(byte) => is_written_as_itself(byte).then_some(byte),
        Err(_) => (0..=u8::MAX)
            .filter(|byte| !is_written_as_itself(*byte))
            .nth(code.checked_sub(0x100)? as usize),
    }
}

/// The character of GPT-2's alphabet that stands for a byte.
pub(crate) fn character_of(byte: u8) -> char {
    if is_written_as_itself(byte) {
        return char::from(byte);
    }
    let order = (0..byte).filter(|other| !is_written_as_itself(*other)).count();
    char::from_u32(0x100 + order as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_has_a_character_for_every_byte_and_no_other() {
        for byte in 0..=u8::MAX {
            assert_eq!(byte_of(character_of(byte)), Some(byte));
        }
        // The known characters of GPT-2's vocabulary.
        assert_eq!([b' ', b'\n', b'\t', 0xAD].map(character_of), ['Ġ', 'Ċ', 'ĉ', 'Ń']);
        assert_eq!(
            (byte_of(' '), byte_of('｜'), byte_of('\u{144}')),
            (None, None, None)
        );
    }

    #[test]
    fn a_byte_token_is_two_hex_digits() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        assert_eq!(fallback_byte("<0xFF>"), Some(255));
        for other in ["<0x0>", "<0x0AB>", "<0x0G>", "0x0A", "<|im_end|>"] {
            assert_eq!(fallback_byte(other), None, "{other}");
        }
    }
}
