//! Why a call failed.

use signalbox_protocol::WireError;

/// Why a call failed, and whether the worker may have begun it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The call never reached the worker, so the router may send it to another one.
    #[error("the worker at {address} cannot be reached: {reason}")]
    Unreachable {
        /// The worker's `host:port`, or `nats:<worker>`.
        address: String,
        /// Why the worker cannot be reached.
        reason: String,
    },
    /// The call was sent and the connection is lost, so the worker may have begun it. A stream yields this error once,
    /// after the pieces that had arrived.
    #[error("the connection to the worker at {address} was lost: {reason}")]
    Lost {
        /// The worker's `host:port`, or `nats:<worker>`.
        address: String,
        /// How the connection was lost.
        reason: String,
    },
    /// The worker takes no new calls, so the router may send the call to another one.
    #[error("the worker at {address} is draining")]
    Draining {
        /// The worker's `host:port`, or `nats:<worker>`.
        address: String,
    },
    /// This link holds as many streams as [`LinkConfig::max_streams`](super::LinkConfig::max_streams) allows.
    #[error("the link to {address} has {limit} streams, as many as it allows")]
    Full {
        /// The worker's `host:port`, or `nats:<worker>`.
        address: String,
        /// The largest number of streams.
        limit: usize,
    },
    /// The worker answered with an error.
    #[error(transparent)]
    Refused(#[from] WireError),
}
