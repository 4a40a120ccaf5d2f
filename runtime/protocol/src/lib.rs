//! What crosses a process boundary, and nothing else.
//!
//! Routers and workers are separate processes, perhaps of different releases. Everything they send to each other
//! (over TCP, NATS or etcd) is defined here once, so that both sides agree by construction. A type that never leaves
//! its process belongs in the crate that uses it.
//!
//! - [`WorkerId`], [`WorkerEpoch`], [`RequestId`]: names.
//! - [`BlockHasher`], [`SequenceHash`]: how tokens become KV block identities.
//! - [`Call`], [`GenerateRequest`], [`SamplingParams`]: the calls a router makes to a worker.
//! - [`Endpoint`]: the routes of the API whose requests go to workers.
//! - [`StreamSummary`], [`WireError`]: how a call ends.
//! - [`WorkerCard`], [`RouterCard`]: the description that a worker or a router publishes of itself.
//! - [`KvEvent`], [`KvEventBatch`], [`KvSnapshot`]: the KV blocks a worker holds.
//! - [`LoadReport`]: the load of a worker, by its own count.
//! - [`LoraAdapter`]: a LoRA adapter that a worker's engine has loaded.
//! - [`Parity`]: how exact the knowledge of a worker's KV cache is.
//! - [`ReplicaLoad`], [`ReplicaMessage`]: the load that each router has in flight.
//! - [`PlaneStatus`]: the state of the connections to NATS and etcd.

mod block;
mod call;
mod endpoint;
mod error;
mod generate;
mod ids;
mod kv_digest;
mod kv_event;
mod load;
mod lora_adapter;
mod parity;
mod plane_status;
mod replica_message;
mod router_card;
mod worker_card;

pub use block::{BlockHasher, SequenceHash};
pub use call::Call;
pub use endpoint::Endpoint;
pub use error::{EngineError, ErrorKind, WireError};
pub use generate::{
    AnswerFormat, AnswerPart, Constraint, ConstraintKind, Continuation, FinishReason, GenerateRequest,
    SamplingParams, StreamSummary, ToolOutput,
};
pub use ids::{InvalidWorkerId, MAX_NAME_LEN, RequestId, WorkerEpoch, WorkerId, is_name, name_hash};
pub use kv_digest::KvDigest;
pub use kv_event::{CacheTier, KvEvent, KvEventBatch, KvSnapshot};
pub use load::{LoadReport, ReplicaLoad, WorkerReport};
pub use lora_adapter::LoraAdapter;
pub use parity::{Parity, ParityState};
pub use plane_status::{PlaneState, PlaneStatus};
pub use replica_message::{ReplicaMessage, ReplicaUpdate, WorkerShare};
pub use router_card::{RouterCard, RouterId};
pub use worker_card::{Ability, WorkerCapacity, WorkerCard, WorkerRole};
