//! What a worker says of itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{WorkerEpoch, WorkerId};

/// A worker's description: sent in the request plane's hello and published with discovery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerCard {
    /// Its name, stable over restarts.
    pub id: WorkerId,
    /// Which life of the worker this is.
    pub epoch: WorkerEpoch,
    /// The model it serves, as clients ask for it.
    pub model: String,
    /// `host:port` of its request plane, or `nats:<worker>` where it is reached over NATS.
    pub address: String,
    /// The engine behind it: `llama`, `sim`, `openai`.
    pub engine: String,
    /// Tokens per KV block.
    pub block_size: u32,
    /// Most tokens of prompt and answer together.
    pub context_length: u32,
    /// SHA-256, in hex, of the model's tokenizer and chat template; the worker serves them under it.
    pub artifacts_digest: String,
    /// What it does in a disaggregated deployment.
    pub role: WorkerRole,
    /// How much it holds.
    pub capacity: WorkerCapacity,
    /// Whether it publishes KV events. Without them routers learn from their own decisions.
    pub kv_events: bool,
    /// The operator's own words about it: zone, hardware, price. At most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// What a worker does with a request.
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

/// How much a worker holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerCapacity {
    /// KV blocks on the device.
    pub kv_blocks: u32,
    /// Sequences it decodes at once.
    pub max_sequences: u32,
    /// Requests it lets wait beyond those before it answers "overloaded".
    pub max_waiting: u32,
}
