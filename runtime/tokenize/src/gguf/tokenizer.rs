//! Reads the tokenizer and chat template from the metadata of a GGUF file.

use std::collections::HashMap;
use std::path::Path;

use super::pre_tokenizer::PreTokenizer;
use super::{GgufMetadata, read_gguf_metadata};
use crate::ArtifactError;
use crate::artifacts::{ModelArtifacts, SpecialToken, SpecialTokens, is_end_token};
use crate::definition::{AddedToken, Definition};
use crate::sentence_piece::merges_by_score;

/// The numbers of `tokenizer.ggml.token_type`.
mod token_type {
    pub(super) const NORMAL: i64 = 1;
    pub(super) const UNKNOWN: i64 = 2;
    pub(super) const CONTROL: i64 = 3;
    pub(super) const USER_DEFINED: i64 = 4;
}

const TOKENS: &str = "tokenizer.ggml.tokens";

impl ModelArtifacts {
    /// Reads tokenizer and chat template from the metadata of the GGUF file at `path`.
    ///
    /// The supported families are `gpt2` (byte-level BPE) and `llama` (SentencePiece's BPE).
    ///
    /// # Errors
    /// The file is no valid GGUF file (see [`read_gguf_metadata`]), lacks a key, or has a tokenizer of another family.
    pub fn from_gguf(path: &Path) -> Result<Self, ArtifactError> {
        Self::from_gguf_metadata(&read_gguf_metadata(path)?)
    }

    /// As [`Self::from_gguf`], with metadata that was already read.
    ///
    /// # Errors
    /// As [`Self::from_gguf`].
    pub fn from_gguf_metadata(metadata: &GgufMetadata) -> Result<Self, ArtifactError> {
        let vocabulary = Vocabulary::read(metadata)?;
        let model = "tokenizer.ggml.model";
        match metadata.required(model, metadata.string(model)?)? {
            "gpt2" => vocabulary.byte_level(metadata),
            "llama" => vocabulary.sentence_piece(metadata),
            other => Err(ArtifactError::Unsupported {
                key: model.to_owned(),
                found: other.to_owned(),
                supported: "gpt2 (byte-level BPE), llama (SentencePiece BPE)".to_owned(),
            }),
        }
    }
}

/// The tokens of a model and the type of each token.
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i64>,
}

impl Vocabulary {
    fn read(metadata: &GgufMetadata) -> Result<Self, ArtifactError> {
        let mut tokens = metadata.required(TOKENS, metadata.strings(TOKENS)?)?.to_vec();
        for (id, token) in tokens
            .iter_mut()
            .enumerate()
            .filter(|(_, token)| token.is_empty())
        {
            // Some files pad their vocabulary with empty tokens, and two tokens cannot have the same text.
            *token = format!("[EMPTY_{id}]");
        }
        let key = "tokenizer.ggml.token_type";
        let types = match metadata.integers(key)? {
            Some(types) if types.len() == tokens.len() => types.to_vec(),
            Some(types) => return Err(lengths_differ(metadata, key, types.len(), tokens.len())),
            None => vec![token_type::NORMAL; tokens.len()],
        };
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(earlier) = ids.insert(token, id) {
                let reason = format!("{TOKENS} has {token:?} twice, as {earlier} and as {id}");
                return Err(ArtifactError::Gguf {
                    path: metadata.path().to_owned(),
                    reason,
                });
            }
        }
        drop(ids);
        Ok(Self { tokens, types })
    }

    fn byte_level(&self, metadata: &GgufMetadata) -> Result<ModelArtifacts, ArtifactError> {
        let pre_tokenizer = PreTokenizer::named(metadata.string("tokenizer.ggml.pre")?)?;
        let key = "tokenizer.ggml.merges";
        let merges = metadata.required(key, metadata.strings(key)?)?;
        let merges = merges.iter().map(|merge| {
            merge
                .split_once(' ')
                .filter(|(left, right)| !left.is_empty() && !right.is_empty())
                .ok_or_else(|| {
                    let reason =
                        format!("{key} has {merge:?}; a merge is two tokens with a space between them");
                    ArtifactError::Gguf {
                        path: metadata.path().to_owned(),
                        reason,
                    }
                })
        });
        let definition = Definition::byte_level(
            &self.tokens,
            merges.collect::<Result<_, _>>()?,
            self.added(),
            &pre_tokenizer.words,
            pre_tokenizer.ignore_merges,
            pre_tokenizer.nfc,
        );
        self.artifacts(metadata, &definition, pre_tokenizer.add_bos)
    }

    fn sentence_piece(&self, metadata: &GgufMetadata) -> Result<ModelArtifacts, ArtifactError> {
        let key = "tokenizer.ggml.scores";
        let scores = metadata.required(key, metadata.floats(key)?)?;
        if scores.len() != self.tokens.len() {
            return Err(lengths_differ(metadata, key, scores.len(), self.tokens.len()));
        }
        let unknown = self.token(metadata, "unknown")?;
        let definition = Definition::sentence_piece(
            &self.tokens,
            merges_by_score(&self.tokens, scores, |id| self.types[id] == token_type::NORMAL),
            self.added(),
            unknown.as_ref().map(|token| &*token.content),
            metadata
                .boolean("tokenizer.ggml.add_space_prefix")?
                .unwrap_or(true),
        );
        self.artifacts(metadata, &definition, true)
    }

    fn added(&self) -> Vec<AddedToken<'_>> {
        let tokens = self.tokens.iter().zip(&self.types).enumerate();
        tokens
            .filter_map(|(id, (content, kind))| match *kind {
                token_type::CONTROL | token_type::UNKNOWN => Some(AddedToken::new(id as u32, content, true)),
                token_type::USER_DEFINED => Some(AddedToken::new(id as u32, content, false)),
                _ => None,
            })
            .collect()
    }

    fn artifacts(
        &self,
        metadata: &GgufMetadata,
        definition: &Definition<'_>,
        bos_by_default: bool,
    ) -> Result<ModelArtifacts, ArtifactError> {
        let bos = self.token(metadata, "bos")?;
        let add_bos = metadata
            .boolean("tokenizer.ggml.add_bos_token")?
            .unwrap_or(bos_by_default);
        if add_bos {
            metadata.required("tokenizer.ggml.bos_token_id", bos.as_ref())?;
        }
        let special = SpecialTokens {
            bos,
            eos: self.token(metadata, "eos")?,
            pad: self.token(metadata, "padding")?,
            unk: self.token(metadata, "unknown")?,
            add_bos,
            add_eos: metadata.boolean("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            end: self.end_tokens(metadata)?,
        };
        let template = metadata.string("tokenizer.chat_template")?.map(str::to_owned);
        ModelArtifacts::new(definition.to_json().into(), template, special)
    }

    /// The token that `tokenizer.ggml.{role}_token_id` names.
    fn token(&self, metadata: &GgufMetadata, role: &str) -> Result<Option<SpecialToken>, ArtifactError> {
        let key = format!("tokenizer.ggml.{role}_token_id");
        let Some(id) = metadata.integer(&key)? else {
            return Ok(None);
        };
        let token = usize::try_from(id).ok().and_then(|index| self.tokens.get(index));
        if token.is_none() && id == u64::from(u32::MAX) {
            // Converters write this id for "none".
            return Ok(None);
        }
        let content = token.ok_or_else(|| ArtifactError::Gguf {
            path: metadata.path().to_owned(),
            reason: format!("{key} is {id}; {TOKENS} has {} tokens", self.tokens.len()),
        })?;
        Ok(Some(SpecialToken {
            id: id as u32,
            content: content.clone(),
        }))
    }

    fn end_tokens(&self, metadata: &GgufMetadata) -> Result<Vec<u32>, ArtifactError> {
        let mut end: Vec<u32> = Vec::new();
        for role in ["eos", "eot", "eom"] {
            end.extend(self.token(metadata, role)?.map(|token| token.id));
        }
        let special: Vec<_> = self
            .tokens
            .iter()
            .zip(&self.types)
            .enumerate()
            .filter(|(_, (_, kind))| **kind == token_type::CONTROL)
            .map(|(id, (token, _))| (id as u32, &**token))
            .collect();
        let names: Vec<_> = special.iter().map(|(_, token)| *token).collect();
        end.extend(
            special
                .iter()
                .filter(|(_, token)| is_end_token(token, &names))
                .map(|(id, _)| *id),
        );
        Ok(end)
    }
}

fn lengths_differ(metadata: &GgufMetadata, key: &str, found: usize, tokens: usize) -> ArtifactError {
    let reason = format!("{key} has {found} entries; {TOKENS} has {tokens}");
    ArtifactError::Gguf {
        path: metadata.path().to_owned(),
        reason,
    }
}
