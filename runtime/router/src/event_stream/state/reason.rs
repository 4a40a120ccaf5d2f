//! The causes of resyncs, for logs and the metric.

use std::fmt;

use signalbox_protocol::KvDigest;

/// Why a stream starts again from a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::event_stream) enum ResyncReason {
    /// The stream has just started.
    Start,
    /// A batch arrived before the one that was due.
    Gap { expected: u64, received: u64 },
    /// The plane no longer keeps the batches that are missing.
    Skipped,
    /// The worker reported batches that never arrived.
    Lag { expected: u64, reported: u64 },
    /// Batches were applied that the worker has not published.
    Ahead { expected: u64, reported: u64 },
    /// The worker holds other blocks than the index credits it with.
    Mismatch {
        next: u64,
        credited: KvDigest,
        reported: KvDigest,
    },
}

impl ResyncReason {
    /// The value of the metric's label.
    pub(in crate::event_stream) fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Gap { .. } => "gap",
            Self::Skipped => "skipped",
            Self::Lag { .. } => "lag",
            Self::Ahead { .. } => "ahead",
            Self::Mismatch { .. } => "mismatch",
        }
    }
}

impl fmt::Display for ResyncReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("the stream starts"),
            Self::Gap { expected, received } => {
                write!(f, "batch {received} arrived where batch {expected} was due")
            }
            Self::Skipped => f.write_str("the event plane no longer keeps the batches that are missing"),
            Self::Lag { expected, reported } => write!(
                f,
                "batch {expected} is missing although the worker reported every batch before {reported}"
            ),
            Self::Ahead { expected, reported } => write!(
                f,
                "every batch before {expected} arrived although the worker published those before {reported} only; \
                 another process may publish under its name"
            ),
            Self::Mismatch {
                next,
                credited,
                reported,
            } => write!(
                f,
                "by the batches before {next} the index credits the worker with {} blocks of digest {:016x}, and it holds {} \
                 of digest {:016x}",
                credited.blocks, credited.sum, reported.blocks, reported.sum
            ),
        }
    }
}
