//! The other side of the planes: an engine, driven over TCP.
//!
//! A worker process owns one engine, or many simulated ones. The pieces, in the order a request meets them:
//!
//! - [`service`]: answers the calls of routers, runs the worker's life from bind to drain.
//! - [`runner`]: the thread of engines: requests in, steps, pieces of answers out.
//! - [`engine`]: what an engine is; [`sim`] simulates one.
//! - [`block_pool`]: which KV block holds what, for the engines.
//! - [`answer`]: the bytes of OpenAI answers.

pub mod answer;
pub mod block_pool;
pub mod engine;
#[cfg(any(test, feature = "llama"))]
pub mod llama;
pub mod runner;
pub mod service;
pub mod sim;
