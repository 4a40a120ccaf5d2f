//! Text to tokens and back, for one model at a time.
//!
//! A router needs the tokens of a prompt to find the workers that hold its KV blocks, so this crate is on the path of
//! every request. The crate promises:
//!
//! - The tokens are those the model was trained on (checked against llama.cpp and `transformers`).
//! - Decoding never loses, repeats or splits a character.
//! - Every input of a client gives a result or a [`TextError`] that names the parameter at fault.
//! - A damaged model file gives an [`ArtifactError`], never a panic.
//!
//! The types, in the order they are used:
//!
//! - [`ModelArtifacts`]: the tokenizer and chat template of a GGUF file or Hugging Face folder, as bytes with a digest.
//! - [`ModelText`]: loaded artifacts. It renders chats, encodes and decodes.
//! - [`TokenDecoder`]: turns the tokens of a generation into text as they arrive.
//! - [`GgufMetadata`]: all metadata of a GGUF file.
//!
//! The crate has no notion of requests, workers or engines.

mod artifacts;
mod byte_level;
mod decoder;
mod definition;
mod encoder;
mod error;
mod gguf;
mod hf_folder;
mod messages;
mod pieces;
mod template;
mod text;

pub use artifacts::{ModelArtifacts, SpecialToken, SpecialTokens};
pub use decoder::TokenDecoder;
pub use error::{ArtifactError, TextError};
pub use gguf::{GgufMetadata, GgufValue, read_gguf_metadata};
pub use text::ModelText;
