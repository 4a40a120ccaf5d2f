//! Errors of membership.

use signalbox_protocol::{WorkerEpoch, WorkerId};

/// An earlier incarnation of a worker tried to register beside a later one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("worker {id} is registered with epoch {known}; the older epoch {refused} cannot register")]
pub struct StaleEpoch {
    /// The worker.
    pub id: WorkerId,
    /// The epoch that is registered.
    pub known: WorkerEpoch,
    /// The epoch that was refused.
    pub refused: WorkerEpoch,
}

/// Why the settings of etcd cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// No endpoint is given.
    #[error("no etcd endpoint is given; give at least one host:port")]
    NoEndpoint,
    /// An endpoint cannot be parsed.
    #[error(
        "{endpoint:?} is not an etcd endpoint: {reason}; give host:port, http://host:port or https://host:port"
    )]
    Endpoint {
        /// The endpoint, without its password.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The namespace does not fit into etcd keys and NATS subjects.
    #[error("namespace {0:?} is not 1 to 64 letters, digits, '-' or '_'")]
    Namespace(String),
    /// The lease is too short to keep alive, or so long that processes that exited stay for hours.
    #[error("a lease of {0:?} is not between 1 s and 1 h")]
    LeaseTtl(std::time::Duration),
    /// A certificate or key is missing or not PEM, or TLS cannot use it.
    #[error("etcd cannot be used with these TLS settings: {0}")]
    Tls(String),
}
