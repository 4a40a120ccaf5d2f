//! What can be wrong with a model's files, and with what a client wants said.

use std::io;
use std::path::PathBuf;

use signalbox_protocol::WireError;

/// Why a model's tokenizer or template cannot be used. Every message names the file or key at fault.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The file system refused; the source says why.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or folder asked for.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The file does not begin as GGUF files do.
    #[error("{} is not a GGUF file: it begins with {found:?} instead of \"GGUF\"", path.display())]
    NotGguf {
        /// The file read.
        path: PathBuf,
        /// Its first bytes, made printable.
        found: String,
    },
    /// A GGUF of a version this reader does not know.
    #[error("{} is GGUF version {version}; versions 2 and 3, little-endian, are understood", path.display())]
    GgufVersion {
        /// The file read.
        path: PathBuf,
        /// The version it states.
        version: u32,
    },
    /// The file ends inside its metadata: a download that broke off, most often.
    #[error("{} is truncated: it ends at byte {bytes}, inside {what}", path.display())]
    Truncated {
        /// The file read.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The part that is not whole.
        what: String,
    },
    /// The metadata contradicts itself or passes a bound.
    #[error("{} has unsound GGUF metadata: {what}", path.display())]
    Gguf {
        /// The file read.
        path: PathBuf,
        /// What is unsound, with the key's name.
        what: String,
    },
    /// A key that is needed is absent.
    #[error("{} has no metadata key {key:?}, which is needed here", path.display())]
    MissingKey {
        /// The file read.
        path: PathBuf,
        /// The key's full name.
        key: String,
    },
    /// A key holds another type than its meaning asks for.
    #[error("{}: metadata key {key:?} should be {expected}, and is {found}", path.display())]
    WrongType {
        /// The file read.
        path: PathBuf,
        /// The key's full name.
        key: String,
        /// The type it should have.
        expected: &'static str,
        /// The type it has.
        found: &'static str,
    },
    /// A tokenizer family, or a way to cut text into words, that is not implemented.
    #[error("{key} {found:?} is not supported; supported are: {supported}")]
    Unsupported {
        /// Where it is said: a metadata key, or a place in a file.
        key: String,
        /// What is said there.
        found: String,
        /// What could stand there instead.
        supported: String,
    },
    /// A JSON file of a model folder is not what it should be.
    #[error("{}: {what}", path.display())]
    Json {
        /// The file read.
        path: PathBuf,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// Something is larger than its bound.
    #[error("{what} has {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// What it is.
        what: String,
        /// Its size in bytes.
        bytes: u64,
        /// The bound in bytes.
        limit: u64,
    },
    /// Bytes that are no artifacts container, or a damaged one.
    #[error("not usable as model artifacts: {0}")]
    Container(String),
    /// The tokenizer's definition is not sound.
    #[error("the tokenizer cannot be loaded: {0}")]
    Tokenizer(String),
    /// The chat template does not compile.
    #[error("the chat template cannot be compiled: {0}")]
    Template(String),
}

/// Why a text cannot become tokens, or tokens text. The messages are whole sentences: clients read them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// The client's messages do not fit: a wrong shape, or the template refuses them (`raise_exception`).
    #[error("{message}")]
    Template {
        /// What is wrong and what would be right.
        message: String,
        /// The request's parameter at fault, such as `messages[2].content`, where it is known.
        param: Option<String>,
    },
    /// A base model: it continues text and knows no turns.
    #[error("This model has no chat template; use /v1/completions.")]
    NoTemplate,
    /// The tokenizer refused the text, or a token does not exist.
    #[error("{0}")]
    Encode(String),
}

impl TextError {
    /// A part of the messages that is wrong in itself.
    pub(crate) fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Template {
            message: message.into(),
            param: Some(param.into()),
        }
    }

    /// The request's parameter at fault, as the client spelled it, where it is known.
    pub fn param_name(&self) -> Option<&str> {
        match self {
            Self::Template { param, .. } => param.as_deref(),
            Self::NoTemplate => Some("messages"),
            Self::Encode(_) => None,
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
        }
    }
}
