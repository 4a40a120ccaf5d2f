//! A model's tokenizer and chat template as one self-contained piece of bytes with a stable name.
//!
//! The worker makes it from the model's files and serves it; a router fetches it by digest and needs no model files.
//!
//! ```text
//! "SBXTEXT" version=1   8 bytes
//! header length         u32, little-endian
//! header                JSON: chat template, special tokens
//! tokenizer length      u64, little-endian
//! tokenizer             the bytes of a Hugging Face tokenizer.json
//! ```
//!
//! The same tokenizer and template give the same bytes, on every machine, hence the same digest.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ArtifactError;

const MAGIC: &[u8; 8] = b"SBXTEXT\x01";
/// The largest `tokenizer.json` in the field has 256k tokens and about 35 MiB.
pub(crate) const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
/// The longest chat templates in the field have about 20 KiB; one is compiled and kept by every process.
pub(crate) const MAX_TEMPLATE_BYTES: u64 = 1 << 20;
/// The header is the template, escaped, and a few ids and words.
const MAX_HEADER_BYTES: u64 = 8 << 20;
/// Models name one to six tokens that end a generation; each is compared with every generated token.
const MAX_END_TOKENS: usize = 64;

/// All a process needs to turn text into tokens and back for one model: the worker reads it from the model's files,
/// routers fetch it by digest. Cheap to clone.
#[derive(Clone, PartialEq)]
pub struct ModelArtifacts {
    header: Header,
    tokenizer_json: Bytes,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    chat_template: Option<String>,
    special_tokens: SpecialTokens,
}

/// A token with a role of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecialToken {
    /// Its number in the vocabulary.
    pub id: u32,
    /// Its text.
    pub content: String,
}

/// The tokens a model treats specially, and which of them frame a bare prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecialTokens {
    /// Beginning of sequence; `bos_token` in templates.
    pub bos: Option<SpecialToken>,
    /// End of sequence; `eos_token` in templates.
    pub eos: Option<SpecialToken>,
    /// Padding; `pad_token` in templates.
    pub pad: Option<SpecialToken>,
    /// What stands for text that has no token; `unk_token` in templates.
    pub unk: Option<SpecialToken>,
    /// A bare prompt begins with `bos`.
    pub add_bos: bool,
    /// A bare prompt ends with `eos`: encoder models mostly.
    pub add_eos: bool,
    /// Every token that ends a generation: of the sequence, of the turn, of the message. Ascending.
    pub end: Vec<u32>,
}

/// Names of tokens that end a turn or a text in the model families of the field. Models are often published with only
/// one of theirs declared.
const END_TOKEN_NAMES: &[&str] = &[
    "</s>",
    "<EOT>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|call|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|endoftext|>",
    "<|endofturn|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|eot|>",
    "<|im_end|>",
    "<|return|>",
    "<｜end▁of▁sentence｜>",
    "[EOS]",
    "[EOT]",
];

/// Whether `token`, a special one among `all`, ends a generation going by its name.
pub(crate) fn is_end_token(token: &str, all: &[&str]) -> bool {
    // In OpenAI's Harmony format a message's `<|end|>` is followed by the next message of the same generation.
    let harmony = || all.contains(&"<|return|>") && all.contains(&"<|call|>");
    END_TOKEN_NAMES.contains(&token) && !(token == "<|end|>" && harmony())
}

impl ModelArtifacts {
    /// Puts the parts together and holds them to their bounds.
    pub(crate) fn new(
        tokenizer_json: Bytes,
        chat_template: Option<String>,
        special_tokens: SpecialTokens,
    ) -> Result<Self, ArtifactError> {
        let artifacts = Self::assembled(tokenizer_json, chat_template, special_tokens);
        artifacts.check_bounds()?;
        Ok(artifacts)
    }

    /// The tokens that end a generation are sorted and made unique, so that the same ones give the same bytes.
    pub(crate) fn assembled(
        tokenizer_json: Bytes,
        chat_template: Option<String>,
        mut special_tokens: SpecialTokens,
    ) -> Self {
        let end: BTreeSet<u32> = special_tokens.end.into_iter().collect();
        special_tokens.end = end.into_iter().collect();
        Self {
            header: Header {
                chat_template,
                special_tokens,
            },
            tokenizer_json,
        }
    }

    fn check_bounds(&self) -> Result<(), ArtifactError> {
        check_size(
            "the tokenizer",
            self.tokenizer_json.len() as u64,
            MAX_TOKENIZER_BYTES,
        )?;
        let template = self.header.chat_template.as_ref().map_or(0, String::len);
        check_size("the chat template", template as u64, MAX_TEMPLATE_BYTES)?;
        let end = self.header.special_tokens.end.len();
        if end > MAX_END_TOKENS {
            let what = format!("{end} tokens are said to end a generation; the limit is {MAX_END_TOKENS}");
            return Err(ArtifactError::Container(what));
        }
        Ok(())
    }

    /// The bytes of the tokenizer in the format of Hugging Face's `tokenizer.json`.
    pub fn tokenizer_json(&self) -> &Bytes {
        &self.tokenizer_json
    }

    /// The chat template's source, in Jinja; base models have none.
    pub fn chat_template(&self) -> Option<&str> {
        self.header.chat_template.as_deref()
    }

    /// The model's special tokens.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.header.special_tokens
    }

    /// The container, as described at the head of this module's source: one version, deterministic.
    pub fn to_bytes(&self) -> Bytes {
        let head = self.head();
        let mut bytes = Vec::with_capacity(head.len() + self.tokenizer_json.len());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&self.tokenizer_json);
        bytes.into()
    }

    /// Everything before the tokenizer's bytes.
    #[expect(
        clippy::expect_used,
        reason = "strings, numbers and booleans under fixed names are JSON"
    )]
    fn head(&self) -> Vec<u8> {
        let header = serde_json::to_vec(&self.header).expect("every map is a struct");
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&(header.len() as u32).to_le_bytes());
        head.extend_from_slice(&header);
        head.extend_from_slice(&(self.tokenizer_json.len() as u64).to_le_bytes());
        head
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// Other bytes, another version, a part that is missing, left over or past its bound.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ArtifactError> {
        let damaged = |what: &str| ArtifactError::Container(what.to_owned());
        let rest = bytes
            .strip_prefix(&MAGIC[..7])
            .ok_or_else(|| damaged("they begin with something else"))?;
        let (version, rest) = rest
            .split_first()
            .ok_or_else(|| damaged("they end before the version"))?;
        if *version != MAGIC[7] {
            let what = format!("version {version} of the container is not understood; version 1 is");
            return Err(ArtifactError::Container(what));
        }
        let (length, rest) = rest
            .split_first_chunk()
            .ok_or_else(|| damaged("they end before the header"))?;
        let length = u32::from_le_bytes(*length);
        check_size("the header", u64::from(length), MAX_HEADER_BYTES)?;
        let (header, rest) = rest
            .split_at_checked(length as usize)
            .ok_or_else(|| damaged("they end inside the header"))?;
        let header: Header = serde_json::from_slice(header)
            .map_err(|error| ArtifactError::Container(format!("the header is not as expected: {error}")))?;
        let (length, rest) = rest
            .split_first_chunk()
            .ok_or_else(|| damaged("they end before the tokenizer"))?;
        let length = u64::from_le_bytes(*length);
        if length != rest.len() as u64 {
            let what = format!(
                "the tokenizer should have {length} bytes, and {} are there",
                rest.len()
            );
            return Err(ArtifactError::Container(what));
        }
        let artifacts = Self {
            header,
            tokenizer_json: Bytes::copy_from_slice(rest),
        };
        artifacts.check_bounds()?;
        Ok(artifacts)
    }

    /// SHA-256 of [`Self::to_bytes`], in lower-case hex.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.head());
        hash.update(&self.tokenizer_json);
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for ModelArtifacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelArtifacts")
            .field("tokenizer_bytes", &self.tokenizer_json.len())
            .field("chat_template_bytes", &self.chat_template().map(str::len))
            .field("special_tokens", &self.header.special_tokens)
            .finish()
    }
}

pub(crate) fn check_size(what: &str, bytes: u64, limit: u64) -> Result<(), ArtifactError> {
    if bytes > limit {
        return Err(ArtifactError::TooLarge {
            what: what.to_owned(),
            bytes,
            limit,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
