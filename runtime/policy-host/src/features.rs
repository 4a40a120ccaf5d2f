//! What a policy receives and returns beside the candidates, in types of the host: no code outside this crate depends
//! on the shape of the WIT types.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The request as a policy receives it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestFeatures {
    /// Tokens in the prompt, after the chat template.
    pub prompt_tokens: u32,
    /// Whole KV blocks that the prompt fills: the most that a worker's overlap can be.
    pub prompt_blocks: u32,
    /// Tokens in one KV block.
    pub block_size: u32,
    /// Most output tokens of one choice, as the client set it.
    pub max_output_tokens: Option<u32>,
    /// Most output tokens of all choices together: the client's limit or the default, times the choices.
    pub expected_output_tokens: u32,
    /// The choices that the client wants.
    pub choices: u32,
    /// Higher is more urgent; 0 is ordinary.
    pub priority: i32,
    /// How many workers failed the request before.
    pub attempt: u32,
    /// Milliseconds of the router's monotonic clock.
    pub now_ms: u64,
    /// Milliseconds until the request's deadline.
    pub deadline_ms: f32,
    /// Hashes of what the client named.
    pub keys: RequestKeys,
    /// A fresh random number for this decision: a policy has no other source of randomness.
    pub seed: u64,
    /// Decisions that this router made for this model before this one.
    pub decision_number: u64,
    /// Other routers whose load counts in the columns of all routers.
    pub other_routers: u32,
}

/// Hashes of what a client names with its request ([`name_hash`](../signalbox_protocol/fn.name_hash.html)): equal on every
/// router and after every restart. 0 for what it does not name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestKeys {
    /// The conversation, or what stands for it.
    pub session: u64,
    /// The member `user`.
    pub user: u64,
    /// The member `prompt_cache_key`.
    pub cache_key: u64,
    /// The member `safety_identifier`.
    pub safety_identifier: u64,
    /// The header by which clients name their tenant.
    pub tenant: u64,
    /// The LoRA adapter; 0 for the base model.
    pub lora: u64,
    /// The member `cache_salt`.
    pub cache_salt: u64,
    /// How the prompt begins: its first KV blocks.
    pub prefix: u64,
    /// The headers that the operator shows to policies, by their names.
    pub headers: Arc<[(Arc<str>, u64)]>,
}

/// A policy's decision: a cost for each candidate (the lowest wins, `+inf` rules a candidate out), a pick, or a
/// rejection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// A cost for each candidate: never NaN or `-inf`, and at least one finite. Empty otherwise.
    pub costs: Vec<f32>,
    /// The row that the policy picked.
    pub pick: Option<u32>,
    /// The error that the client gets in place of an answer.
    pub rejection: Option<Rejection>,
}

/// An error that a policy answers a request with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// 429 rather than 503.
    pub is_overload: bool,
    /// Seconds after which the client may try again; `None` for no advice.
    pub retry_after_s: Option<u32>,
    /// What the client is told.
    pub reason: String,
}

/// What became of a request, for policies that learn. Times are milliseconds from the decision.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// The key of the worker that had the request, as in [`Candidates::worker_key`](crate::Candidates::worker_key).
    pub worker: u64,
    /// The number of the decision, as in [`RequestFeatures::decision_number`].
    pub decision_number: u64,
    /// Tokens in the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the prompt that the worker found in its KV cache.
    pub cached_tokens: u32,
    /// KV blocks of overlap that the worker had, as the router knew them at the decision.
    pub overlap_blocks: u32,
    /// Output tokens that the worker sent.
    pub output_tokens: u32,
    /// Time to the first output token; 0 when none came.
    pub ttft_ms: f32,
    /// Time to the end of the request.
    pub total_ms: f32,
    /// Whether the request was answered in full.
    pub completed: bool,
}
