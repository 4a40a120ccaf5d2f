//! What a policy sees of a request and of the workers, and what it answers: the host's own types, so that nobody
//! outside this crate depends on the shape of the ABI.

use serde::{Deserialize, Serialize};

/// The request as a policy sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestFeatures {
    /// Tokens in the prompt, after the chat template.
    pub prompt_tokens: u32,
    /// Whole KV blocks the prompt fills: the most a worker's overlap can be.
    pub prompt_blocks: u32,
    /// Tokens in one KV block.
    pub block_size: u32,
    /// Output tokens the client allows; 0 when it did not say.
    pub expected_output_tokens: u32,
    /// Higher is more urgent; 0 is ordinary.
    pub priority: i32,
    /// Hash of the client's session or user; 0 for none.
    pub session: u64,
    /// Hash of the LoRA adapter; 0 for the base model.
    pub lora: u64,
    /// A fresh random number for this decision: a policy has no other source of randomness.
    pub seed: u64,
    /// How many decisions were made for this model before this one.
    pub decision_number: u64,
}

/// The candidates as flat columns of one length; row i of each is candidate i. A caller keeps one of these and
/// fills it anew for each decision, so that its buffers are allocated once.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Candidates {
    /// Stable number of the worker while it is present.
    pub worker: Vec<u32>,
    /// Bits of [`candidate_traits`].
    pub traits: Vec<u32>,
    /// Leading blocks of the prompt in device memory.
    pub overlap_device: Vec<u32>,
    /// Leading blocks beyond those, in host memory.
    pub overlap_host: Vec<u32>,
    /// Leading blocks beyond those two, on disk.
    pub overlap_disk: Vec<u32>,
    /// Prompt tokens in flight from this router, first output token not seen yet.
    pub prefill_tokens: Vec<u32>,
    /// KV blocks held by this router's requests.
    pub decode_blocks: Vec<u32>,
    /// Requests in flight from this router.
    pub requests: Vec<u32>,
    /// As `prefill_tokens`, from all routers, this one included.
    pub prefill_tokens_all: Vec<u32>,
    /// As `decode_blocks`, from all routers, this one included.
    pub decode_blocks_all: Vec<u32>,
    /// As `requests`, from all routers, this one included.
    pub requests_all: Vec<u32>,
    /// KV blocks the device has room for; 0 when unknown.
    pub kv_blocks_total: Vec<u32>,
    /// KV blocks in use, as the worker last reported.
    pub kv_blocks_used: Vec<u32>,
    /// Requests waiting in the engine, as the worker last reported.
    pub queue_depth: Vec<u32>,
}

/// Bits of [`Candidates::traits`].
pub mod candidate_traits {
    /// The worker takes prefills.
    pub const PREFILL: u32 = 1;
    /// The worker takes decodes.
    pub const DECODE: u32 = 2;
    /// Overlap is learnt from decisions, not told by events.
    pub const APPROXIMATE: u32 = 4;
    /// Overlap may be less than what the worker holds.
    pub const PARTIAL: u32 = 8;
}

impl Candidates {
    /// How many candidates there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.worker.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.worker.is_empty()
    }

    /// Gives every column `rows` rows: what is there stays, new rows are 0. The optional columns are emptied: fill them
    /// after [`Candidates::resize_optional`]. Keeps the memory.
    pub fn resize(&mut self, rows: usize) {
        self.worker.resize(rows, 0);
        self.usual_mut()
            .into_iter()
            .for_each(|column| column.resize(rows, 0));
        self.optional_mut().into_iter().for_each(Vec::clear);
    }

    /// Gives the optional columns, which few policies want, a row for each candidate: `traits`, those of all routers, and
    /// `queue_depth`.
    pub fn resize_optional(&mut self) {
        let rows = self.len();
        self.optional_mut()
            .into_iter()
            .for_each(|column| column.resize(rows, 0));
    }

    /// Keeps the rows of these places, which ascend, and no others; not those of the optional columns.
    pub fn keep_rows(&mut self, places: &[usize]) {
        let keep = |column: &mut Vec<u32>| {
            for (row, &place) in places.iter().enumerate() {
                column[row] = column[place];
            }
            column.truncate(places.len());
        };
        keep(&mut self.worker);
        self.usual_mut().into_iter().for_each(keep);
    }

    /// The columns beside `worker` that are always filled, with their names.
    pub(crate) fn usual(&self) -> [(&'static str, &Vec<u32>); 8] {
        [
            ("overlap_device", &self.overlap_device),
            ("overlap_host", &self.overlap_host),
            ("overlap_disk", &self.overlap_disk),
            ("prefill_tokens", &self.prefill_tokens),
            ("decode_blocks", &self.decode_blocks),
            ("requests", &self.requests),
            ("kv_blocks_total", &self.kv_blocks_total),
            ("kv_blocks_used", &self.kv_blocks_used),
        ]
    }

    /// The columns that are filled for a policy that wants one of them, with their names.
    pub(crate) fn optional(&self) -> [(&'static str, &Vec<u32>); 5] {
        [
            ("traits", &self.traits),
            ("prefill_tokens_all", &self.prefill_tokens_all),
            ("decode_blocks_all", &self.decode_blocks_all),
            ("requests_all", &self.requests_all),
            ("queue_depth", &self.queue_depth),
        ]
    }

    pub(crate) fn usual_mut(&mut self) -> [&mut Vec<u32>; 8] {
        [
            &mut self.overlap_device,
            &mut self.overlap_host,
            &mut self.overlap_disk,
            &mut self.prefill_tokens,
            &mut self.decode_blocks,
            &mut self.requests,
            &mut self.kv_blocks_total,
            &mut self.kv_blocks_used,
        ]
    }

    pub(crate) fn optional_mut(&mut self) -> [&mut Vec<u32>; 5] {
        [
            &mut self.traits,
            &mut self.prefill_tokens_all,
            &mut self.decode_blocks_all,
            &mut self.requests_all,
            &mut self.queue_depth,
        ]
    }
}

/// What a policy answered: a cost per candidate (lower is better, `+inf` excludes), or its own pick.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// One per candidate, never NaN, at least one finite; empty when the policy picked.
    pub costs: Vec<f32>,
    /// The row the policy picked itself.
    pub pick: Option<u32>,
}

/// What became of a request, for policies that learn. Times are milliseconds from the decision.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// The worker that had it, as in [`Candidates::worker`].
    pub worker: u32,
    /// Tokens in its prompt.
    pub prompt_tokens: u32,
    /// Of those, how many the worker found in its cache.
    pub cached_tokens: u32,
    /// Blocks of overlap the worker was credited with when the request was placed.
    pub overlap_blocks: u32,
    /// Tokens that came back.
    pub output_tokens: u32,
    /// Time to the first token; 0 when none came.
    pub ttft_ms: f32,
    /// Time to the end.
    pub total_ms: f32,
    /// Whether it ended as it should.
    pub completed: bool,
}
