//! A request, as the HTTP server hands it to the router.

use bytes::Bytes;
use signalbox_protocol::GenerateRequest;

/// One request to route.
#[derive(Debug)]
pub struct RouteRequest {
    /// What to generate; `deadline_ms` counts from the call of [`ReplicaHandle::route`](crate::ReplicaHandle::route).
    pub generate: GenerateRequest,
    /// Token ids of the prompt. Empty if they are unknown: then no KV block of the prompt is looked up.
    pub tokens: Vec<u32>,
    /// About how many tokens the engine computes beside `tokens`: those of a prompt with unknown tokens, or of further
    /// prompts. They count as load only.
    pub unhashed_tokens: u32,
    /// The client's body, for engines that read it themselves.
    pub body: Bytes,
    /// Hash of the client's session or user ([`name_hash`](signalbox_protocol::name_hash)); 0 for none.
    pub session: u64,
}
