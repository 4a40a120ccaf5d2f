//! What computes the answers of a worker: an engine in this process, or an adapter to an engine next door.
//!
//! The service (`service.rs`) answers the calls of routers and hands each generation to the worker's [`Backend`]. It
//! reads the worker's load, parity and LoRA adapters from watches, and waits for the end of the backend. Everything
//! else about an engine is behind this trait.

use std::{fmt::Debug, sync::Arc};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use signalbox_protocol::{Ability, GenerateRequest, LoadReport, LoraAdapter, Parity, WorkerCapacity};
use signalbox_request_plane::Responder;
use tokio::sync::watch;

/// The properties of a backend that the worker's card carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendInfo {
    /// The kind of engine, as in [`WorkerCard::engine`](signalbox_protocol::WorkerCard::engine).
    pub engine: String,
    /// The engine's version; empty if it states none.
    pub engine_version: String,
    /// Whether the engine reads the client's body itself.
    pub reads_body: bool,
    /// Whether the worker continues answers that another worker began.
    pub continues_answers: bool,
    /// What the worker honours that earlier workers ignored.
    pub abilities: Vec<Ability>,
    /// Whether the worker publishes KV events.
    pub kv_events: bool,
    /// Tokens per KV block, at least 1.
    pub block_size: u32,
    /// Most tokens of prompt and answer together.
    pub context_length: u32,
    /// Limits on KV blocks and on running and waiting sequences.
    pub capacity: WorkerCapacity,
}

/// A request for a backend, with its bulk parts.
#[derive(Debug)]
pub struct BackendRequest {
    /// What to generate.
    pub generate: GenerateRequest,
    /// The router's tokens of the prompt; empty where a route has no prompt or the router cannot render it.
    pub tokens: Vec<u32>,
    /// The client's JSON, unchanged.
    pub body: Bytes,
}

/// Computes the answers of one worker.
pub trait Backend: Debug + Send + Sync + 'static {
    /// Takes a request without waiting, and answers through `responder`, now or later. Every request ends exactly once:
    /// with its answer, with an error, or because its caller closed the stream.
    fn generate(&self, request: BackendRequest, responder: Responder);

    /// The current load. The watch closes when the backend has ended.
    fn load(&self) -> watch::Receiver<LoadReport>;

    /// How exact the routers' knowledge of the worker's KV cache is.
    fn parity(&self) -> watch::Receiver<Parity>;

    /// The LoRA adapters that requests may name now. Without this method, there are none, and never will be.
    fn adapters(&self) -> watch::Receiver<Arc<[LoraAdapter]>> {
        watch::channel(Arc::from([])).1
    }

    /// Returns the reason when the backend has failed and will answer no more requests. Never returns if it is stopped
    /// before.
    fn failed(&self) -> BoxFuture<'static, String>;

    /// Stops the backend and waits for that. Open requests fail.
    fn stop(&self) -> BoxFuture<'static, ()>;
}
