//! Drives an engine next door: vLLM, SGLang, or another server that speaks the OpenAI API.
//!
//! A worker with this backend, an *adapter*, passes the client's JSON on to the engine and the engine's answer back,
//! byte for byte but for a few members that it adds and takes out again. The files, in the order in which they are
//! used:
//!
//! - `upstream`: the HTTP connection. `probe` waits for the engine and finds out what it is ([`EngineFacts`]).
//! - `token_check`: asks the engine for its tokens of a sample, and compares them with the router's.
//! - [`Engine`]: what the workers of an engine's ranks have in common. `engine_watch` polls it; `engine_phase` decides
//!   whether it still runs, `load` computes its load.
//! - `adapter`: the [`Backend`](crate::backend::Backend). `forward` sends one request, with `request_body` before it and
//!   `answer_stream` or `answer_document` behind it. For an answer that another engine began these are
//!   `continuation_body` and `continued_events`.
//! - [`kv_events`]: the engine's KV events, read over ZeroMQ and published as the worker's own.
//! - `parity`: how exact the routers' knowledge is, from the traffic and the events.

mod adapter;
mod answer_document;
mod answer_stream;
mod continuation_body;
mod continued_events;
mod engine;
mod engine_error;
mod engine_phase;
mod engine_watch;
mod facts;
mod forward;
mod in_flight;
mod json_members;
pub mod kv_events;
mod load;
mod parity;
mod patience;
mod piece_ids;
mod probe;
mod prometheus;
mod request_body;
mod sse;
mod token_check;
mod token_ids;
mod upstream;
mod usage;

pub use self::{
    adapter::start_adapter,
    engine::{Engine, TokenFacts},
    facts::{DEFAULT_BLOCK_SIZE, EngineFacts, EngineFlavour, EventEndpoint, StartTime, StatedFacts},
    probe::{FoundEngine, ProbeError, find_engine},
    token_check::CheckedTokenizer,
    upstream::{Upstream, UpstreamError, UpstreamSetupError, UpstreamUrl, UpstreamUrlError},
};
pub use crate::http_client::AuthoritiesError;
