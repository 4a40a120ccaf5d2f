//! The errors of model files and of clients' texts.

use std::io;
use std::path::PathBuf;

use serde_json::Value as Json;
use signalbox_protocol::WireError;

/// Why a model's tokenizer or chat template cannot be used. Every message names the file or key at fault.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
    /// The file does not begin with `GGUF`.
    #[error("{} is not a GGUF file: it begins with {found:?} instead of \"GGUF\"", path.display())]
    NotGguf {
        /// The file.
        path: PathBuf,
        /// The file's first bytes, escaped to be printable.
        found: String,
    },
    /// The GGUF version is not supported.
    #[error("{} has GGUF version {version}; supported are versions 2 and 3, little-endian", path.display())]
    GgufVersion {
        /// The file.
        path: PathBuf,
        /// The version that the file states.
        version: u32,
    },
    /// The file ends inside its metadata, most often because a download broke off.
    #[error("{} is truncated: it ends at byte {bytes}, inside {part}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The file's length in bytes.
        bytes: u64,
        /// The part that is incomplete.
        part: String,
    },
    /// The metadata contradicts itself or exceeds a bound.
    #[error("{} has invalid GGUF metadata: {reason}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is invalid, with the key's name.
        reason: String,
    },
    /// A required metadata key is absent.
    #[error("{} has no metadata key {key:?}, which is required", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key's full name.
        key: String,
    },
    /// The value of a metadata key has the wrong type.
    #[error("{}: metadata key {key:?} is {found}; it should be {expected}", path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The key's full name.
        key: String,
        /// The type that the value should have.
        expected: &'static str,
        /// The type that the value has.
        found: &'static str,
    },
    /// The tokenizer's family, its way to split words or its decoder is not implemented.
    #[error("{key} {found:?} is not supported; supported are: {supported}")]
    Unsupported {
        /// The metadata key, or the place in a file.
        key: String,
        /// The value found there.
        found: String,
        /// The supported values.
        supported: String,
    },
    /// A JSON file of a model folder has the wrong content.
    #[error("{}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// A part of the model's files is larger than its bound.
    #[error("{part} has {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// The part.
        part: String,
        /// The part's size in bytes.
        bytes: u64,
        /// The bound in bytes.
        limit: u64,
    },
    /// The bytes are no artifacts container, or a damaged one.
    #[error("not a valid container of model artifacts: {0}")]
    Container(String),
    /// The tokenizer's definition is invalid.
    #[error("the tokenizer cannot be loaded: {0}")]
    Tokenizer(String),
    /// The chat template does not compile.
    #[error("the chat template cannot be compiled: {0}")]
    Template(String),
}

/// Why a text cannot become tokens, or tokens text. Clients read the messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The client's messages have the wrong shape, or the chat template refuses them (`raise_exception`).
    #[error("{message}")]
    Template {
        /// What is wrong and what would be right.
        message: String,
        /// The request's parameter at fault, such as `messages[2].content`, if it is known.
        param: Option<String>,
    },
    /// The engine may render this prompt, and this crate cannot: the template needs what the template engine here does
    /// not have, the engine renders in code, or the prompt has parts other than text. The client is not at fault.
    #[error("{message}")]
    Unrenderable {
        /// What is missing.
        message: String,
        /// The request's parameter that needs it, if it is known.
        param: Option<String>,
    },
    /// The model is a base model: it continues text and has no chat template.
    #[error("this model has no chat template; use /v1/completions")]
    NoTemplate,
    /// The text has more tokens than the caller takes. It was not encoded.
    #[error("the prompt has at least {least} tokens, which is too many")]
    TooLong {
        /// The fewest tokens that the text can have.
        least: usize,
    },
    /// The tokenizer refused the text, or a token does not exist.
    #[error("{0}")]
    Encode(String),
}

impl TextError {
    /// The error for a wrong parameter.
    pub(crate) fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Template {
            message: message.into(),
            param: Some(param.into()),
        }
    }

    /// The error for a prompt that only the engine can render.
    pub(crate) fn unrenderable(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Unrenderable {
            message: message.into(),
            param: Some(param.into()),
        }
    }

    /// Whether the prompt may be right although it cannot be rendered here. A router that serves an engine which reads
    /// requests itself routes such a request without the prompt's tokens instead of refusing it.
    pub fn is_unrenderable(&self) -> bool {
        matches!(self, Self::Unrenderable { .. })
    }

    /// The request's parameter at fault, as the client spelled it, if it is known.
    pub fn param_name(&self) -> Option<&str> {
        match self {
            Self::Template { param, .. } | Self::Unrenderable { param, .. } => param.as_deref(),
            Self::NoTemplate => Some("messages"),
            Self::Encode(_) | Self::TooLong { .. } => None,
        }
    }
}

impl From<TextError> for WireError {
    fn from(error: TextError) -> Self {
        let kind = signalbox_protocol::ErrorKind::InvalidRequest;
        Self {
            kind,
            message: error.to_string(),
            param: error.param_name().map(str::to_owned),
            retry_after_s: None,
            engine: None,
        }
    }
}

/// The type of a JSON value, for error messages.
pub(crate) fn json_type(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(text) if text.is_empty() => "an empty string",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}
