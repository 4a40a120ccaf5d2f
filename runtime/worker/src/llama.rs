//! The real engine: a GGUF model computed by llama.cpp in this process.
//!
//! llama.cpp does the arithmetic, and what it offers of a KV cache is a pool of *cells*, one a token, each of which
//! may belong to many *sequence ids*. The rest is here: which sequences run, what each step computes
//! (`schedule`), and which KV block lies in which cells, so that a prompt whose beginning was computed before is
//! computed only from there on (`cells`). Both are pure and are tested without a model; `engine` carries out what
//! they say.
//!
//! Promises: a prompt token is counted as cached when its KV was found, never when it was computed; the KV events,
//! replayed, give exactly the blocks that a prompt could reuse; with the same seed and prompt the answer is the same,
//! as far as llama.cpp's arithmetic is: its sums depend in their last digits on how many tokens are computed together,
//! so that with others running, or another share of the prompt cached, a near tie may go the other way.

mod cells;
mod schedule;

#[cfg(feature = "llama")]
mod config;
#[cfg(feature = "llama")]
mod engine;
#[cfg(feature = "llama")]
mod memory;
#[cfg(feature = "llama")]
mod model;
#[cfg(feature = "llama")]
mod sampling;

#[cfg(feature = "llama")]
pub use config::{LlamaConfig, LlamaError};
#[cfg(feature = "llama")]
pub use engine::LlamaEngine;
#[cfg(feature = "llama")]
pub use model::ModelFacts;
