//! Text to tokens and back, for one model at a time.
//!
//! A router must know a prompt's tokens before it can say which worker holds them, so this is on the path of every request.
//! The crate promises: the tokens are those the model was trained on (checked against llama.cpp and `transformers`);
//! decoding never loses, repeats or tears a character; whatever a client sends ends in an answer or in a
//! [`TextError`] that names the place; and a model's files, however damaged, end in an [`ArtifactError`].
//!
//! - [`ModelArtifacts`]: tokenizer and chat template out of a GGUF or a Hugging Face folder, as bytes with a digest.
//! - [`ModelText`]: those loaded. Renders chats, encodes, decodes.
//! - [`TokenDecoder`]: a generation's tokens to text as they come.
//! - [`GgufMetadata`]: everything else the head of a GGUF says about its model.
//!
//! It knows nothing of requests, workers or engines.

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
