//! The LoRA adapters of a worker.

use serde::{Deserialize, Serialize};

/// A LoRA adapter that a worker's engine has loaded: a model of its own to clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoraAdapter {
    /// The name that clients ask for. It is part of the hashes of the adapter's KV blocks.
    pub name: String,
    /// Where the engine loaded it from, if the engine states it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
}
