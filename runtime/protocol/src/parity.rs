//! How exact the knowledge of a worker's KV cache is.

use serde::{Deserialize, Serialize};

/// Whether routers may rely on a worker's KV events and on their own tokens of a prompt, as the worker judges it from the
/// traffic: router's tokens against the engine's, credited KV blocks against the tokens that the engine took from its
/// cache, and the arrival of events.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parity {
    /// The verdict.
    pub state: ParityState,
    /// Why it is not `Exact`, for a person: what was observed, and what mends it. Empty for `Exact`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cause: String,
}

/// The verdict on a worker's parity, from the best state to the worst.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParityState {
    /// Tokens are equal, credited KV blocks are held, events arrive.
    #[default]
    Exact,
    /// Routing by KV events goes on, and part of it is wrong or unknown.
    Degraded,
    /// KV events cannot be relied on, or there are none: routers use what they learn from their own decisions.
    Fallback,
}

impl ParityState {
    /// The name in JSON, in metrics and in the header `x-signalbox-kv`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Degraded => "degraded",
            Self::Fallback => "fallback",
        }
    }
}

impl Parity {
    /// A verdict that is not `Exact`, with its cause.
    pub fn impaired(state: ParityState, cause: impl Into<String>) -> Self {
        Self {
            state,
            cause: cause.into(),
        }
    }
}
