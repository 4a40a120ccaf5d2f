//! What the two halves of a connection share: what has arrived, and how far either direction is.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt, task::AtomicWaker};
use signalbox_nats::{
    NatsConnection,
    async_nats::{
        self, Client, StatusCode, Subject, Subscriber, client::PublishError, message::OutboundMessage,
    },
};
use tokio::io::ReadBuf;

use super::{
    flow::{Broken, Receiving, Sending},
    message::{self, Content, NotUnderstood},
    outage::{GRACE, outage},
};

/// The two ends of a connection, as agreed.
#[derive(Debug)]
pub(super) struct Ends {
    /// Chosen by the worker.
    pub(super) connection: u64,
    /// Where this side reads.
    pub(super) own: Subject,
    /// Where the other side reads.
    pub(super) peer: Subject,
}

/// Why a connection is broken.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("a message over NATS is not understood: {0}")]
    NotUnderstood(#[from] NotUnderstood),
    #[error("the other side reset the connection over NATS: {0}")]
    Reset(String),
    #[error("the other side is gone: nobody listens to it on NATS any more")]
    Gone,
    #[error("NATS is away: {0}")]
    Away(String),
    #[error("NATS' client gave up: {0}")]
    Client(String),
}

impl Fault {
    /// Whether the other side is still there, and does not know.
    pub(super) fn is_news(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::NotUnderstood(_))
    }
}

impl From<PublishError> for Fault {
    fn from(error: PublishError) -> Self {
        Self::Client(error.to_string())
    }
}

/// The tasks that read and write. What arrives may concern either, and either may be the one that takes it.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    pub(super) reader: AtomicWaker,
    pub(super) writer: AtomicWaker,
}

impl Wake for Tasks {
    fn wake(self: Arc<Self>) {
        self.reader.wake();
        self.writer.wake();
    }
}

/// A connection's state, to be locked by its halves.
pub(super) struct NatsByteStream {
    ends: Ends,
    incoming: Subscriber,
    outage: Pin<Box<dyn Future<Output = String> + Send>>,
    sending: Sending,
    receiving: Receiving,
    /// What has arrived, in order; a window and a message at most.
    unread: VecDeque<Bytes>,
    /// The other side sends no more.
    is_closed: bool,
    fault: Option<Fault>,
}

impl NatsByteStream {
    /// `incoming` is subscribed to `ends.own`; `window` is the other side's.
    pub(super) fn new(nats: &NatsConnection, ends: Ends, incoming: Subscriber, window: u32) -> Self {
        Self {
            ends,
            incoming,
            outage: Box::pin(outage(nats.status(), GRACE)),
            sending: Sending::new(window),
            receiving: Receiving::new(),
            unread: VecDeque::new(),
            is_closed: false,
            fault: None,
        }
    }

    pub(super) fn ends(&self) -> &Ends {
        &self.ends
    }

    pub(super) fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Takes all that has arrived. `tasks` is woken when there is more.
    pub(super) fn receive(&mut self, tasks: &Waker) {
        if self.fault.is_some() {
            return;
        }
        self.fault = self.take_arrived(&mut Context::from_waker(tasks)).err();
        if self.fault.is_some() {
            // The half that did not find it has nothing else to wake it.
            tasks.wake_by_ref();
        }
    }

    fn take_arrived(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        while let Poll::Ready(message) = self.incoming.poll_next_unpin(cx) {
            self.take(message.ok_or_else(|| Fault::Client("its subscription ended".into()))?)?;
        }
        match self.outage.poll_unpin(cx) {
            Poll::Ready(reason) => Err(Fault::Away(reason)),
            Poll::Pending => Ok(()),
        }
    }

    fn take(&mut self, message: async_nats::Message) -> Result<(), Fault> {
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(Fault::Gone);
        }
        let message = message::decode(message.payload)?;
        if message.connection != self.ends.connection {
            // A second process of the worker's name accepted as well: it was too late.
            return Ok(());
        }
        if let Content::Reset(reason) = message.content {
            return Err(Fault::Reset(reason));
        }
        self.receiving.take(message.number)?;
        match message.content {
            Content::Data(bytes) => {
                self.receiving.take_data(bytes.len())?;
                self.unread.push_back(bytes);
            }
            Content::Credit(bytes) => self.sending.credit(bytes),
            Content::Close => self.is_closed = true,
            Content::Connect { .. } | Content::Accept { .. } | Content::Reset(_) | Content::Unknown => {}
        }
        Ok(())
    }

    /// Moves what has arrived into `into`, as much as it holds: one read finds what several messages brought.
    pub(super) fn read(&mut self, into: &mut ReadBuf<'_>) {
        while let Some(bytes) = self.unread.front_mut() {
            let length = bytes.len().min(into.remaining());
            into.put_slice(&bytes.split_to(length));
            self.receiving.read(length);
            if !bytes.is_empty() {
                return;
            }
            self.unread.pop_front();
            self.receiving.read_message();
        }
    }

    /// What follows the last byte read: nothing yet, an end of file, or the fault.
    pub(super) fn poll_end(&self) -> Poll<Result<(), Fault>> {
        match &self.fault {
            _ if self.is_closed => Poll::Ready(Ok(())),
            Some(fault) => Poll::Ready(Err(fault.clone())),
            None => Poll::Pending,
        }
    }

    /// Whether the other side waits to be told what was read.
    pub(super) fn owes_credit(&self) -> bool {
        self.receiving.owes_credit()
    }

    /// Whether the other side takes data now.
    pub(super) fn has_room(&self) -> bool {
        self.sending.has_room()
    }

    /// Tells the other side what was read; the client has a place reserved for it.
    pub(super) fn send_credit(&mut self, client: &mut Client) -> Result<(), Fault> {
        let credit = Content::Credit(self.receiving.take_credit());
        self.send(client, &credit)
    }

    /// Numbers a message and hands it to the client, which has a place reserved for it: both at once, so that
    /// messages leave in the order of their numbers.
    pub(super) fn send(&mut self, client: &mut Client, content: &Content<&[u8]>) -> Result<(), Fault> {
        if let Content::Data(bytes) = content {
            self.sending.sent(bytes.len());
        }
        let message = OutboundMessage {
            subject: self.ends.peer.clone(),
            // The server tells us here when nobody reads there any more.
            reply: Some(self.ends.own.clone()),
            payload: message::encode(self.ends.connection, self.sending.next_number(), content),
            headers: None,
        };
        Ok(client.start_send_unpin(message)?)
    }
}

impl fmt::Debug for NatsByteStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsByteStream")
            .field("ends", &self.ends)
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}
