//! The calls a router makes to a worker over the request plane.

use serde::{Deserialize, Serialize};

use crate::{GenerateRequest, WorkerEpoch};

/// A call, which opens a stream. Each variant documents what the worker sends before the end of the stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every call is a Generate; a box would cost each an allocation"
)]
pub enum Call {
    /// Generates an answer. The worker sends the bytes that the client reads, with the number of tokens in each piece.
    Generate(GenerateRequest),
    /// Fetches the tokenizer and chat template. The worker sends them in pieces.
    FetchArtifacts {
        /// Their digest, as in [`crate::WorkerCard::artifacts_digest`].
        digest: String,
    },
    /// Watches the KV cache. The worker sends each KV event batch, encoded, as one piece. The call fails with
    /// [`crate::ErrorKind::NotFound`] if the worker no longer keeps the first batch wanted; the router then needs a
    /// snapshot.
    WatchKvEvents {
        /// The epoch and the sequence of the first batch wanted, itself included; `None` for the batches published from
        /// now on.
        from: Option<(WorkerEpoch, u64)>,
    },
    /// Fetches a snapshot of the KV cache. The worker sends it, encoded, in pieces.
    FetchKvSnapshot,
    /// Watches the load. The worker sends a [`crate::WorkerReport`] in JSON as one piece whenever the report changes,
    /// at most one per `interval_ms`.
    WatchLoad {
        /// Shortest time between two reports, in milliseconds.
        interval_ms: u64,
    },
}
