//! A byte stream over core NATS, for workers that routers cannot dial.
//!
//! The protocol of links and servers runs over it unchanged, so everything they promise holds here too. This module
//! only carries bytes: in order, or not at all. Core NATS delivers a message at most once and does not say when it
//! did not, so messages are numbered and a hole ends the connection; the link above dials again, as it does over
//! TCP. A window bounds what is under way. `README.md` beside this crate documents the messages.

mod connection;
mod flow;
mod listener;
mod message;
mod outage;
mod stream;

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use signalbox_nats::{
    NatsConnection,
    async_nats::{StatusCode, Subject},
};
use signalbox_protocol::{MAX_NAME_LEN, PlaneState, WorkerId, is_name};
use tokio::time::timeout;

use connection::Ends;
use flow::WINDOW_BYTES;
use message::Content;

pub(crate) use listener::NatsListener;
pub(crate) use stream::{NatsReadHalf, NatsStream, NatsWriteHalf};

/// What the address of a worker begins with that is reached over NATS; its name follows.
pub(crate) const ADDRESS_PREFIX: &str = "nats:";

/// How workers are reached over NATS. Clone = handle.
#[derive(Debug, Clone)]
pub struct NatsTransport {
    nats: NatsConnection,
    namespace: Arc<str>,
}

/// A namespace that cannot be a part of a subject.
#[derive(Debug, Clone, thiserror::Error)]
#[error("namespace {0:?} is not 1 to {MAX_NAME_LEN} letters, digits, '-' or '_'")]
pub struct InvalidNamespace(String);

/// Why there is no connection over NATS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no connection: NATS is away: {0}")]
    Away(String),
    #[error("no worker {worker} listens on NATS ({subject})")]
    NoWorker { worker: WorkerId, subject: String },
    #[error("worker {worker} did not answer over NATS within {limit:?}")]
    NoAnswer { worker: WorkerId, limit: Duration },
    #[error("worker {worker} refused the connection over NATS: {reason}")]
    Refused { worker: WorkerId, reason: String },
    #[error("worker {worker} gave an answer over NATS that is not understood: {reason}")]
    NotUnderstood { worker: WorkerId, reason: String },
}

impl NatsTransport {
    /// Workers of `namespace` over this connection; routers and workers must agree on it.
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

    /// Where a worker listens for routers.
    pub(crate) fn subject(&self, worker: &WorkerId) -> String {
        format!("signalbox.{}.requests.{worker}", self.namespace)
    }

    /// Connects to a worker within `limit`.
    pub(crate) async fn connect(
        &self,
        worker: &WorkerId,
        limit: Duration,
    ) -> Result<NatsStream, ConnectError> {
        match timeout(limit, self.ask(worker)).await {
            Ok(answered) => answered,
            Err(_) => {
                self.check_up()?;
                let worker = worker.clone();
                Err(ConnectError::NoAnswer { worker, limit })
            }
        }
    }

    async fn ask(&self, worker: &WorkerId) -> Result<NatsStream, ConnectError> {
        // A process that has just started waits for its first connection. One that lost it need not try: what it
        // published would wait in the client until NATS is back.
        let mut status = self.nats.status();
        let _ = status
            .wait_for(|status| status.state != PlaneState::Connecting)
            .await;
        self.check_up()?;
        let stopped = || ConnectError::Away("its client has stopped".into());

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
        let not_understood = |worker, reason: String| ConnectError::NotUnderstood { worker, reason };
        let message = match message::decode(answer.payload) {
            Ok(message) => message,
            Err(error) => return Err(not_understood(worker, error.to_string())),
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
            _ => Err(not_understood(
                worker,
                "it is no Accept with a reply subject".into(),
            )),
        }
    }

    fn check_up(&self) -> Result<(), ConnectError> {
        let status = self.nats.status();
        let status = status.borrow();
        if status.state == PlaneState::Up {
            Ok(())
        } else {
            Err(ConnectError::Away(status.detail.clone()))
        }
    }

    /// Waits until what was handed to NATS' client is on its way.
    pub(crate) async fn flush(&self) {
        // It fails only where the client has stopped: then there is nothing left to send.
        let _ = self.nats.client().flush().await;
    }
}
