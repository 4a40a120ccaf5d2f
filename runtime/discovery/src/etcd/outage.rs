//! Why etcd cannot be used right now, for logs and operators.

use std::{error::Error, time::Duration};

/// Longest wait for an answer. etcd answers within milliseconds; elections take about a second.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The gRPC code for a lease, key or member that does not exist.
const NOT_FOUND: i32 = 5;

/// What ended a session with a server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Outage {
    #[error("the server does not answer: {0} took longer than {REQUEST_TIMEOUT:?}")]
    Timeout(&'static str),
    #[error("{0} failed: {reason}", reason = reason(.1))]
    Refused(&'static str, Box<etcd_client::Error>),
    #[error("the server ended {0}: {1}")]
    Ended(&'static str, String),
}

impl Outage {
    /// Whether the lease in the request does not exist any more.
    pub(crate) fn is_lost_lease(&self) -> bool {
        match self {
            Self::Refused(_, error) => match &**error {
                etcd_client::Error::GRpcStatus(status) => status.code() as i32 == NOT_FOUND,
                // The client's error for a time to live of 0.
                etcd_client::Error::LeaseKeepAliveError(_) => true,
                _ => false,
            },
            _ => false,
        }
    }
}

/// Runs a request with a timeout. `what` names it in errors.
pub(crate) async fn bounded<T>(
    what: &'static str,
    request: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Outage> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => answer.map_err(|error| Outage::Refused(what, Box::new(error))),
        Err(_) => Err(Outage::Timeout(what)),
    }
}

/// The next message of a watch. There is no timeout, because nothing may change for days: pings and the registrar detect a
/// server that hangs.
pub(crate) async fn next_message(
    what: &'static str,
    watch: &mut etcd_client::WatchStream,
) -> Result<etcd_client::WatchResponse, Outage> {
    let message = watch.message().await;
    let message = message.map_err(|error| Outage::Refused(what, Box::new(error)))?;
    message.ok_or_else(|| Outage::Ended(what, "the stream is closed".into()))
}

/// The message of a client's error with its innermost cause.
pub(crate) fn reason(error: &etcd_client::Error) -> String {
    let (outer, mut source) = match error {
        etcd_client::Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        etcd_client::Error::TransportError(error) => (error.to_string(), error.source()),
        other => (other.to_string(), None),
    };
    let mut innermost = None;
    while let Some(error) = source {
        innermost = Some(error.to_string());
        source = error.source();
    }
    match innermost {
        Some(inner) if inner != outer => format!("{outer}: {inner}"),
        _ => outer,
    }
}
