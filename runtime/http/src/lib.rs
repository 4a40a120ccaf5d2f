//! The APIs of OpenAI, Anthropic and the engines, and the admin API, over HTTP.
//!
//! A request is read, parsed, tokenised, routed and streamed on the thread that accepted it, which has a router replica
//! of its own. No token of an answer crosses threads here. Only a large body is parsed and tokenised on another thread. This
//! crate promises:
//!
//! - Every request costs bounded memory and time. Its answer comes from the model, or is an error in the shape of the
//!   route's API that names what is wrong and what would be right.
//! - No request holds an HTTP thread for longer than 50 ms. `signalbox_http_step_seconds` measures it.
//! - When a client closes its connection, its request is cancelled at once.
//! - Only the parameters that routing and sampling need are read here; the body is forwarded unchanged.
//! - A request to an engine that reads bodies itself is refused here only if its body is no JSON object or names no
//!   served model. A prompt whose KV blocks cannot be known is routed without them, and counted.
//!
//! ```text
//! server ─▶ listener (a connection's limits) ─▶ routes ─▶ generate ─▶ body ─▶ prepare_pool
//!                                                 │                              │
//!          ┌▶ checked ─▶ openai (check) ┐         │                              ▼       (a response is a chat: responses_chat)
//!          │                            ├◀───────────────────────────────── read_request
//!          └▶ forwarded (lenient) ──────┘─▶ prepared ─▶ prompt_router (the router replica, once a prompt)
//!                                ─▶ joined_answer, response_answer, late_answer ─▶ answer, document (bytes out)
//!                                     routes ─▶ models, health, openapi
//!                                                 └▶ admin (guard, policies, fleet)
//!
//! error, dialect: make every error's body
//! ```

mod admin;
mod answer;
mod begun_answer;
#[cfg(feature = "bench-support")]
pub mod bench_support;
mod body;
mod checked;
mod client_keys;
mod config;
mod connection;
mod connection_limits;
mod cors;
mod dialect;
mod document;
mod error;
mod every_form;
mod explained;
mod forwarded;
mod frontend;
mod generate;
mod health;
mod joined_answer;
mod late_answer;
mod listener;
mod metrics;
mod models;
mod openai;
mod openapi;
mod prepare_pool;
mod prepared;
mod prompt_router;
mod read_request;
mod response_answer;
mod responses_chat;
mod routes;
mod running_answers;
mod server;
mod slashes;
mod tokenizer_calls;
mod traffic;
mod worker_status;

#[cfg(test)]
mod tests;

pub use admin::AdminToken;
pub use config::HttpConfig;
pub use metrics::HISTOGRAM_BUCKETS;
pub use server::{HttpError, HttpServer, RunningHttp};
pub use worker_status::{WorkerReadiness, WorkerStatusServer};
