//! The llama engine: llama.cpp computes a GGUF model in this process.
//!
//! llama.cpp offers a pool of KV *cells*, one per token. A cell may belong to many *sequence ids*. This module adds the
//! rest. `schedule` decides which sequences run and what each step computes. `cells` maps KV blocks to cells, so that a
//! prompt whose beginning is cached is computed only from there on. Both are pure and tested without a model. `engine`
//! carries out their decisions on llama.cpp.
//!
//! The engine promises:
//!
//! - A prompt token counts as cached only if its KV was found and not computed.
//! - The KV events, replayed, give exactly the blocks that a prompt can reuse.
//! - The same seed and prompt give the same answer, within llama.cpp's precision. The last digits of its sums depend on
//!   how many tokens are computed together. With other sequences running, or another part of the prompt cached, a near
//!   tie between two tokens may be decided the other way.

mod cells;
mod schedule;

#[cfg(feature = "llama")]
mod config;
#[cfg(feature = "llama")]
mod engine;
#[cfg(feature = "llama")]
mod error;
#[cfg(feature = "llama")]
mod facts;
#[cfg(feature = "llama")]
mod logits;
#[cfg(feature = "llama")]
mod memory;
#[cfg(feature = "llama")]
mod model;
#[cfg(feature = "llama")]
mod sampling;

#[cfg(feature = "llama")]
pub use config::LlamaConfig;
#[cfg(feature = "llama")]
pub use engine::LlamaEngine;
#[cfg(feature = "llama")]
pub use error::LlamaError;
#[cfg(feature = "llama")]
pub use facts::ModelFacts;
