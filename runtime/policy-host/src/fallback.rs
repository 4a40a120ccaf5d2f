//! The native policy that decides when a component cannot.

use crate::{
    candidates::Candidates,
    features::{Decision, RequestFeatures},
};

/// The policy that decides when a component cannot: `kv-linear` with `{"min_overlap": 0.1, "fill_weight": 0.5}` and the
/// load of this router alone, in native code. It needs no curve of the workers, and no memory. It never fails, so a policy's fault never fails a request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fallback;

/// The label of the fallback's decisions.
pub(crate) const LABEL: &str = concat!("fallback@", env!("CARGO_PKG_VERSION"));

/// Credit for a block in host memory: `kv-linear`'s.
const HOST_WEIGHT: f32 = 0.75;
/// Credit for a block on disk: `kv-linear`'s.
const DISK_WEIGHT: f32 = 0.25;
/// Smallest share of the prompt that counts as overlap: `kv-linear`'s.
const MIN_OVERLAP: f32 = 0.1;
/// Cost of a full KV cache, in blocks: `kv-linear`'s.
const FILL_WEIGHT: f32 = 0.5;

impl Fallback {
    /// Stores a cost for each candidate in `decision`: blocks to prefill that the worker's KV cache does not hold, plus
    /// blocks in use (`policies/sdk/src/kv_cost.rs` has the formula and its source).
    pub fn decide(&self, request: &RequestFeatures, candidates: &Candidates, decision: &mut Decision) {
        let per_token = 1.0 / request.block_size.max(1) as f32;
        let overlap = candidates
            .overlap_device
            .iter()
            .zip(&candidates.overlap_host)
            .zip(&candidates.overlap_disk);
        let load = candidates.prefill_tokens.iter().zip(&candidates.decode_blocks);
        let caches = candidates.kv_blocks_used.iter().zip(&candidates.kv_blocks_total);
        let prompt_blocks = request.prompt_blocks as f32;
        let least_overlap = MIN_OVERLAP * prompt_blocks;
        let costs = overlap.zip(load).zip(caches).map(
            |((((&device, &host), &disk), (&prefill, &decode)), (&used, &total))| {
                let (device, host, disk) = (float(device), float(host), float(disk));
                let credit = if device + host + disk < least_overlap {
                    0.0
                } else {
                    device + HOST_WEIGHT * host + DISK_WEIGHT * disk
                };
                let to_prefill =
                    ((float(prefill) + request.prompt_tokens as f32) * per_token - credit).max(0.0);
                let fill = float(used) / float(total.max(1));
                to_prefill + float(decode) + prompt_blocks + FILL_WEIGHT * fill
            },
        );
        decision.pick = None;
        decision.rejection = None;
        decision.costs.clear();
        decision.costs.extend(costs);
        // Columns of different lengths are a bug of the caller. The request is placed nevertheless.
        decision.costs.resize(candidates.len(), f32::MAX);
    }
}

/// A count as a float, at most 2^31 - 1, as in `kv_cost.rs`.
fn float(count: u32) -> f32 {
    count.min(i32::MAX as u32) as i32 as f32
}
