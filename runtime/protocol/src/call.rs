//! What a router asks of a worker over the request plane.

use serde::{Deserialize, Serialize};

use crate::{GenerateRequest, WorkerEpoch};

/// Opens a stream. Each kind says what flows back before the stream's end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every call is a Generate; a box would cost each an allocation"
)]
pub enum Call {
    /// Answer bytes as the client will read them, with the number of tokens in each piece.
    Generate(GenerateRequest),
    /// The tokenizer and chat template with this digest, in pieces.
    FetchArtifacts {
        /// As in [`crate::WorkerCard::artifacts_digest`].
        digest: String,
    },
    /// Encoded KV event batches as they happen, one a piece, from `after` on; fails with
    /// [`crate::ErrorKind::NotFound`] where those are no longer kept, and a snapshot is due.
    WatchKvEvents {
        /// The epoch and first sequence wanted; `None` for what happens from now on.
        after: Option<(WorkerEpoch, u64)>,
    },
    /// The encoded snapshot of the KV cache, in pieces.
    FetchKvSnapshot,
    /// A [`crate::WorkerReport`] in JSON a piece, whenever it changed, at most every `interval_ms`.
    WatchLoad {
        /// Shortest time between two reports, in milliseconds.
        interval_ms: u64,
    },
}
