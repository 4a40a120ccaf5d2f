//! The candidates as a policy reads them: columns, each of which is empty when the policy did not name it.

use crate::bindings::policy::signalbox::policy::types;

/// The workers that can take the request, as columns: row i of each column is candidate i. There is at least one row.
/// The order of the rows means nothing and may differ from one decision to the next. A column that the policy did not
/// name is empty; `wit/types.wit` says what each one holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Candidates {
    /// The worker's number, the same for as long as the worker is present. This column is never empty.
    pub worker: Vec<u32>,
    /// Bits of [`traits`].
    pub traits: Vec<u32>,
    /// Leading KV blocks of the prompt in device memory.
    pub overlap_device: Vec<u32>,
    /// KV blocks of the prompt after those, in host memory.
    pub overlap_host: Vec<u32>,
    /// KV blocks of the prompt after those two, on disk.
    pub overlap_disk: Vec<u32>,
    /// Prompt tokens of this router's requests that wait for their first output token.
    pub prefill_tokens: Vec<u32>,
    /// KV blocks of this router's requests.
    pub decode_blocks: Vec<u32>,
    /// This router's requests in flight.
    pub requests: Vec<u32>,
    /// As `prefill_tokens`, for all routers together.
    pub prefill_tokens_all: Vec<u32>,
    /// As `decode_blocks`, for all routers together.
    pub decode_blocks_all: Vec<u32>,
    /// As `requests`, for all routers together.
    pub requests_all: Vec<u32>,
    /// KV blocks that fit in device memory; 0 when unknown.
    pub kv_blocks_total: Vec<u32>,
    /// KV blocks in use, as the worker last reported.
    pub kv_blocks_used: Vec<u32>,
    /// Requests that wait in the engine, as the worker last reported.
    pub queue_depth: Vec<u32>,
    /// The signals that [`Info::extra`](crate::Info::extra) names, one whole column after the other.
    pub extra: Vec<f32>,
}

/// Bits of [`Candidates::traits`].
pub mod traits {
    /// The worker takes prefills.
    pub const PREFILL: u32 = 1;
    /// The worker takes decodes.
    pub const DECODE: u32 = 2;
    /// The overlap is approximate: the router does not use the worker's KV events, and learned it from its own decisions.
    pub const APPROXIMATE: u32 = 4;
    /// The router is rebuilding its index of the worker, so the overlap may be too low.
    pub const PARTIAL: u32 = 8;
}

impl Candidates {
    /// The number of candidates: at least 1 in a decision.
    #[must_use]
    pub fn len(&self) -> usize {
        self.worker.len()
    }

    /// Whether there is no candidate: never in a decision.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.worker.is_empty()
    }

    /// The column of the signal with this index in [`Info::extra`](crate::Info::extra), counted from 0; empty when
    /// there is no such signal.
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
    fn each_signal_is_a_column_of_extra() {
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
