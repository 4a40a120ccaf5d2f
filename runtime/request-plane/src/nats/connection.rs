//! What the two halves of a connection share: the bytes that have arrived, and the state of both directions.

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
    message::{self, Content, InvalidMessage},
    outage::{GRACE, outage},
};

/// The identity of a connection, on which both sides agree.
#[derive(Debug)]
pub(super) struct Ends {
    /// The connection's number, chosen by the worker.
    pub(super) connection: u64,
    /// The subject that this side reads.
    pub(super) own: Subject,
    /// The subject that the other side reads.
    pub(super) peer: Subject,
}

/// Why a connection is broken.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("a message over NATS is invalid: {0}")]
    InvalidMessage(#[from] InvalidMessage),
    #[error("the other side reset the connection over NATS: {0}")]
    Reset(String),
    #[error("the other side is gone: its NATS subscription has ended")]
    Gone,
    #[error("NATS is down: {0}")]
    NatsDown(String),
    #[error("the NATS client failed: {0}")]
    Client(String),
}

impl Fault {
    /// Whether this side must send a Reset, because the other side is present and has not noticed the fault.
    pub(super) fn needs_reset(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::InvalidMessage(_))
    }
}

impl From<PublishError> for Fault {
    fn from(error: PublishError) -> Self {
        Self::Client(error.to_string())
    }
}

/// The wakers of the tasks that read and write. Either task may take a message that arrives, and the message may concern
/// the other task, so both are woken.
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

/// A connection's state. Its halves share it behind a lock.
pub(super) struct NatsByteStream {
    ends: Ends,
    incoming: Subscriber,
    outage: Pin<Box<dyn Future<Output = String> + Send>>,
    sending: Sending,
    receiving: Receiving,
    /// The data that has arrived and is not read, in order: at most a window and a message.
    unread: VecDeque<Bytes>,
    /// Whether the other side has sent Close.
    is_closed: bool,
    fault: Option<Fault>,
}

impl NatsByteStream {
    /// `incoming` is a subscription to `ends.own`, and `window` the window that the other side gave.
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

    /// Takes all messages that have arrived. `tasks` is woken when more arrive.
    pub(super) fn receive(&mut self, tasks: &Waker) {
        if self.fault.is_some() {
            return;
        }
        self.fault = self.take_arrived(&mut Context::from_waker(tasks)).err();
        if self.fault.is_some() {
            // Nothing else wakes the half that did not find the fault.
            tasks.wake_by_ref();
        }
    }

    fn take_arrived(&mut self, cx: &mut Context<'_>) -> Result<(), Fault> {
        while let Poll::Ready(message) = self.incoming.poll_next_unpin(cx) {
            self.take(message.ok_or_else(|| Fault::Client("its subscription ended".into()))?)?;
        }
        match self.outage.poll_unpin(cx) {
            Poll::Ready(reason) => Err(Fault::NatsDown(reason)),
            Poll::Pending => Ok(()),
        }
    }

    fn take(&mut self, message: async_nats::Message) -> Result<(), Fault> {
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(Fault::Gone);
        }
        let message = message::decode(message.payload)?;
        if message.connection != self.ends.connection {
            // A second process with the worker's name sent an Accept too, and later.
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

    /// Copies data into `into`, as much as it holds, so that one read returns the data of several messages.
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

    /// What follows the last byte that has arrived: nothing yet, an end of file, or the fault.
    pub(super) fn poll_end(&self) -> Poll<Result<(), Fault>> {
        match &self.fault {
            _ if self.is_closed => Poll::Ready(Ok(())),
            Some(fault) => Poll::Ready(Err(fault.clone())),
            None => Poll::Pending,
        }
    }

    /// Whether credit is due to the other side.
    pub(super) fn owes_credit(&self) -> bool {
        self.receiving.owes_credit()
    }

    /// Whether the window of the other side has room for data.
    pub(super) fn has_room(&self) -> bool {
        self.sending.has_room()
    }

    /// Sends the credit that is due. The caller has reserved a place in the client's queue.
    pub(super) fn send_credit(&mut self, client: &mut Client) -> Result<(), Fault> {
        let credit = Content::Credit(self.receiving.take_credit());
        self.send(client, &credit)
    }

    /// Numbers a message and passes it to the client, both at once, so that messages leave in the order of their numbers.
    /// The caller has reserved a place in the client's queue.
    pub(super) fn send(&mut self, client: &mut Client, content: &Content<&[u8]>) -> Result<(), Fault> {
        if let Content::Data(bytes) = content {
            self.sending.sent(bytes.len());
        }
        let message = OutboundMessage {
            subject: self.ends.peer.clone(),
            // The server reports to this subject when the peer's subscription has ended.
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
