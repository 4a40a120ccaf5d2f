//! What crosses a process boundary, and nothing else.
//!
//! Routers and workers are separate processes, perhaps of different releases. Everything they say to each other
//! (over TCP, NATS or etcd) is spelled here once, so that both sides agree by construction. A type that no other
//! process ever sees belongs in the crate that uses it.
//!
//! - [`WorkerId`], [`WorkerEpoch`], [`RequestId`]: who is who.
//! - [`BlockHasher`], [`SequenceHash`]: how tokens become KV block identities.
//! - [`Call`], [`GenerateRequest`], [`SamplingParams`]: the work asked of a worker.
//! - [`StreamSummary`], [`WireError`]: how it ended.
//! - [`WorkerCard`]: what a worker says of itself.
//! - [`KvEvent`], [`KvEventBatch`]: what its KV cache holds now.
//! - [`LoadReport`], [`ReplicaLoad`], [`ReplicaMessage`]: how busy it is, by itself, a router and all routers.
//! - [`RouterCard`]: what a router says of itself.
//! - [`PlaneStatus`]: how NATS and etcd are doing.

mod block;
mod call;
mod error;
mod generate;
mod ids;
mod kv_event;
mod load;
mod plane_status;
mod replica_message;
mod router_card;
mod worker_card;

pub use block::{BlockHasher, SequenceHash};
pub use call::Call;
pub use error::{ErrorKind, WireError};
pub use generate::{AnswerFormat, FinishReason, GenerateRequest, SamplingParams, StreamSummary};
pub use ids::{InvalidWorkerId, MAX_NAME_LEN, RequestId, WorkerEpoch, WorkerId, is_name};
pub use kv_event::{CacheTier, KvEvent, KvEventBatch, KvSnapshot};
pub use load::{LoadReport, ReplicaLoad, WorkerReport};
pub use plane_status::{PlaneState, PlaneStatus};
pub use replica_message::{ReplicaMessage, ReplicaUpdate, WorkerShare};
pub use router_card::{RouterCard, RouterId};
pub use worker_card::{WorkerCapacity, WorkerCard, WorkerRole};
