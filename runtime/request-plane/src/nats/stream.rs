//! A connection over NATS as a duplex byte stream.
//!
//! The stream has no task of its own. Each half takes the messages that have arrived when it is polled. The reader returns
//! credit for the bytes it has read, and the writer passes messages to the NATS client.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use futures_util::{FutureExt, SinkExt};
use parking_lot::Mutex;
use signalbox_nats::{
    NatsConnection,
    async_nats::{Client, Subscriber},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::coop::unconstrained,
};

use super::{
    connection::{Ends, Fault, NatsByteStream, Tasks},
    message::{Content, HEADER_BYTES},
};

/// Largest message in bytes, header included: a quarter of what NATS servers accept by default, so that messages of other
/// clients pass in between.
const MAX_MESSAGE_BYTES: usize = 256 << 10;

/// Both directions of a connection.
#[derive(Debug)]
pub(crate) struct NatsStream {
    pub(crate) read: Box<NatsReadHalf>,
    pub(crate) write: Box<NatsWriteHalf>,
}

/// The incoming direction.
#[derive(Debug)]
pub(crate) struct NatsReadHalf(Half);

/// The outgoing direction. Each write is a message, so bytes that are ready together should be written together.
#[derive(Debug)]
pub(crate) struct NatsWriteHalf {
    half: Half,
    max_payload: usize,
    is_shut: bool,
}

/// What each half has of the connection.
#[derive(Debug)]
struct Half {
    connection: Arc<Mutex<NatsByteStream>>,
    tasks: Arc<Tasks>,
    /// Wakes `tasks`.
    waker: Waker,
    /// A clone for this half alone, because a place in the client's queue is reserved through a clone.
    client: Client,
}

impl NatsStream {
    /// The stream of an accepted connection. `incoming` is a subscription to `ends.own`, and `window` the window that the
    /// other side gave.
    pub(super) fn new(nats: &NatsConnection, ends: Ends, incoming: Subscriber, window: u32) -> Self {
        let connection = Arc::new(Mutex::new(NatsByteStream::new(nats, ends, incoming, window)));
        let tasks = Arc::new(Tasks::default());
        let client = nats.client();
        let max_message = client.max_payload().min(MAX_MESSAGE_BYTES);
        let half = || Half {
            connection: connection.clone(),
            tasks: tasks.clone(),
            waker: tasks.clone().into(),
            client: client.clone(),
        };
        Self {
            read: Box::new(NatsReadHalf(half())),
            write: Box::new(NatsWriteHalf {
                half: half(),
                // At least 1: a server whose limit is below a header refuses each message with its own error.
                max_payload: max_message.saturating_sub(HEADER_BYTES).max(1),
                is_shut: false,
            }),
        }
    }

    /// The other side's subject, for logs.
    pub(crate) fn peer(&self) -> String {
        self.read.0.connection.lock().ends().peer.to_string()
    }
}

impl NatsReadHalf {
    fn poll_fill(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<Result<(), Fault>> {
        let half = &mut self.0;
        half.tasks.reader.register(cx.waker());
        let mut connection = half.connection.lock();
        connection.receive(&half.waker);
        let before = into.filled().len();
        connection.read(into);
        if connection.owes_credit()
            && connection.fault().is_none()
            && let Poll::Ready(ready) = half.client.poll_ready_unpin(cx)
        {
            ready?;
            connection.send_credit(&mut half.client)?;
        }
        if into.filled().len() > before || into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        connection.poll_end()
    }
}

impl AsyncRead for NatsReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_fill(cx, into).map_err(Into::into)
    }
}

impl NatsWriteHalf {
    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Fault>> {
        let half = &mut self.half;
        let mut connection = half.connection.lock();
        if !connection.has_room() {
            half.tasks.writer.register(cx.waker());
            connection.receive(&half.waker);
        }
        if let Some(fault) = connection.fault() {
            return Poll::Ready(Err(fault.clone()));
        }
        if !connection.has_room() {
            return Poll::Pending;
        }
        // Reserved only right before use, because the client's queue has few places.
        ready!(half.client.poll_ready_unpin(cx))?;
        let sent = bytes.len().min(self.max_payload);
        connection.send(&mut half.client, &Content::Data(&bytes[..sent]))?;
        Poll::Ready(Ok(sent))
    }

    /// Sends the last message: Close, or Reset with the fault.
    fn poll_last(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let half = &mut self.half;
        let mut connection = half.connection.lock();
        let last = match connection.fault() {
            _ if self.is_shut => return Poll::Ready(Ok(())),
            None => Content::Close,
            Some(fault) if fault.needs_reset() => Content::Reset(fault.to_string()),
            Some(_) => return Poll::Ready(Ok(())),
        };
        ready!(half.client.poll_ready_unpin(cx))?;
        self.is_shut = true;
        Poll::Ready(connection.send(&mut half.client, &last))
    }
}

impl AsyncWrite for NatsWriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.get_mut().poll_send(cx, bytes).map_err(Into::into)
    }

    /// The NATS client writes its messages without a flush.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_last(cx).map_err(Into::into)
    }
}

impl Drop for NatsWriteHalf {
    /// Tries once to send the last message. If the client has no room, the other side notices the loss by the server's
    /// report or by its pings.
    fn drop(&mut self) {
        let _ = unconstrained(std::future::poll_fn(|cx| self.poll_last(cx))).now_or_never();
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::new(io::ErrorKind::ConnectionReset, fault)
    }
}
