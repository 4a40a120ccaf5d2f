//! Text to tokens and back, for one model at a time.
//!
//! A router needs the tokens of a prompt to find the workers that hold its KV blocks, so this crate is on the path of
//! every request. The crate promises:
//!
//! - The tokens are those the model was trained on (checked against llama.cpp and `transformers`).
//! - The tokens of a chat are those that the engine computes from the same request, or an error says that they cannot be
//!   computed here ([`TextError::Unrenderable`]). Engines prepare messages in different ways: [`MessagePreparation`].
//! - Decoding never loses, repeats or splits a character.
//! - Every input of a client gives a result or a [`TextError`] that names the parameter at fault.
//! - A damaged model file gives an [`ArtifactError`], never a panic.
//!
//! The types, in the order they are used:
//!
//! - [`ModelArtifacts`]: the tokenizer and chat template of a GGUF file or Hugging Face folder, as bytes with a digest.
//! - [`ModelText`]: loaded artifacts. It renders chats, encodes and decodes.
//! - [`ChatPrompt`]: the parts of a chat request that become its prompt.
//! - [`TokenDecoder`]: turns the tokens of a generation into text as they arrive.
//! - [`GgufMetadata`]: all metadata of a GGUF file.
//!
//! The crate has no notion of requests, workers or engines.

mod artifacts;
mod byte_level;
mod chat;
mod decoder;
mod definition;
mod encoder;
mod error;
mod gguf;
mod hf_folder;
mod least_tokens;
mod messages;
mod numbers;
mod pieces;
mod preparation;
mod renderer;
mod sentence_piece;
mod template;
mod text;
mod tiktoken;
mod tools;
mod values;

pub use artifacts::{ModelArtifacts, SpecialToken, SpecialTokens};
pub use chat::ChatPrompt;
pub use decoder::TokenDecoder;
pub use error::{ArtifactError, TextError};
pub use gguf::{GgufMetadata, GgufValue, read_gguf_metadata};
pub use preparation::{CodedChat, MessagePreparation};
pub use text::ModelText;
