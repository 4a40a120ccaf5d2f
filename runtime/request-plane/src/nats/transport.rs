//! How routers connect to workers over NATS.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use signalbox_nats::{
    NatsConnection,
    async_nats::{StatusCode, Subject},
};
use signalbox_protocol::{MAX_NAME_LEN, PlaneState, WorkerId, is_name};
use tokio::time::timeout;

use super::{
    connection::Ends,
    flow::WINDOW_BYTES,
    message::{self, Content},
    stream::NatsStream,
};

/// The workers of one namespace, reached over one connection to NATS. Clone = handle.
#[derive(Debug, Clone)]
pub struct NatsTransport {
    pub(super) nats: NatsConnection,
    namespace: Arc<str>,
}

/// The text is not a namespace, because it cannot be a part of a NATS subject.
#[derive(Debug, Clone, thiserror::Error)]
#[error("namespace {0:?} is not 1 to {MAX_NAME_LEN} letters, digits, '-' or '_'")]
pub struct InvalidNamespace(String);

/// Why a connection over NATS failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no connection: NATS is down: {0}")]
    NatsDown(String),
    #[error("no worker {worker} listens on NATS ({subject})")]
    NoWorker { worker: WorkerId, subject: String },
    #[error("worker {worker} did not answer over NATS within {limit:?}")]
    NoAnswer { worker: WorkerId, limit: Duration },
    #[error("worker {worker} refused the connection over NATS: {reason}")]
    Refused { worker: WorkerId, reason: String },
    #[error("worker {worker} sent an invalid answer over NATS: {reason}")]
    InvalidAnswer { worker: WorkerId, reason: String },
}

impl NatsTransport {
    /// The workers of `namespace`, over this connection. Routers and workers must use the same namespace.
    ///
    /// # Errors
    /// The namespace is not 1 to 64 letters, digits, `-` or `_`.
    pub fn new(nats: NatsConnection, namespace: &str) -> Result<Self, InvalidNamespace> {
        if is_name(namespace) {
            let namespace = namespace.into();
            Ok(Self { nats, namespace })
        } else {
            let start = namespace.chars().take(MAX_NAME_LEN + 1).collect();
            Err(InvalidNamespace(start))
        }
    }

    #[cfg(test)]
    pub(crate) fn connection(&self) -> &NatsConnection {
        &self.nats
    }

    /// The subject on which a worker listens for routers.
    pub(crate) fn subject(&self, worker: &WorkerId) -> String {
        format!("signalbox.{}.requests.{worker}", self.namespace)
    }

    /// Connects to a worker within `limit`.
    pub(crate) async fn connect(
        &self,
        worker: &WorkerId,
        limit: Duration,
    ) -> Result<NatsStream, ConnectError> {
        match timeout(limit, self.request_connection(worker)).await {
            Ok(result) => result,
            Err(_) => {
                self.check_up()?;
                let worker = worker.clone();
                Err(ConnectError::NoAnswer { worker, limit })
            }
        }
    }

    async fn request_connection(&self, worker: &WorkerId) -> Result<NatsStream, ConnectError> {
        // A process that has just started waits for its first connection to NATS. A process that has lost its connection
        // fails at once, because the client would keep the message until NATS is back.
        let mut status = self.nats.status();
        let _ = status
            .wait_for(|status| status.state != PlaneState::Connecting)
            .await;
        self.check_up()?;
        let stopped = || ConnectError::NatsDown("its client has stopped".into());

        let client = self.nats.client();
        let own = Subject::from(client.new_inbox());
        let mut incoming = client.subscribe(own.clone()).await.map_err(|_| stopped())?;
        let subject = self.subject(worker);
        let connect = Content::<&[u8]>::Connect { window: WINDOW_BYTES };
        client
            .publish_with_reply(subject.clone(), own.clone(), message::encode(0, 0, &connect))
            .await
            .map_err(|_| stopped())?;

        let answer = incoming.next().await.ok_or_else(stopped)?;
        let worker = worker.clone();
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(ConnectError::NoWorker { worker, subject });
        }
        let invalid = |worker, reason: String| ConnectError::InvalidAnswer { worker, reason };
        let message = match message::decode(answer.payload) {
            Ok(message) => message,
            Err(error) => return Err(invalid(worker, error.to_string())),
        };
        match (message.content, answer.reply) {
            (Content::Accept { window }, Some(peer)) => {
                let connection = message.connection;
                let ends = Ends {
                    connection,
                    own,
                    peer,
                };
                Ok(NatsStream::new(&self.nats, ends, incoming, window))
            }
            (Content::Reset(reason), _) => Err(ConnectError::Refused { worker, reason }),
            _ => Err(invalid(worker, "it is not an Accept with a reply subject".into())),
        }
    }

    /// Waits until NATS is back, if it is away now; for ever if it is not.
    pub(crate) async fn back(&self) {
        let mut status = self.nats.status();
        if status.borrow_and_update().state != PlaneState::Up
            && status
                .wait_for(|status| status.state == PlaneState::Up)
                .await
                .is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    fn check_up(&self) -> Result<(), ConnectError> {
        let status = self.nats.status();
        let status = status.borrow();
        if status.state == PlaneState::Up {
            Ok(())
        } else {
            Err(ConnectError::NatsDown(status.detail.clone()))
        }
    }

    /// Waits until the NATS client has written all messages that it was given.
    pub(crate) async fn flush(&self) {
        // A flush fails only if the client has stopped, and then nothing can be sent.
        let _ = self.nats.client().flush().await;
    }
}
