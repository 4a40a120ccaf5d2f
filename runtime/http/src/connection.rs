//! One client's connection, with the limits that the HTTP library lacks.
//!
//! The library limits the time of a connection's first request head only, accepts heads whose lines end with a bare line
//! feed, reads an unwanted chunked body for as long as it lasts, and reports a broken body like a lost connection.
//! [`Connection`] wraps the socket below the library, and [`ConnectionHandle`] is what requests and their answers notify:
//!
//! - Every head arrives within [`HEAD_TIMEOUT`] from its first byte, or the connection is closed, with a 408 if possible.
//! - A head with a bare line feed gets a 400, because the next server may understand it in another way.
//! - When a request was answered before its chunked body was read, the connection is closed within [`LINGER`].
//!
//! A head that arrives in one piece, as nearly all do, costs a search for line feeds and no timer.

mod head_scan;

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use actix_rt::net::TcpStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use self::head_scan::{HeadScan, Scanned};
use crate::connection_limits::Place;

/// Longest time for a request's head, from its first byte. A head is one packet or a few.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an idle connection is kept. Longer than the 60 s of common load balancers, so that the balancer closes
/// first.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// Longest time for a head of which a part may have been read together with the body before it. The library closes an idle
/// connection before this.
const READ_AHEAD_TIMEOUT: Duration = Duration::from_secs(80);

/// How long a connection is still read after its request was refused unread, so that the client gets the answer
/// rather than a reset.
pub(crate) const LINGER: Duration = Duration::from_secs(5);

/// The status for a head that is not complete in time.
const TOO_SLOW: &str = "408 Request Timeout";

/// A connection to a client, as the HTTP library reads and writes it.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: TcpStream,
    handle: ConnectionHandle,
    /// Fires at the deadline that the handle had when the connection was last read.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Bytes of an answer wait for the socket, so nothing else may be written.
    is_writing: bool,
    /// Counts the connection until its end.
    _place: Place,
}

/// What a request and its answer know of their connection, and notify it of. Clone = handle.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConnectionHandle(Rc<State>);

#[derive(Debug, Default)]
struct State {
    /// Whether a request is under way: from its head to the last byte of its answer.
    is_busy: Cell<bool>,
    scan: RefCell<HeadScan>,
    /// Bytes arrived behind the head of the request under way: its body, or the head of the next request.
    read_ahead: Cell<bool>,
    /// By when the next head must be complete.
    head_deadline: Cell<Option<Instant>>,
    /// When the connection is closed, whatever the client sends.
    close_at: Cell<Option<Instant>>,
    /// The request under way has a chunked body whose end was not read.
    body_is_open: Cell<bool>,
    /// The client has closed the connection, or it broke.
    is_gone: Cell<bool>,
    /// Of the task that serves the connection, if it waits for bytes.
    reader: RefCell<Option<Waker>>,
}

/// A request under way. Dropping it means that its answer is written.
#[derive(Debug)]
pub(crate) struct Exchange(Option<ConnectionHandle>);

impl ConnectionHandle {
    /// A request begins: its head is complete.
    pub(crate) fn begin(&self, has_chunked_body: bool) -> Exchange {
        let state = &*self.0;
        state.is_busy.set(true);
        state.head_deadline.set(None);
        state.body_is_open.set(has_chunked_body);
        Exchange(Some(self.clone()))
    }

    /// The body of the request under way was read to its end.
    pub(crate) fn body_ended(&self) {
        self.0.body_is_open.set(false);
    }

    /// Whether the client closed the connection. If not, a body that broke off has broken framing.
    pub(crate) fn is_gone(&self) -> bool {
        self.0.is_gone.get()
    }

    fn wake(&self) {
        if let Some(reader) = self.0.reader.take() {
            reader.wake();
        }
    }

    /// Looks at bytes that arrived. The error is the status of the answer to a client whose bytes the library must not have.
    fn check(&self, bytes: &[u8]) -> Result<(), &'static str> {
        let state = &*self.0;
        if state.is_busy.get() {
            state.read_ahead.set(true);
            return Ok(());
        }
        match state.scan.borrow_mut().scan(bytes) {
            Scanned::Incomplete => {
                let now = Instant::now();
                let soon = now + HEAD_TIMEOUT;
                // Counted from the head's first byte. A deadline for a head that was read ahead is later than that.
                match state.head_deadline.get() {
                    Some(deadline) if deadline <= now => return Err(TOO_SLOW),
                    Some(deadline) if deadline <= soon => {}
                    _ => state.head_deadline.set(Some(soon)),
                }
                Ok(())
            }
            Scanned::Complete { has_more } => {
                state.head_deadline.set(None);
                state.read_ahead.set(state.read_ahead.get() || has_more);
                Ok(())
            }
            Scanned::BareLineFeed => Err("400 Bad Request"),
        }
    }

    /// When the connection is closed unless something happens before.
    fn deadline(&self) -> Option<Instant> {
        match (self.0.close_at.get(), self.0.head_deadline.get()) {
            (Some(close), Some(head)) => Some(close.min(head)),
            (close, head) => close.or(head),
        }
    }
}

impl Exchange {
    /// A request without a connection, as in tests of handlers.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Whether the connection ends with this answer, because the client may still be sending a body that nobody reads.
    pub(crate) fn closes(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|connection| connection.0.body_is_open.get())
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let closes = self.closes();
        let Some(connection) = self.0.take() else {
            return;
        };
        let state = &*connection.0;
        state.is_busy.set(false);
        *state.scan.borrow_mut() = HeadScan::default();
        if state.read_ahead.replace(false) {
            // A part of the next head may be among the bytes read ahead. The library drops its idle timer then.
            state.head_deadline.set(Some(Instant::now() + READ_AHEAD_TIMEOUT));
        }
        if closes {
            state.close_at.set(Some(Instant::now() + LINGER));
            connection.wake();
        }
    }
}

impl Connection {
    pub(crate) fn new(socket: TcpStream, place: Place) -> Self {
        Self {
            socket,
            handle: ConnectionHandle::default(),
            alarm: None,
            is_writing: false,
            _place: place,
        }
    }

    pub(crate) fn handle(&self) -> ConnectionHandle {
        self.handle.clone()
    }

    /// Ends the connection from the library's view: the client seems to have closed its side.
    fn end(&self) -> Poll<io::Result<()>> {
        self.handle.0.is_gone.set(true);
        Poll::Ready(Ok(()))
    }

    /// Sends an answer of this layer, if no other one is being written. It fits any socket's buffer.
    fn answer(&self, status: &str) {
        if !self.is_writing {
            let _ = self.socket.try_write(&bare_answer(status));
        }
    }

    /// Waits for the deadline, if there is one.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(deadline) = self.handle.deadline() else {
            return Poll::Pending;
        };
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if alarm.deadline() != deadline {
            alarm.as_mut().reset(deadline);
        }
        if alarm.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let state = &*self.handle.0;
        // An idle connection is closed without a word: an answer to no request would be taken for the next one's.
        if state.close_at.get().is_none() && state.scan.borrow().has_bytes() {
            self.answer(TOO_SLOW);
        }
        self.end()
    }
}

/// An answer without a body, after which the connection is closed.
pub(crate) fn bare_answer(status: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").into_bytes()
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this
            .handle
            .0
            .close_at
            .get()
            .is_some_and(|close_at| close_at <= Instant::now())
        {
            return this.end();
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.socket).poll_read(cx, buf) {
            Poll::Pending => {
                let mut reader = this.handle.0.reader.borrow_mut();
                if !reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker())) {
                    *reader = Some(cx.waker().clone());
                }
                drop(reader);
                this.poll_deadline(cx)
            }
            Poll::Ready(Ok(())) => {
                let arrived = &buf.filled()[before..];
                if arrived.is_empty() {
                    return this.end();
                }
                if let Err(status) = this.handle.check(arrived) {
                    buf.set_filled(before);
                    this.answer(status);
                    return this.end();
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => {
                this.handle.0.is_gone.set(true);
                Poll::Ready(Err(error))
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.is_writing = !matches!(written, Poll::Ready(Ok(written)) if written == buf.len());
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
