//! Reads the tokenizer and chat template from a Hugging Face model folder.
//!
//! `tokenizer.json` is taken as it is; other vocabularies are converted to it (`vocabulary.rs`). Special tokens and the template are spread over several other files, each with
//! several shapes. This module merges them as `transformers` does.

mod vocabulary;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use crate::ArtifactError;
use crate::artifacts::{
    MAX_TEMPLATE_BYTES, ModelArtifacts, SpecialToken, SpecialTokens, check_size, is_end_token,
};
use crate::preparation::CodedChat;

/// Most bytes of each of the other JSON files. `tokenizer_config.json` may repeat every added token.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

impl ModelArtifacts {
    /// Reads a Hugging Face tokenizer folder: `tokenizer.json`, and if they are present `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json`, the chat template (`chat_template.jinja`,
    /// `chat_template.json`), and `config.json`, which says whether engines render the model's chats in code.
    ///
    /// # Errors
    /// `tokenizer.json` is missing or invalid, and there is no SentencePiece model (`tokenizer.model`) or vocabulary of
    /// tiktoken (`tiktoken.model`) of a supported kind in its place; or one of the other files is invalid.
    pub fn from_hf_folder(path: &Path) -> Result<Self, ArtifactError> {
        let folder = Folder(path);
        let mut config = folder.object("tokenizer_config.json")?;
        let file = vocabulary::TokenizerFile::read(&folder, &mut config)?;
        let tokenizer_json = file.tokenizer_json;
        let tokenizer = Tokenizer::from_bytes(&tokenizer_json)
            .map_err(|error| folder.wrong(file.name, error.to_string()))?;
        let map = folder.object("special_tokens_map.json")?;
        let generation = folder.object("generation_config.json")?;

        let token = |name: &str| folder.special_token(name, &[&config, &map], &tokenizer);
        let bos = token("bos_token")?;
        let eos = token("eos_token")?;
        let mut end = folder.end_tokens(&generation, &tokenizer)?;
        end.extend(eos.as_ref().map(|token| token.id));
        let flag = |name: &str| config.get(name).and_then(Value::as_bool);
        let (adds_bos, adds_eos) = frames(&tokenizer, bos.as_ref(), eos.as_ref())?;
        let adds_bos = adds_bos || file.adds_bos;
        let special = SpecialTokens {
            add_bos: bos.is_some() && flag("add_bos_token").unwrap_or(adds_bos),
            add_eos: eos.is_some() && flag("add_eos_token").unwrap_or(adds_eos),
            pad: token("pad_token")?,
            unk: token("unk_token")?,
            bos,
            eos,
            end,
        };
        let templates = folder.chat_templates(&config)?;
        let coded = folder.coded_chat(&tokenizer)?;
        Ok(Self::new(tokenizer_json.into(), templates.chat, special)?
            .with_tool_template(templates.tools)?
            .with_coded_chat(coded))
    }
}

/// The chat templates of a model.
#[derive(Debug, Default)]
struct Templates {
    chat: Option<String>,
    /// For requests with tools, if it is another one.
    tools: Option<String>,
}

/// Whether `tokenizer.json` itself adds `bos` before a text, and `eos` after it.
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

    /// The JSON object of the file `name`; an empty object if the file is absent.
    fn object(&self, name: &str) -> Result<Map<String, Value>, ArtifactError> {
        let Some(bytes) = self.optional(name, MAX_CONFIG_BYTES)? else {
            return Ok(Map::new());
        };
        serde_json::from_slice(&bytes)
            .map_err(|error| self.wrong(name, format!("the file should be a JSON object: {error}")))
    }

    /// The special token `name`, written as a string or as `{"content": …}`, with its id in `tokenizer`.
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
                    format!("{name} should be a string or an object with a member content"),
                )
            })?;
        let id = tokenizer.token_to_id(content).ok_or_else(|| {
            self.wrong(
                "tokenizer_config.json",
                format!("{name} is {content:?}; tokenizer.json has no such token"),
            )
        })?;
        Ok(Some(SpecialToken {
            id,
            content: content.to_owned(),
        }))
    }

    /// The tokens that end a generation: `eos_token_id` of `generation_config.json`, one or several, and the special
    /// tokens whose name marks them as such.
    fn end_tokens(
        &self,
        generation: &Map<String, Value>,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<u32>, ArtifactError> {
        let wrong = || {
            let reason = "eos_token_id should be a token's id or an array of ids".to_owned();
            self.wrong("generation_config.json", reason)
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
                .filter(|(_, token)| token.special && is_end_token(&token.content, &names))
                .map(|(id, _)| *id),
        );
        Ok(end)
    }

    /// `chat_template.jinja` if it is present, with `additional_chat_templates/tool_use.jinja`; otherwise `chat_template`
    /// of `chat_template.json`, then of `config`: a string, or a list of named templates, of which `default` and
    /// `tool_use` are taken.
    fn chat_templates(&self, config: &Map<String, Value>) -> Result<Templates, ArtifactError> {
        if let Some(chat) = self.text("chat_template.jinja")? {
            return Ok(Templates {
                chat: Some(chat),
                tools: self.text("additional_chat_templates/tool_use.jinja")?,
            });
        }
        let file = "chat_template.json";
        match self.object(file)?.get("chat_template") {
            Some(template) => self.listed_templates(file, template),
            None => match config.get("chat_template") {
                Some(template) => self.listed_templates("tokenizer_config.json", template),
                None => Ok(Templates::default()),
            },
        }
    }

    fn listed_templates(&self, file: &str, template: &Value) -> Result<Templates, ArtifactError> {
        let named = |templates: &[Value], name: &str| {
            let found = templates.iter().find(|template| template["name"] == name)?;
            found["template"].as_str().map(str::to_owned)
        };
        match template {
            Value::Null => Ok(Templates::default()),
            Value::String(template) => Ok(Templates {
                chat: Some(template.clone()),
                tools: None,
            }),
            Value::Array(templates) => {
                let chat = named(templates, "default").ok_or_else(|| {
                    let reason =
                        "chat_template is a list; it should have an entry named default with a template";
                    self.wrong(file, reason.to_owned())
                })?;
                Ok(Templates {
                    chat: Some(chat),
                    tools: named(templates, "tool_use"),
                })
            }
            _ => Err(self.wrong(file, "chat_template should be a string or a list".to_owned())),
        }
    }

    /// The text of the template `name`; `None` if the file is absent.
    fn text(&self, name: &str) -> Result<Option<String>, ArtifactError> {
        let Some(bytes) = self.optional(name, MAX_TEMPLATE_BYTES)? else {
            return Ok(None);
        };
        String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| self.wrong(name, "the file is not UTF-8".to_owned()))
    }

    /// The format in which engines write the model's chats by code, if they do.
    fn coded_chat(&self, tokenizer: &Tokenizer) -> Result<Option<CodedChat>, ArtifactError> {
        let config = self.object("config.json")?;
        let architectures = config.get("architectures").and_then(Value::as_array);
        let architectures: Vec<&str> = architectures
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let model_type = config.get("model_type").and_then(Value::as_str);
        if let Some(coded) = CodedChat::of_model(model_type, &architectures) {
            return Ok(Some(coded));
        }
        if self.path("tekken.json").is_file() {
            return Ok(Some(CodedChat::MistralCommon));
        }
        // A folder of the tokenizer alone has no `config.json`.
        if model_type.is_some() {
            return Ok(None);
        }
        let added = tokenizer.get_added_tokens_decoder();
        let names: Vec<&str> = added.values().map(|token| &*token.content).collect();
        Ok(CodedChat::of_tokens(&names))
    }

    fn wrong(&self, name: &str, reason: String) -> ArtifactError {
        ArtifactError::Json {
            path: self.path(name),
            reason,
        }
    }
}

#[cfg(test)]
mod tests;
