//! Why a call failed.

use signalbox_protocol::WireError;

/// Why a call failed, and whether its work may have begun.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The call never reached the worker: safe to send elsewhere.
    #[error("worker at {address} cannot be reached: {reason}")]
    Unreachable {
        /// The worker's `host:port`, or `nats:<worker>`.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The call was sent and the connection is gone: the worker may have begun. Told once a stream, after the
    /// pieces that had arrived.
    #[error("connection to the worker at {address} was lost: {reason}")]
    Lost {
        /// The worker's `host:port`, or `nats:<worker>`.
        address: String,
        /// How it was lost.
        reason: String,
    },
    /// The worker takes nothing new: safe to send elsewhere.
    #[error("worker at {address} is draining")]
    Draining {
        /// The worker's `host:port`, or `nats:<worker>`.
        address: String,
    },
    /// This link holds as many streams as [`LinkConfig::max_streams`](super::LinkConfig::max_streams) allows.
    #[error("link to {address} holds as many streams as it may ({limit})")]
    Full {
        /// The worker's `host:port`, or `nats:<worker>`.
        address: String,
        /// How many that is.
        limit: usize,
    },
    /// The worker answered with an error.
    #[error(transparent)]
    Refused(#[from] WireError),
}
