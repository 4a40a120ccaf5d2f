//! What a policy receives and returns beside the candidates, in types of the host: no code outside this crate depends
//! on the shape of the WIT types.

use serde::{Deserialize, Serialize};

/// The request as a policy receives it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestFeatures {
    /// Tokens in the prompt, after the chat template.
    pub prompt_tokens: u32,
    /// Whole KV blocks that the prompt fills: the most that a worker's overlap can be.
    pub prompt_blocks: u32,
    /// Tokens in one KV block.
    pub block_size: u32,
    /// Most output tokens of all choices together: the client's limit or the default, times the choices.
    pub expected_output_tokens: u32,
    /// Higher is more urgent; 0 is ordinary.
    pub priority: i32,
    /// Hash of the client's session or user; 0 for none.
    pub session: u64,
    /// Hash of the LoRA adapter; 0 for the base model.
    pub lora: u64,
    /// A fresh random number for this decision: a policy has no other source of randomness.
    pub seed: u64,
    /// Decisions that this router made for this model before this one.
    pub decision_number: u64,
    /// Other routers whose load counts in the columns of all routers. A policy receives it as a signal.
    #[serde(default)]
    pub other_routers: u32,
}

/// A policy's decision: a cost for each candidate (the lowest wins, `+inf` rules a candidate out), or a pick.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// A cost for each candidate: never NaN or `-inf`, and at least one finite. Empty when the policy picked.
    pub costs: Vec<f32>,
    /// The row that the policy picked.
    pub pick: Option<u32>,
}

/// What became of a request, for policies that learn. Times are milliseconds from the decision.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// The number of the worker that had the request, as in [`Candidates::worker`](crate::Candidates::worker).
    pub worker: u32,
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
