//! One connection: a duplex byte stream over two NATS subjects.
//!
//! No task of its own: the reader takes messages from NATS' client as it is polled, and gives credit as it is read;
//! the writer hands messages to the client. Whatever goes wrong, the reader learns it, and the writer from it.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes};
use futures_util::{FutureExt, SinkExt, StreamExt};
use parking_lot::Mutex;
use signalbox_nats::{
    NatsConnection,
    async_nats::{
        self, Client, StatusCode, Subject, Subscriber, client::PublishError, message::OutboundMessage,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop::unconstrained,
};

use super::{
    flow::{Broken, Receiving, Sending, cost},
    message::{self, Content, HEADER_BYTES, NotUnderstood},
    outage::{GRACE, outage},
};

/// A message with its header has at most this many bytes: a quarter of what NATS servers take by default, so that
/// messages of other clients pass between.
const MAX_MESSAGE_BYTES: usize = 256 << 10;

/// Why a connection is broken.
#[derive(Debug, Clone, thiserror::Error)]
enum Fault {
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
    fn is_news(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::NotUnderstood(_))
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::new(io::ErrorKind::ConnectionReset, fault)
    }
}

impl From<PublishError> for Fault {
    fn from(error: PublishError) -> Self {
        Self::Client(error.to_string())
    }
}

/// A connection with both its directions.
#[derive(Debug)]
pub(crate) struct NatsStream {
    pub(crate) read: Box<NatsReadHalf>,
    pub(crate) write: Box<NatsWriteHalf>,
}

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

/// What both halves share.
#[derive(Debug)]
struct Shared {
    ends: Ends,
    outgoing: Mutex<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    sending: Sending,
    /// Waits for credit.
    writer: Option<Waker>,
    fault: Option<Fault>,
}

impl Shared {
    /// Numbers a message and hands it to the client, which has a place reserved for it: both under the lock, so that
    /// messages leave in the order of their numbers.
    fn send(&self, client: &mut Client, content: &Content<&[u8]>) -> Result<(), Fault> {
        let mut outgoing = self.outgoing.lock();
        let number = outgoing.sending.next_number();
        if let Content::Data(bytes) = content {
            outgoing.sending.sent(bytes.len());
        }
        let message = OutboundMessage {
            subject: self.ends.peer.clone(),
            // The server tells us here when nobody reads there any more.
            reply: Some(self.ends.own.clone()),
            payload: message::encode(self.ends.connection, number, content),
            headers: None,
        };
        Ok(client.start_send_unpin(message)?)
    }

    fn fail(&self, fault: Fault) {
        let mut outgoing = self.outgoing.lock();
        outgoing.fault.get_or_insert(fault);
        if let Some(writer) = outgoing.writer.take() {
            writer.wake();
        }
    }
}

impl NatsStream {
    /// The connection that was agreed on; `incoming` is subscribed to `ends.own`, `window` the other side's.
    pub(super) fn new(nats: &NatsConnection, ends: Ends, incoming: Subscriber, window: u32) -> Self {
        let shared = Arc::new(Shared {
            ends,
            outgoing: Mutex::new(Outgoing {
                sending: Sending::new(window),
                writer: None,
                fault: None,
            }),
        });
        let client = nats.client().clone();
        let read = NatsReadHalf {
            shared: shared.clone(),
            client: client.clone(),
            incoming,
            receiving: Receiving::new(),
            unread: Bytes::new(),
            end: None,
            outage: Box::pin(outage(nats.status(), GRACE)),
        };
        let max_message = client.max_payload().min(MAX_MESSAGE_BYTES);
        let write = NatsWriteHalf {
            // A server that takes no byte more than a header refuses messages, with its reason.
            max_payload: max_message.saturating_sub(HEADER_BYTES).max(1),
            shared,
            client,
            is_shut: false,
        };
        Self {
            read: Box::new(read),
            write: Box::new(write),
        }
    }

    /// The other side, for logs.
    pub(crate) fn peer(&self) -> &str {
        &self.read.shared.ends.peer
    }
}

/// What arrives.
pub(crate) struct NatsReadHalf {
    shared: Arc<Shared>,
    client: Client,
    incoming: Subscriber,
    receiving: Receiving,
    /// The rest of the last data message.
    unread: Bytes,
    /// What follows `unread`.
    end: Option<End>,
    outage: Pin<Box<dyn Future<Output = String> + Send>>,
}

#[derive(Debug, Clone)]
enum End {
    Closed,
    Fault(Fault),
}

impl NatsReadHalf {
    /// Moves what has arrived into `into`, as much as it holds, so that one read finds what several messages brought.
    fn fill(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) {
        while into.remaining() > 0 {
            if self.unread.has_remaining() {
                let bytes = self.unread.len().min(into.remaining());
                into.put_slice(&self.unread.split_to(bytes));
                continue;
            }
            if self.end.is_some() {
                return;
            }
            let taken = match self.incoming.poll_next_unpin(cx) {
                Poll::Ready(Some(message)) => self.take(message),
                Poll::Ready(None) => Err(Fault::Client("its subscription ended".into())),
                Poll::Pending => return,
            };
            if let Err(fault) = taken {
                self.fail(fault);
            }
        }
    }

    fn take(&mut self, message: async_nats::Message) -> Result<(), Fault> {
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(Fault::Gone);
        }
        let message = message::decode(message.payload)?;
        if message.connection != self.shared.ends.connection {
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
                // Counted as read when the reader comes for it: no more than this one message is held beside NATS'
                // client.
                self.receiving.read(cost(bytes.len()));
                self.unread = bytes;
            }
            Content::Credit(bytes) => {
                let mut outgoing = self.shared.outgoing.lock();
                outgoing.sending.credit(bytes);
                if let Some(writer) = outgoing.writer.take() {
                    writer.wake();
                }
            }
            Content::Close => self.end = Some(End::Closed),
            Content::Connect { .. } | Content::Accept { .. } | Content::Reset(_) | Content::Unknown => {}
        }
        Ok(())
    }

    fn fail(&mut self, fault: Fault) {
        self.shared.fail(fault.clone());
        self.end.get_or_insert(End::Fault(fault));
    }

    /// Tells the other side what was read, once that is enough and the client has room.
    fn give_credit(&mut self, cx: &mut Context<'_>) {
        if self.end.is_some() || !self.receiving.owes_credit() {
            return;
        }
        let given = match self.client.poll_ready_unpin(cx) {
            Poll::Pending => return,
            Poll::Ready(Ok(())) => {
                let credit = Content::Credit(self.receiving.take_credit());
                self.shared.send(&mut self.client, &credit)
            }
            Poll::Ready(Err(error)) => Err(error.into()),
        };
        if let Err(fault) = given {
            self.fail(fault);
        }
    }
}

impl AsyncRead for NatsReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        this.fill(cx, into);
        this.give_credit(cx);
        if into.filled().len() > before || into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.end.is_none()
            && let Poll::Ready(reason) = this.outage.poll_unpin(cx)
        {
            this.fail(Fault::Away(reason));
        }
        match &this.end {
            None => Poll::Pending,
            Some(End::Closed) => Poll::Ready(Ok(())),
            Some(End::Fault(fault)) => Poll::Ready(Err(fault.clone().into())),
        }
    }
}

impl fmt::Debug for NatsReadHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsReadHalf")
            .field("ends", &self.shared.ends)
            .finish_non_exhaustive()
    }
}

/// What is sent. Each write is a message, so what is ready together should be written together.
#[derive(Debug)]
pub(crate) struct NatsWriteHalf {
    shared: Arc<Shared>,
    client: Client,
    max_payload: usize,
    is_shut: bool,
}

impl NatsWriteHalf {
    /// The last message: nothing follows, or what is wrong.
    fn poll_last(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let fault = self.shared.outgoing.lock().fault.clone();
        let last = match fault {
            _ if self.is_shut => return Poll::Ready(Ok(())),
            None => Content::Close,
            Some(fault) if fault.is_news() => Content::Reset(fault.to_string()),
            Some(_) => return Poll::Ready(Ok(())),
        };
        ready!(self.client.poll_ready_unpin(cx))?;
        self.is_shut = true;
        Poll::Ready(self.shared.send(&mut self.client, &last))
    }
}

impl AsyncWrite for NatsWriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        {
            let mut outgoing = this.shared.outgoing.lock();
            if let Some(fault) = &outgoing.fault {
                return Poll::Ready(Err(fault.clone().into()));
            }
            if !outgoing.sending.has_room() {
                outgoing.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        // Asked for only when it is used at once: places in the client's queue are few.
        ready!(this.client.poll_ready_unpin(cx)).map_err(Fault::from)?;
        let sent = bytes.len().min(this.max_payload);
        this.shared
            .send(&mut this.client, &Content::Data(&bytes[..sent]))?;
        Poll::Ready(Ok(sent))
    }

    /// NATS' client writes what it is given without being asked.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_last(cx).map_err(Into::into)
    }
}

impl Drop for NatsWriteHalf {
    /// Tries once: where the client has no room the other side learns of it from the server or by its pings.
    fn drop(&mut self) {
        let _ = unconstrained(std::future::poll_fn(|cx| self.poll_last(cx))).now_or_never();
    }
}
