//! The tokenizer and chat template out of a Hugging Face model folder.
//!
//! `tokenizer.json` is taken as it is. What surrounds it is spread over several files with several shapes each, and this
//! is where they are reconciled, as `transformers` does it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use crate::ArtifactError;
use crate::artifacts::{
    MAX_TEMPLATE_BYTES, MAX_TOKENIZER_BYTES, ModelArtifacts, SpecialToken, SpecialTokens, check_size,
    is_end_token,
};

/// Each of the small JSON files; `tokenizer_config.json` may repeat every added token.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

impl ModelArtifacts {
    /// Reads a Hugging Face tokenizer folder: `tokenizer.json`, and where present `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json` and `chat_template.jinja`.
    ///
    /// # Errors
    /// `tokenizer.json` is missing or not sound, or one of the others is there and not as it should be.
    pub fn from_hf_folder(path: &Path) -> Result<Self, ArtifactError> {
        let folder = Folder(path);
        let file = path.join("tokenizer.json");
        let tokenizer_json = folder.required("tokenizer.json", MAX_TOKENIZER_BYTES)?;
        let tokenizer = Tokenizer::from_bytes(&tokenizer_json).map_err(|error| ArtifactError::Json {
            path: file,
            what: error.to_string(),
        })?;
        let config = folder.object("tokenizer_config.json")?;
        let map = folder.object("special_tokens_map.json")?;
        let generation = folder.object("generation_config.json")?;

        let token = |name: &str| folder.special_token(name, &[&config, &map], &tokenizer);
        let bos = token("bos_token")?;
        let eos = token("eos_token")?;
        let mut end = folder.end_tokens(&generation, &tokenizer)?;
        end.extend(eos.as_ref().map(|token| token.id));
        let flag = |name: &str| config.get(name).and_then(Value::as_bool);
        let (adds_bos, adds_eos) = frames(&tokenizer, bos.as_ref(), eos.as_ref())?;
        let special = SpecialTokens {
            add_bos: bos.is_some() && flag("add_bos_token").unwrap_or(adds_bos),
            add_eos: eos.is_some() && flag("add_eos_token").unwrap_or(adds_eos),
            pad: token("pad_token")?,
            unk: token("unk_token")?,
            bos,
            eos,
            end,
        };
        Self::new(tokenizer_json.into(), folder.chat_template(&config)?, special)
    }
}

/// Whether `tokenizer.json` itself puts `bos` before and `eos` behind a text.
fn frames(
    tokenizer: &Tokenizer,
    bos: Option<&SpecialToken>,
    eos: Option<&SpecialToken>,
) -> Result<(bool, bool), ArtifactError> {
    let framed = tokenizer
        .encode("a", true)
        .map_err(|error| ArtifactError::Tokenizer(error.to_string()))?;
    let ids = framed.get_ids();
    let is =
        |id: Option<&u32>, token: Option<&SpecialToken>| id.is_some() && id == token.map(|token| &token.id);
    Ok((is(ids.first(), bos), is(ids.last(), eos)))
}

struct Folder<'a>(&'a Path);

impl Folder<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn required(&self, name: &str, limit: u64) -> Result<Vec<u8>, ArtifactError> {
        let path = self.path(name);
        let read = |source| ArtifactError::Read {
            path: path.clone(),
            source,
        };
        let bytes = fs::metadata(&path).map_err(read)?.len();
        check_size(&path.display().to_string(), bytes, limit)?;
        fs::read(&path).map_err(read)
    }

    fn optional(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ArtifactError> {
        match self.required(name, limit) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ArtifactError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The JSON object in the file `name`; an empty one where there is no such file.
    fn object(&self, name: &str) -> Result<Map<String, Value>, ArtifactError> {
        let Some(bytes) = self.optional(name, MAX_CONFIG_BYTES)? else {
            return Ok(Map::new());
        };
        serde_json::from_slice(&bytes)
            .map_err(|error| self.wrong(name, format!("should be a JSON object, and is not: {error}")))
    }

    /// A token's text, given as a string or as `{"content": …}`, with the id the tokenizer knows it by.
    fn special_token(
        &self,
        name: &str,
        sources: &[&Map<String, Value>],
        tokenizer: &Tokenizer,
    ) -> Result<Option<SpecialToken>, ArtifactError> {
        let found = sources
            .iter()
            .find_map(|source| source.get(name))
            .filter(|value| !value.is_null());
        let Some(value) = found else { return Ok(None) };
        let content = value
            .as_str()
            .or_else(|| value.get("content")?.as_str())
            .ok_or_else(|| {
                self.wrong(
                    "tokenizer_config.json",
                    format!("{name} should be a string or an object with content"),
                )
            })?;
        let id = tokenizer.token_to_id(content).ok_or_else(|| {
            self.wrong(
                "tokenizer_config.json",
                format!("{name} is {content:?}, which tokenizer.json has no token for"),
            )
        })?;
        Ok(Some(SpecialToken {
            id,
            content: content.to_owned(),
        }))
    }

    /// `generation_config.json`'s `eos_token_id`, one or several, and special tokens whose name says so.
    fn end_tokens(
        &self,
        generation: &Map<String, Value>,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<u32>, ArtifactError> {
        let wrong = || {
            let what = "eos_token_id should be a token's number or an array of them".to_owned();
            self.wrong("generation_config.json", what)
        };
        let number = |value: &Value| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(wrong)
        };
        let mut end = match generation.get("eos_token_id") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(ids)) => ids.iter().map(number).collect::<Result<_, _>>()?,
            Some(id) => vec![number(id)?],
        };
        let added = tokenizer.get_added_tokens_decoder();
        let names: Vec<_> = added
            .values()
            .filter(|token| token.special)
            .map(|token| &*token.content)
            .collect();
        end.extend(
            added
                .iter()
                .filter(|(_, it)| it.special && is_end_token(&it.content, &names))
                .map(|(id, _)| *id),
        );
        Ok(end)
    }

    /// `chat_template.jinja` where there is one, else the configuration's `chat_template`: a string, or a list of named
    /// ones of which `default` is meant.
    fn chat_template(&self, config: &Map<String, Value>) -> Result<Option<String>, ArtifactError> {
        let file = "chat_template.jinja";
        if let Some(bytes) = self.optional(file, MAX_TEMPLATE_BYTES)? {
            return String::from_utf8(bytes)
                .map(Some)
                .map_err(|_| self.wrong(file, "is not UTF-8".to_owned()));
        }
        let named = |templates: &[Value]| {
            let default = templates.iter().find(|template| template["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        };
        match config.get("chat_template") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(template)) => Ok(Some(template.clone())),
            Some(Value::Array(templates)) => named(templates).map(Some).ok_or_else(|| {
                let what =
                    "chat_template is a list without an entry named default that has a template".to_owned();
                self.wrong("tokenizer_config.json", what)
            }),
            Some(_) => Err(self.wrong(
                "tokenizer_config.json",
                "chat_template should be a string or a list".to_owned(),
            )),
        }
    }

    fn wrong(&self, name: &str, what: String) -> ArtifactError {
        ArtifactError::Json {
            path: self.path(name),
            what,
        }
    }
}

#[cfg(test)]
mod tests;
