//! A request, as the HTTP server hands it to the router.

use bytes::Bytes;
use signalbox_policy_host::RequestKeys;
use signalbox_protocol::GenerateRequest;

use crate::roster::PromptForm;

/// One request to route.
#[derive(Debug)]
pub struct RouteRequest {
    /// The form that the request was made ready for: [`ModelView::form`](crate::ModelView::form). Only workers that read
    /// prompts in this form get it.
    pub form: PromptForm,
    /// What to generate; `deadline_ms` counts from the call of [`ReplicaHandle::route`](crate::ReplicaHandle::route).
    pub generate: GenerateRequest,
    /// Token ids of the prompt. Empty if they are unknown: then no KV block of the prompt is looked up.
    pub tokens: Vec<u32>,
    /// About how many tokens the engine computes beside `tokens`: those of a prompt with unknown tokens, or of further
    /// prompts. They count as load only.
    pub unhashed_tokens: u32,
    /// Most tokens of one choice, as the client set it; `None` where a default fills it in. `generate` has the limit that fits
    /// into the model's context.
    pub max_output_tokens: Option<u32>,
    /// The client's body, for engines that read it themselves.
    pub body: Bytes,
    /// Hashes of what the client names; those of the LoRA adapter and the cache salt are taken from `generate`.
    pub keys: RequestKeys,
    /// Whether the answer is to say in words why its worker has the request.
    pub explained: bool,
    /// The same request, made ready for the other forms that workers of the model read. Usually there is none.
    pub other_forms: Vec<Self>,
}
