//! OpenAI's API and the admin API over HTTP.
//!
//! A request is read, parsed, tokenised, routed and streamed on the one thread that accepted it, beside that
//! thread's own router replica: no token of an answer crosses threads here. What is promised:
//!
//! - Whatever a client sends, it costs bounded memory and time, and is answered: by the model, or by an error in
//!   OpenAI's shape that names what is wrong and what would be right.
//! - A client that goes away takes its request with it, at once.
//! - Of the request only what routing and sampling need is read here; the body travels on untouched.
//!
//! ```text
//! server ─▶ routes ─▶ generate ─▶ openai (parse, check) ─▶ router replica ─▶ answer (bytes out)
//!              ├────▶ models, health
//!              └────▶ admin (guard, policies, fleet)          error: the only way to an error's body
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
