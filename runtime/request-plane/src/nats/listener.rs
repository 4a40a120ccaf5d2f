//! Accepts the connections of routers at a worker.

use std::io;

use futures_util::StreamExt;
use signalbox_nats::async_nats::{Message, Subject, Subscriber};
use signalbox_protocol::WorkerId;

use super::{
    connection::Ends,
    flow::WINDOW_BYTES,
    message::{self, Content, InvalidMessage},
    stream::NatsStream,
    transport::NatsTransport,
};

/// Listens for routers that connect to one worker.
#[derive(Debug)]
pub(crate) struct NatsListener {
    transport: NatsTransport,
    worker: WorkerId,
    incoming: Subscriber,
}

impl NatsListener {
    /// Starts to listen. While NATS is down, the listener starts once NATS is back.
    pub(crate) async fn bind(transport: NatsTransport, worker: WorkerId) -> io::Result<Self> {
        let subject = transport.subject(&worker);
        let client = transport.nats.client();
        let incoming = client.subscribe(subject).await.map_err(io::Error::other)?;
        Ok(Self {
            transport,
            worker,
            incoming,
        })
    }

    pub(crate) fn worker(&self) -> &WorkerId {
        &self.worker
    }

    pub(crate) fn transport(&self) -> &NatsTransport {
        &self.transport
    }

    /// The next router's connection. Dropping the future loses at most the connection of a router that connects right
    /// now, which that router notices.
    pub(crate) async fn accept(&mut self) -> io::Result<NatsStream> {
        loop {
            let Some(message) = self.incoming.next().await else {
                tracing::error!(worker.id = %self.worker, "the NATS client has stopped: no router can connect any more");
                return std::future::pending().await;
            };
            let Message {
                payload,
                reply: Some(peer),
                ..
            } = message
            else {
                continue;
            };
            match message::decode(payload).map(|message| message.content) {
                Ok(Content::Connect { window }) => return self.agree(peer, window).await,
                Ok(_) => tracing::debug!(%peer, "skipped a message that is not a Connect"),
                Err(reason) => {
                    tracing::warn!(%peer, %reason, "refused a router over NATS");
                    self.refuse(peer, &reason).await?;
                }
            }
        }
    }

    async fn agree(&self, peer: Subject, window: u32) -> io::Result<NatsStream> {
        let client = self.transport.nats.client();
        let ends = Ends {
            connection: rand::random(),
            own: client.new_inbox().into(),
            peer,
        };
        let incoming = client
            .subscribe(ends.own.clone())
            .await
            .map_err(io::Error::other)?;
        let accept = Content::<&[u8]>::Accept { window: WINDOW_BYTES };
        let accept = message::encode(ends.connection, 0, &accept);
        client
            .publish_with_reply(ends.peer.clone(), ends.own.clone(), accept)
            .await
            .map_err(io::Error::other)?;
        Ok(NatsStream::new(&self.transport.nats, ends, incoming, window))
    }

    async fn refuse(&self, peer: Subject, reason: &InvalidMessage) -> io::Result<()> {
        let reset = Content::<&[u8]>::Reset(format!("the Connect is invalid: {reason}"));
        let client = self.transport.nats.client();
        client
            .publish(peer, message::encode(0, 0, &reset))
            .await
            .map_err(io::Error::other)
    }
}
