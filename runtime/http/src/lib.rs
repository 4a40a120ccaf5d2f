//! OpenAI's API and the admin API over HTTP.
//!
//! A request is read, parsed, tokenised, routed and streamed on the thread that accepted it, which has a router replica
//! of its own. No token of an answer crosses threads here. This crate promises:
//!
//! - Every request costs bounded memory and time. Its answer comes from the model, or is an error in OpenAI's shape that
//!   names what is wrong and what would be right.
//! - When a client closes its connection, its request is cancelled at once.
//! - Only the parameters that routing and sampling need are read here; the body is forwarded unchanged.
//!
//! ```text
//! server ─▶ routes ─▶ generate ─▶ openai (parse, check) ─▶ router replica ─▶ answer (bytes out)
//!              ├────▶ models, health
//!              └────▶ admin (guard, policies, fleet)          error: makes every error's body
//! ```

mod admin;
mod answer;
#[cfg(feature = "bench-support")]
pub mod bench_support;
mod body;
mod config;
mod error;
mod frontend;
mod generate;
mod health;
mod metrics;
mod models;
mod openai;
mod routes;
mod server;
mod traffic;

#[cfg(test)]
mod tests;

pub use config::HttpConfig;
pub use metrics::HISTOGRAM_BUCKETS;
pub use server::{HttpError, HttpServer, RunningHttp};
