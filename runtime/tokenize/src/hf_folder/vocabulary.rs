//! The vocabulary of a model folder, in the first of these files that is there: `tokenizer.json`, a SentencePiece model
//! (`tokenizer.model`), a vocabulary of tiktoken (`tiktoken.model`).

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::Folder;
use crate::ArtifactError;
use crate::artifacts::MAX_TOKENIZER_BYTES;
use crate::{sentence_piece, tiktoken};

/// A tokenizer in the format of `tokenizer.json`, and where it comes from.
pub(super) struct TokenizerFile {
    /// The file's name.
    pub(super) name: &'static str,
    pub(super) tokenizer_json: Vec<u8>,
    /// Whether the beginning-of-sequence token precedes prompts if `tokenizer_config.json` does not say it.
    pub(super) adds_bos: bool,
}

impl TokenizerFile {
    /// Reads the file. Completes `config` with the special tokens that only a SentencePiece model names.
    pub(super) fn read(folder: &Folder<'_>, config: &mut Map<String, Value>) -> Result<Self, ArtifactError> {
        let name = "tokenizer.json";
        let missing = match folder.required(name, MAX_TOKENIZER_BYTES) {
            Ok(tokenizer_json) => {
                return Ok(Self {
                    name,
                    tokenizer_json,
                    adds_bos: false,
                });
            }
            Err(error) => error,
        };
        let name = "tokenizer.model";
        if let Some(bytes) = folder.optional(name, MAX_TOKENIZER_BYTES)? {
            let wrong = |reason: String| folder.wrong(name, reason);
            let model = sentence_piece::Model::read(&bytes).map_err(wrong)?;
            for (role, token) in [
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
            ] {
                if let Some(token) = model.control(token) {
                    config.entry(role).or_insert_with(|| json!(token));
                }
            }
            return Ok(Self {
                name,
                tokenizer_json: model.tokenizer_json(&added(config)).map_err(wrong)?,
                adds_bos: true,
            });
        }
        let name = "tiktoken.model";
        let Some(bytes) = folder.optional(name, MAX_TOKENIZER_BYTES)? else {
            return Err(missing);
        };
        let wrong = |reason: String| folder.wrong(name, reason);
        let class = config.get("tokenizer_class").and_then(Value::as_str);
        if class != Some("TikTokenTokenizer") {
            return Err(ArtifactError::Unsupported {
                key: "tokenizer_class, which says how text is split into words,".to_owned(),
                found: class.unwrap_or_default().to_owned(),
                supported: "TikTokenTokenizer (Kimi)".to_owned(),
            });
        }
        let file = String::from_utf8(bytes).map_err(|_| wrong("the file is not text".to_owned()))?;
        Ok(Self {
            name,
            tokenizer_json: tiktoken::kimi(&file, &added(config)).map_err(wrong)?,
            adds_bos: false,
        })
    }
}

/// The tokens of `added_tokens_decoder` by their ids.
fn added(config: &Map<String, Value>) -> HashMap<u32, String> {
    let tokens = config.get("added_tokens_decoder").and_then(Value::as_object);
    tokens
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| Some((id.parse().ok()?, token["content"].as_str()?.to_owned())))
        .collect()
}
