//! How busy a worker is, in its own words.

use serde::{Deserialize, Serialize};

/// A worker's own count of its work. Routers add what they have sent since.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Sequences in prefill or decode.
    pub running: u32,
    /// Requests not started.
    pub waiting: u32,
    /// KV blocks of running sequences, shared ones counted once.
    pub active_kv_blocks: u32,
    /// KV blocks that hold anything, cached ones included.
    pub used_kv_blocks: u32,
    /// KV blocks there are.
    pub total_kv_blocks: u32,
}

/// What a worker answers to [`Call::WatchLoad`](crate::Call::WatchLoad), in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// How busy it is.
    #[serde(flatten)]
    pub load: LoadReport,
    /// The number its next batch of KV events will have: a router that has long not heard of the one before it
    /// missed something, whatever carries the events.
    #[serde(default)]
    pub next_kv_batch: u64,
}

/// What routers have in flight on a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaLoad {
    /// Prompt tokens yet to be computed.
    pub prefill_tokens: u32,
    /// KV blocks of requests under way.
    pub decode_blocks: u32,
    /// Requests under way.
    pub requests: u32,
}

impl ReplicaLoad {
    /// Both together; what does not fit is cut off.
    pub fn saturating_add(self, other: Self) -> Self {
        Self {
            prefill_tokens: self.prefill_tokens.saturating_add(other.prefill_tokens),
            decode_blocks: self.decode_blocks.saturating_add(other.decode_blocks),
            requests: self.requests.saturating_add(other.requests),
        }
    }

    /// Nothing in flight.
    pub fn is_idle(self) -> bool {
        self == Self::default()
    }
}
