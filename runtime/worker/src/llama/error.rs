//! The reasons why a llama engine cannot start.

use std::io;
use std::path::PathBuf;

/// Why a llama engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LlamaError {
    /// The file cannot be read.
    #[error("the model {} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file is no GGUF file.
    #[error("{} is not a GGUF file, or its metadata is damaged; give a model in GGUF format", path.display())]
    NotGguf {
        /// The file.
        path: PathBuf,
    },
    /// The GGUF file holds no model that this engine can serve.
    #[error("{} is a {architecture} model: {why}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// `general.architecture`.
        architecture: String,
        /// Why the engine cannot serve the model, and which models it serves.
        why: &'static str,
    },
    /// llama.cpp cannot load the file.
    #[error(
        "llama.cpp cannot load {} (architecture {architecture}): the file is truncated, damaged or needs a newer \
         llama.cpp; llama.cpp logs its reason at level debug",
        path.display()
    )]
    Refused {
        /// The file.
        path: PathBuf,
        /// `general.architecture`.
        architecture: String,
    },
    /// The model and its KV cache do not fit into memory.
    #[error(
        "{} needs about {} MB of memory ({} MB weights, {} MB for {kv_tokens} tokens of KV cache, the rest for \
         computing) and {} MB are available; ask for fewer KV tokens or take a smaller model",
        path.display(), megabytes(*needed), megabytes(*weights), megabytes(*kv), megabytes(*available)
    )]
    TooLittleMemory {
        /// The file.
        path: PathBuf,
        /// Bytes needed in all.
        needed: u64,
        /// Bytes of the weights.
        weights: u64,
        /// Bytes of the KV cache.
        kv: u64,
        /// Tokens of the KV cache that `kv` is for.
        kv_tokens: u32,
        /// Bytes available.
        available: u64,
    },
    /// A setting is out of its range.
    #[error("{0}")]
    Setting(String),
    /// llama.cpp cannot initialise.
    #[error("llama.cpp cannot start: {0}")]
    Start(String),
}

fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
}
