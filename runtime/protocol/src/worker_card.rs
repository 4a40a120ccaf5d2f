//! The description that a worker publishes of itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{WorkerEpoch, WorkerId};

/// The description of a worker: sent in the request plane's hello and published with discovery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerCard {
    /// The worker's name, stable over restarts.
    pub id: WorkerId,
    /// The epoch of this incarnation.
    pub epoch: WorkerEpoch,
    /// The model, under the name that clients use.
    pub model: String,
    /// `host:port` of the request plane, or `nats:<worker>` for a worker reached over NATS.
    pub address: String,
    /// The kind of engine: `llama`, `sim`, `vllm`, `sglang`, or `openai` for another one that speaks the OpenAI API.
    pub engine: String,
    /// The engine's version, if it states one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub engine_version: String,
    /// Whether the engine reads the client's body itself. Routers then check only what routing needs, and also send it
    /// requests of other routes than chats and completions.
    #[serde(default)]
    pub reads_body: bool,
    /// Whether the worker continues answers that another worker began ([`Continuation`](crate::Continuation)).
    #[serde(default)]
    pub continues_answers: bool,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Most tokens of prompt and answer together; [`u32::MAX`] if the engine does not state it.
    pub context_length: u32,
    /// SHA-256, in hex, of the model's tokenizer and chat template. Routers fetch them from the worker by this digest.
    pub artifacts_digest: String,
    /// The worker's part in a disaggregated deployment.
    pub role: WorkerRole,
    /// What the worker can hold.
    pub capacity: WorkerCapacity,
    /// Whether the worker publishes KV events. If not, each router learns from its own decisions what the worker holds.
    pub kv_events: bool,
    /// Labels set by the operator, such as zone, hardware or price. At most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The phases of a request that a worker computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerRole {
    /// Prefill and decode.
    #[default]
    Aggregated,
    /// Prefill only.
    Prefill,
    /// Decode only.
    Decode,
}

/// What a worker can hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerCapacity {
    /// KV blocks on the device.
    pub kv_blocks: u32,
    /// Sequences decoded at the same time.
    pub max_sequences: u32,
    /// Requests that may wait beyond those. The worker fails more requests as overloaded.
    pub max_waiting: u32,
}
