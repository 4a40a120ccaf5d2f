//! The worker: an engine that routers reach over the request plane.
//!
//! A worker process runs one real engine, or many simulated ones. The modules, in the order in which a request passes
//! them:
//!
//! - [`service`]: starts a worker, answers the calls of routers, and drains the worker.
//! - [`backend`]: the trait of what computes the answers.
//! - [`runner`]: the thread that steps engines. Requests go in, pieces of answers come out.
//! - [`engine`]: the trait of an engine. [`sim`] implements it without a GPU.
//! - [`grammar`]: which tokens may follow, where an answer obeys a schema or grammar.
//! - [`token_limits`]: which tokens a sequence must not generate.
//! - [`step_rates`]: how fast an engine computes, as its load reports say.
//! - [`block_pool`]: the KV blocks of an engine and their contents.
//! - [`openai`]: drives an engine next door in place of an engine of this crate.
//! - [`hub`]: fetches the tokenizer of such an engine, if no file of it is on the machine.
//! - [`answer`]: writes the bytes of OpenAI answers.

pub mod answer;
pub mod backend;
pub mod block_pool;
pub mod engine;
pub mod grammar;
mod http_client;
pub mod hub;
#[cfg(any(test, feature = "llama"))]
pub mod llama;
pub mod openai;
pub mod runner;
pub mod service;
pub mod sim;
pub mod step_rates;
pub mod token_limits;
