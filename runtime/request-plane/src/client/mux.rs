//! The streams of one link, without the socket: the pieces that arrived for each stream, the output, and the windows. The
//! wakers of tasks that a change concerns are collected; the caller wakes them once nothing is borrowed.

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    mem,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use signalbox_protocol::{ErrorKind, StreamSummary, WireError};
use tokio_util::codec::Encoder;

use super::{error::LinkError, response_event::ResponseEvent};
use crate::{
    call_parts::CallParts,
    frame::{self, Frame, FrameCodec, HEAD_BYTES, TokenIds, piece_cost},
};

/// The two length fields of an Open frame.
const OPEN_FIELDS_BYTES: usize = 8;

/// Bytes of pongs that may wait beside the calls. Beyond it, the worker sends pings and does not read.
const CONTROL_BYTES: usize = 1 << 20;

/// The streams of one link. The link does not reuse stream ids, not even on its next connection, so late frames of a
/// cancelled stream find no stream.
pub(super) struct Mux {
    window: i64,
    max_streams: usize,
    /// Largest Open frame: this router's limit, and once connected also the worker's.
    max_open: usize,
    max_frame: usize,
    streams: HashMap<u32, Slot>,
    last_id: u32,
    /// Framed bytes that wait for the writer.
    out: BytesMut,
    /// Streams whose Open frame is still in `out`. If the connection is lost now, their calls never reached the worker.
    unwritten: Vec<u32>,
    writer: Option<Waker>,
    /// Wakers to wake once nothing is borrowed.
    woken: Vec<Waker>,
}

/// One stream.
#[derive(Default)]
struct Slot {
    /// Pieces that arrived and are not read yet, each with its tokens and their ids.
    pieces: VecDeque<(u32, TokenIds, Bytes)>,
    /// Read after the pieces. The stream is open at the worker while this is `None`.
    end: Option<Result<StreamSummary, LinkError>>,
    reader: Option<Waker>,
    /// Bytes that the worker may still send; one piece may take it below zero.
    allowance: i64,
    /// Bytes that were read and not yet returned to the worker as credit.
    unreturned: u32,
}

/// Why a call was not opened.
#[derive(Debug)]
pub(super) enum OpenRefusal {
    Full { limit: usize },
    TooLarge { bytes: usize, limit: usize },
    Congested { bytes: usize },
    Json(serde_json::Error),
}

/// The effect of a frame on the link as a whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FrameEffect {
    /// None: the frame concerned one stream, or no stream.
    Nothing,
    /// The worker takes no new calls.
    Drain,
}

/// Why a frame ends the connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Violation {
    #[error("the worker closed the connection: {0}")]
    ClosedByWorker(String),
    #[error("the worker sent a {0} frame, which a worker may not send at this point")]
    Unexpected(&'static str),
    #[error("the worker sent more than the window of stream {stream} allows")]
    Overrun { stream: u32 },
    #[error("the worker does not read: {bytes} bytes wait to be written to it")]
    NotReading { bytes: usize },
}

impl Mux {
    pub(super) fn new(window: u32, max_streams: usize, max_frame: usize) -> Self {
        Self {
            window: window.into(),
            max_streams,
            max_open: max_frame,
            max_frame,
            streams: HashMap::new(),
            last_id: 0,
            out: BytesMut::new(),
            unwritten: Vec::new(),
            writer: None,
            woken: Vec::new(),
        }
    }

    /// Notes the largest frame that the worker accepts. Calls that were queued before and are larger fail.
    pub(super) fn connected(&mut self, worker_max_frame: usize) {
        self.max_open = self.max_frame.min(worker_max_frame);
        if self.out.len() <= self.max_open {
            return;
        }
        let queued = mem::take(&mut self.out);
        let mut rest = &queued[..];
        while let Some((length, _)) = rest.split_first_chunk::<4>() {
            let bytes = u32::from_le_bytes(*length) as usize;
            let (frame, others) = rest.split_at((4 + bytes).min(rest.len()));
            if bytes <= self.max_open {
                self.out.extend_from_slice(frame);
            } else if let Some(stream) = frame[5..].first_chunk::<4>() {
                self.end(u32::from_le_bytes(*stream), Err(too_large(bytes, self.max_open)));
            }
            rest = others;
        }
    }

    /// Opens a stream and queues its Open frame.
    pub(super) fn open(&mut self, parts: &CallParts) -> Result<u32, OpenRefusal> {
        if self.streams.len() >= self.max_streams {
            return Err(OpenRefusal::Full {
                limit: self.max_streams,
            });
        }
        if self.out.len() >= self.max_frame {
            return Err(OpenRefusal::Congested {
                bytes: self.out.len(),
            });
        }
        let call = serde_json::to_vec(&parts.call).map_err(OpenRefusal::Json)?;
        let bytes = HEAD_BYTES + OPEN_FIELDS_BYTES + call.len() + parts.tokens.len() * 4 + parts.body.len();
        if bytes > self.max_open {
            return Err(OpenRefusal::TooLarge {
                bytes,
                limit: self.max_open,
            });
        }
        let id = self.next_id();
        frame::put_open(&mut self.out, id, &call, &parts.tokens, &parts.body);
        self.streams.insert(
            id,
            Slot {
                allowance: self.window,
                ..Slot::default()
            },
        );
        self.unwritten.push(id);
        self.wake_writer();
        Ok(id)
    }

    fn next_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if self.last_id != 0 && !self.streams.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    /// Takes a frame that arrived after the hello.
    pub(super) fn on_frame(&mut self, frame: Frame) -> Result<FrameEffect, Violation> {
        match frame {
            Frame::Data {
                stream,
                tokens,
                ids,
                bytes,
            } => {
                let Some(slot) = self.streams.get_mut(&stream).filter(|slot| slot.end.is_none()) else {
                    return Ok(FrameEffect::Nothing);
                };
                if slot.allowance <= 0 {
                    return Err(Violation::Overrun { stream });
                }
                slot.allowance -= i64::from(piece_cost(ids.as_bytes().len(), bytes.len()));
                slot.pieces.push_back((tokens, ids, bytes));
                self.woken.extend(slot.reader.take());
            }
            Frame::End { stream, summary } => self.end(stream, Ok(summary)),
            Frame::Fail { stream: 0, json } => {
                return Err(Violation::ClosedByWorker(wire_error(&json).message));
            }
            Frame::Fail { stream, json } => self.end(stream, Err(LinkError::Refused(wire_error(&json)))),
            Frame::Drain => return Ok(FrameEffect::Drain),
            Frame::Ping { nonce } => {
                self.put(Frame::Pong { nonce });
                if self.out.len() > 2 * self.max_frame + CONTROL_BYTES {
                    return Err(Violation::NotReading {
                        bytes: self.out.len(),
                    });
                }
            }
            // Any bytes that arrive answer a ping.
            Frame::Pong { .. } => {}
            Frame::Hello { .. }
            | Frame::HelloAck { .. }
            | Frame::Open { .. }
            | Frame::Cancel { .. }
            | Frame::Credit { .. } => return Err(Violation::Unexpected(frame.name())),
        }
        Ok(FrameEffect::Nothing)
    }

    fn end(&mut self, stream: u32, end: Result<StreamSummary, LinkError>) {
        if let Some(slot) = self.streams.get_mut(&stream).filter(|slot| slot.end.is_none()) {
            slot.end = Some(end);
            self.woken.extend(slot.reader.take());
        }
    }

    /// The stream's next event; `None` after the last one. Reading returns credit to the worker, half a window at a time.
    pub(super) fn poll_next(
        &mut self,
        stream: u32,
        cx: &Context<'_>,
    ) -> Poll<Option<Result<ResponseEvent, LinkError>>> {
        let Some(slot) = self.streams.get_mut(&stream) else {
            return Poll::Ready(None);
        };
        if let Some((tokens, ids, bytes)) = slot.pieces.pop_front() {
            slot.unreturned += piece_cost(ids.as_bytes().len(), bytes.len());
            if slot.end.is_none() && i64::from(slot.unreturned) * 2 >= self.window {
                let credit = mem::take(&mut slot.unreturned);
                slot.allowance += i64::from(credit);
                frame::put_credit(&mut self.out, stream, credit);
                self.wake_writer();
            }
            return Poll::Ready(Some(Ok(ResponseEvent::Data { tokens, ids, bytes })));
        }
        if let Some(end) = slot.end.take() {
            self.streams.remove(&stream);
            return Poll::Ready(Some(end.map(ResponseEvent::End)));
        }
        if !slot
            .reader
            .as_ref()
            .is_some_and(|reader| reader.will_wake(cx.waker()))
        {
            // The replaced waker is woken, not dropped: a drop may run foreign code, which must not happen while the link is
            // borrowed.
            self.woken.extend(slot.reader.replace(cx.waker().clone()));
        }
        Poll::Pending
    }

    /// Removes a stream that is no longer read, and cancels it at the worker if it is open there.
    pub(super) fn cancel(&mut self, stream: u32) {
        if let Some(slot) = self.streams.remove(&stream) {
            self.woken.extend(slot.reader);
            if slot.end.is_none() {
                self.put(Frame::Cancel { stream });
            }
        }
    }

    /// Queues a ping. Any bytes that arrive answer it, so its number has no meaning.
    pub(super) fn ping(&mut self) {
        self.put(Frame::Ping { nonce: 0 });
    }

    fn put(&mut self, frame: Frame) {
        // A control frame is smaller than any limit, so encoding cannot fail.
        let _ = FrameCodec::new(usize::MAX).encode(frame, &mut self.out);
        self.wake_writer();
    }

    /// Whether nothing is to be written and no stream is open at the worker.
    pub(super) fn is_idle(&self) -> bool {
        self.out.is_empty() && self.streams.values().all(|slot| slot.end.is_some())
    }

    /// Swaps the output into `into`, which is empty. False if there is no output.
    pub(super) fn take_output(&mut self, into: &mut BytesMut) -> bool {
        debug_assert!(into.is_empty(), "the output taken before has been written");
        if self.out.is_empty() {
            return false;
        }
        mem::swap(&mut self.out, into);
        self.unwritten.clear();
        true
    }

    /// Registers the writer's waker for the next output.
    pub(super) fn await_output(&mut self, cx: &Context<'_>) {
        self.writer = Some(cx.waker().clone());
    }

    /// Fails every open stream, because the connection is lost. `error(written)` returns the error of a stream;
    /// `written` is true if its call was sent.
    pub(super) fn lost(&mut self, error: impl Fn(bool) -> LinkError) {
        let unwritten = mem::take(&mut self.unwritten);
        for (id, slot) in &mut self.streams {
            if slot.end.is_none() {
                slot.end = Some(Err(error(!unwritten.contains(id))));
                self.woken.extend(slot.reader.take());
            }
        }
        self.out = BytesMut::new();
        self.max_open = self.max_frame;
        self.wake_writer();
    }

    pub(super) fn wake_writer(&mut self) {
        self.woken.extend(self.writer.take());
    }

    /// The wakers to wake. The caller returns the emptied vector with [`Self::recycle`].
    pub(super) fn take_woken(&mut self) -> Vec<Waker> {
        mem::take(&mut self.woken)
    }

    /// Takes back the vector of [`Self::take_woken`], which saves an allocation for each read.
    pub(super) fn recycle(&mut self, woken: Vec<Waker>) {
        if self.woken.capacity() == 0 {
            self.woken = woken;
        }
    }

    /// Adds a waker to those to wake.
    pub(super) fn wake(&mut self, waker: Option<Waker>) {
        self.woken.extend(waker);
    }
}

/// The error of a call that is larger than a frame may be.
pub(super) fn too_large(bytes: usize, limit: usize) -> LinkError {
    LinkError::Refused(WireError::new(
        ErrorKind::TooLarge,
        format!("the request takes {bytes} bytes on the way to the worker; at most {limit} are allowed"),
    ))
}

/// The error in a Fail frame. JSON that this router does not know, of a newer worker, becomes an internal error with the
/// JSON as its text.
fn wire_error(json: &[u8]) -> WireError {
    serde_json::from_slice(json).unwrap_or_else(|_| {
        let mut text = String::from_utf8_lossy(json).into_owned();
        // Enough to recognise it in a log.
        text.truncate(text.floor_char_boundary(500));
        WireError::new(
            ErrorKind::Internal,
            format!("the worker failed with an error that this router does not know: {text}"),
        )
    })
}
