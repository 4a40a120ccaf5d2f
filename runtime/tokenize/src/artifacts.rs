//! A model's tokenizer and chat template in one self-contained container of bytes, named by its digest.
//!
//! A worker builds the container from the model's files and serves it. A router fetches it by digest and needs no
//! model files.
//!
//! ```text
//! "SBXTEXT" version=1   8 bytes
//! header length         u32, little-endian
//! header                JSON: chat template, special tokens, how the engine prepares messages
//! tokenizer length      u64, little-endian
//! tokenizer             the bytes of a Hugging Face tokenizer.json
//! ```
//!
//! The same parts give the same bytes, and so the same digest, on every machine. A member of the header that has its
//! default is left out, so that containers of older workers keep their digest.

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ArtifactError;
use crate::preparation::{CodedChat, MessagePreparation};

const MAGIC: &[u8; 8] = b"SBXTEXT\x01";
/// The largest published `tokenizer.json` files have 256k tokens and about 35 MiB.
pub(crate) const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
/// The longest published chat templates have about 20 KiB. Every process compiles its template once and keeps it.
pub(crate) const MAX_TEMPLATE_BYTES: u64 = 1 << 20;
/// The header holds the escaped template and a few special tokens.
const MAX_HEADER_BYTES: u64 = 8 << 20;
/// Models name one to six tokens that end a generation. Every generated token is compared with each of them.
const MAX_END_TOKENS: usize = 64;

/// The tokenizer and chat template of one model, and the way in which its engine prepares messages: all that a process
/// needs to turn text into tokens and back.
///
/// A worker reads them from the model's files; a router fetches them by digest. Clones are cheap.
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tool_template: Option<String>,
    #[serde(default, skip_serializing_if = "MessagePreparation::is_default")]
    preparation: MessagePreparation,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    coded_chat: Option<CodedChat>,
}

/// A token with a special role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecialToken {
    /// The token's id in the vocabulary.
    pub id: u32,
    /// The token's text.
    pub content: String,
}

/// A model's special tokens, and which of them are added around a prompt without a chat template.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecialTokens {
    /// Beginning of sequence; `bos_token` in templates.
    pub bos: Option<SpecialToken>,
    /// End of sequence; `eos_token` in templates.
    pub eos: Option<SpecialToken>,
    /// Padding; `pad_token` in templates.
    pub pad: Option<SpecialToken>,
    /// The token for text that has no token of its own; `unk_token` in templates.
    pub unk: Option<SpecialToken>,
    /// Whether a prompt without a chat template begins with `bos`.
    pub add_bos: bool,
    /// Whether a prompt without a chat template ends with `eos`. True mostly for encoder models.
    pub add_eos: bool,
    /// Every token that ends a generation: end of sequence, of turn and of message. Ascending.
    pub end: Vec<u32>,
}

/// Names of the tokens that end a turn or a text in published model families. A model often has several such tokens
/// and declares only one.
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

/// Whether the name of `token` marks it as the end of a generation. `all` are the names of all special tokens.
pub(crate) fn is_end_token(token: &str, all: &[&str]) -> bool {
    // In OpenAI's Harmony format `<|end|>` ends a message; the next message of the same generation follows it.
    let harmony = || all.contains(&"<|return|>") && all.contains(&"<|call|>");
    END_TOKEN_NAMES.contains(&token) && !(token == "<|end|>" && harmony())
}

impl ModelArtifacts {
    /// Builds the artifacts and checks the bounds of every part.
    pub(crate) fn new(
        tokenizer_json: Bytes,
        chat_template: Option<String>,
        special_tokens: SpecialTokens,
    ) -> Result<Self, ArtifactError> {
        let artifacts = Self::assembled(tokenizer_json, chat_template, special_tokens);
        artifacts.check_bounds()?;
        Ok(artifacts)
    }

    /// Builds the artifacts without checking bounds. Sorts and deduplicates the end tokens, so that equal sets give
    /// equal bytes.
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
                tool_template: None,
                preparation: MessagePreparation::default(),
                coded_chat: None,
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
        for template in [&self.header.chat_template, &self.header.tool_template] {
            let bytes = template.as_ref().map_or(0, String::len);
            check_size("the chat template", bytes as u64, MAX_TEMPLATE_BYTES)?;
        }
        let end = self.header.special_tokens.end.len();
        if end > MAX_END_TOKENS {
            let reason = format!("{end} tokens end a generation; the limit is {MAX_END_TOKENS}");
            return Err(ArtifactError::Container(reason));
        }
        Ok(())
    }

    /// The tokenizer in the format of Hugging Face's `tokenizer.json`.
    pub fn tokenizer_json(&self) -> &Bytes {
        &self.tokenizer_json
    }

    /// The source of the chat template, in Jinja. `None` for base models.
    pub fn chat_template(&self) -> Option<&str> {
        self.header.chat_template.as_deref()
    }

    /// The source of the template for requests with tools, if it is another one.
    pub fn tool_template(&self) -> Option<&str> {
        self.header.tool_template.as_deref()
    }

    /// The engine in whose way messages are prepared.
    pub fn preparation(&self) -> MessagePreparation {
        self.header.preparation
    }

    /// The format in which engines write this model's chats by code, if they do.
    pub fn coded_chat(&self) -> Option<CodedChat> {
        self.header.coded_chat
    }

    /// The artifacts for an engine that prepares messages in this way. Another digest than before, unless it is the
    /// same way.
    #[must_use]
    pub fn with_preparation(mut self, preparation: MessagePreparation) -> Self {
        self.header.preparation = preparation;
        self
    }

    /// The artifacts for an engine that adds the beginning-of-sequence token before a prompt without a template, or
    /// does not, whatever the model's files say. No effect for a model without such a token.
    #[must_use]
    pub fn with_add_bos(mut self, add_bos: bool) -> Self {
        let special = &mut self.header.special_tokens;
        special.add_bos = add_bos && special.bos.is_some();
        self
    }

    /// The artifacts for an engine that was started with a template of its own.
    ///
    /// # Errors
    /// The template is too long.
    pub fn with_chat_template(mut self, template: Option<String>) -> Result<Self, ArtifactError> {
        self.header.chat_template = template;
        self.header.tool_template = None;
        self.check_bounds()?;
        Ok(self)
    }

    pub(crate) fn with_tool_template(mut self, template: Option<String>) -> Result<Self, ArtifactError> {
        self.header.tool_template = template;
        self.check_bounds()?;
        Ok(self)
    }

    pub(crate) fn with_coded_chat(mut self, coded: Option<CodedChat>) -> Self {
        self.header.coded_chat = coded;
        self
    }

    /// The model's special tokens.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.header.special_tokens
    }

    /// The container's bytes, in the layout that the head of this module's source describes. Deterministic.
    pub fn to_bytes(&self) -> Bytes {
        let head = self.head();
        let mut bytes = Vec::with_capacity(head.len() + self.tokenizer_json.len());
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&self.tokenizer_json);
        bytes.into()
    }

    /// All bytes of the container before those of the tokenizer.
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

    /// Reads the bytes that [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// The bytes are no container, have another version, or a part is missing, too long or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ArtifactError> {
        let damaged = |reason: &str| ArtifactError::Container(reason.to_owned());
        let rest = bytes
            .strip_prefix(&MAGIC[..7])
            .ok_or_else(|| damaged("the bytes do not begin with \"SBXTEXT\""))?;
        let (version, rest) = rest
            .split_first()
            .ok_or_else(|| damaged("the bytes end before the version"))?;
        if *version != MAGIC[7] {
            let reason = format!("the container has version {version}; only version 1 is supported");
            return Err(ArtifactError::Container(reason));
        }
        let (length, rest) = rest
            .split_first_chunk()
            .ok_or_else(|| damaged("the bytes end before the header"))?;
        let length = u32::from_le_bytes(*length);
        check_size("the header", u64::from(length), MAX_HEADER_BYTES)?;
        let (header, rest) = rest
            .split_at_checked(length as usize)
            .ok_or_else(|| damaged("the bytes end inside the header"))?;
        let header: Header = serde_json::from_slice(header)
            .map_err(|error| ArtifactError::Container(format!("the header cannot be read: {error}")))?;
        let (length, rest) = rest
            .split_first_chunk()
            .ok_or_else(|| damaged("the bytes end before the tokenizer"))?;
        let length = u64::from_le_bytes(*length);
        if length != rest.len() as u64 {
            let reason = format!(
                "the tokenizer has {} bytes; its length field says {length}",
                rest.len()
            );
            return Err(ArtifactError::Container(reason));
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
            .field("preparation", &self.header.preparation)
            .finish()
    }
}

pub(crate) fn check_size(part: &str, bytes: u64, limit: u64) -> Result<(), ArtifactError> {
    if bytes > limit {
        return Err(ArtifactError::TooLarge {
            part: part.to_owned(),
            bytes,
            limit,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
