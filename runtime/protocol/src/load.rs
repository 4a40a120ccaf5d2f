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
