//! The candidates with absent columns as empty ones: what a policy iterates over.

use crate::bindings::policy::signalbox::policy::types;

/// The workers that may take the request, as columns: row i of each column is candidate i. There is at least one.
/// A column the policy did not ask for is empty; `wit/types.wit` says what each one holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Candidates {
    /// The worker's number, stable while it is present. Always there.
    pub worker: Vec<u32>,
    /// Bits of [`traits`].
    pub traits: Vec<u32>,
    /// Leading blocks of the prompt in device memory.
    pub overlap_device: Vec<u32>,
    /// Leading blocks beyond those, in host memory.
    pub overlap_host: Vec<u32>,
    /// Leading blocks beyond those two, on disk.
    pub overlap_disk: Vec<u32>,
    /// Prompt tokens of this router waiting for their first output token.
    pub prefill_tokens: Vec<u32>,
    /// KV blocks of this router's requests.
    pub decode_blocks: Vec<u32>,
    /// Requests of this router under way.
    pub requests: Vec<u32>,
    /// As `prefill_tokens`, of all routers.
    pub prefill_tokens_all: Vec<u32>,
    /// As `decode_blocks`, of all routers.
    pub decode_blocks_all: Vec<u32>,
    /// As `requests`, of all routers.
    pub requests_all: Vec<u32>,
    /// KV blocks the device has room for; 0 when unknown.
    pub kv_blocks_total: Vec<u32>,
    /// KV blocks in use.
    pub kv_blocks_used: Vec<u32>,
    /// Requests waiting in the engine.
    pub queue_depth: Vec<u32>,
    /// The signals named in [`Info::extra`](crate::Info::extra), one whole column after the other.
    pub extra: Vec<f32>,
}

/// Bits of [`Candidates::traits`].
pub mod traits {
    /// Takes prefills.
    pub const PREFILL: u32 = 1;
    /// Takes decodes.
    pub const DECODE: u32 = 2;
    /// Its overlap is learnt from this router's decisions, not told by its events.
    pub const APPROXIMATE: u32 = 4;
    /// Its overlap may be less than what it holds.
    pub const PARTIAL: u32 = 8;
}

impl Candidates {
    /// How many candidates there are; at least 1 in a decision.
    #[must_use]
    pub fn len(&self) -> usize {
        self.worker.len()
    }

    /// Whether there is none; never so in a decision.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.worker.is_empty()
    }

    /// The `index`-th signal of [`Info::extra`](crate::Info::extra), a row per candidate; empty when not asked for.
    #[must_use]
    pub fn signal(&self, index: usize) -> &[f32] {
        let rows = self.len();
        self.extra
            .get(index * rows..(index + 1) * rows)
            .unwrap_or_default()
    }
}

impl From<types::Candidates> for Candidates {
    fn from(columns: types::Candidates) -> Self {
        Self {
            worker: columns.worker,
            traits: columns.traits.unwrap_or_default(),
            overlap_device: columns.overlap_device.unwrap_or_default(),
            overlap_host: columns.overlap_host.unwrap_or_default(),
            overlap_disk: columns.overlap_disk.unwrap_or_default(),
            prefill_tokens: columns.prefill_tokens.unwrap_or_default(),
            decode_blocks: columns.decode_blocks.unwrap_or_default(),
            requests: columns.requests.unwrap_or_default(),
            prefill_tokens_all: columns.prefill_tokens_all.unwrap_or_default(),
            decode_blocks_all: columns.decode_blocks_all.unwrap_or_default(),
            requests_all: columns.requests_all.unwrap_or_default(),
            kv_blocks_total: columns.kv_blocks_total.unwrap_or_default(),
            kv_blocks_used: columns.kv_blocks_used.unwrap_or_default(),
            queue_depth: columns.queue_depth.unwrap_or_default(),
            extra: columns.extra,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_its_own_stretch_of_extra() {
        let candidates = Candidates {
            worker: vec![7, 8],
            extra: vec![0.1, 0.2, 0.3, 0.4],
            ..Candidates::default()
        };
        assert_eq!(candidates.signal(0), [0.1, 0.2]);
        assert_eq!(candidates.signal(1), [0.3, 0.4]);
        assert_eq!(candidates.signal(2), []);
    }
}
