//! The APIs of OpenAI, Anthropic and the engines, and the admin API, over HTTP.
//!
//! A request is read, parsed, tokenised, routed and streamed on the thread that accepted it, which has a router replica
//! of its own. No token of an answer crosses threads here. This crate promises:
//!
//! - Every request costs bounded memory and time. Its answer comes from the model, or is an error in the shape of the
//!   route's API that names what is wrong and what would be right.
//! - When a client closes its connection, its request is cancelled at once.
//! - Only the parameters that routing and sampling need are read here; the body is forwarded unchanged.
//! - A request to an engine that reads bodies itself is refused here only if its body is no JSON object or names no
//!   served model. A prompt whose KV blocks cannot be known is routed without them, and counted.
//!
//! ```text
//!                          ┌▶ checked ─▶ openai (check) ┐
//! server ─▶ routes ─▶ generate                          ├▶ prepared ─▶ router replica ─▶ answer (bytes out)
//!              │           └▶ forwarded (lenient) ──────┘
//!              ├────▶ models, health
//!              └────▶ admin (guard, policies, fleet)      error, dialect: make every error's body
//! ```

mod admin;
mod answer;
#[cfg(feature = "bench-support")]
pub mod bench_support;
mod body;
mod checked;
mod config;
mod dialect;
mod error;
mod every_form;
mod forwarded;
mod frontend;
mod generate;
mod health;
mod metrics;
mod models;
mod openai;
mod prepared;
mod routes;
mod server;
mod traffic;

#[cfg(test)]
mod tests;

pub use config::HttpConfig;
pub use metrics::HISTOGRAM_BUCKETS;
pub use server::{HttpError, HttpServer, RunningHttp};
