//! The send queue of one connection: its output, its streams and their windows, without the socket.

#[cfg(test)]
mod tests;

use std::{collections::VecDeque, mem, sync::Arc};

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use signalbox_protocol::{ErrorKind, StreamSummary, WireError};
use tokio_util::codec::Encoder;

use super::{
    generating::GeneratingGuard,
    stream_signal::{CallerGone, StreamSignal},
};
use crate::{
    frame::{self, Frame, FrameCodec, PieceTokens, piece_cost},
    hello::WINDOW_BYTES,
};

/// The output is full at this many bytes: pieces then wait in their stream's backlog. So a blocked socket holds this much
/// and one piece, not the window of every stream.
const FULL_BYTES: usize = 1 << 20;

/// Only control frames fill the output this far, and only while the router sends frames and reads none.
const NOT_READING_BYTES: usize = 4 << 20;

/// The output of one connection, and its streams.
#[derive(Debug)]
pub(super) struct SendQueue {
    /// Framed bytes that wait for the writer.
    out: BytesMut,
    streams: HashMap<u32, OutStream>,
    /// Streams that have window and wait for room in `out`, in the order of their turns.
    waiting: VecDeque<u32>,
    /// Signals to wake once the send queue is unlocked.
    woken: Vec<Arc<StreamSignal>>,
    window: i64,
    backlog_bytes: usize,
    max_streams: usize,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The streams are cancelled; the output is still written.
    Finishing,
    Closed,
}

#[derive(Debug)]
struct OutStream {
    signal: Arc<StreamSignal>,
    /// Bytes that may still be sent to the router; one piece may take it below zero.
    window: i64,
    /// Framed pieces that wait for window or for room in the output, each with its cost.
    backlog: VecDeque<(u32, Bytes)>,
    backlog_bytes: usize,
    /// Sent after the backlog.
    ending: Option<Ending>,
    /// Whether the stream is in `SendQueue::waiting`.
    is_waiting: bool,
    /// Whether the responder waits until it can offer a piece again.
    sender_waits: bool,
    _generating: Option<GeneratingGuard>,
}

/// How an answer ends.
#[derive(Debug)]
pub(super) enum Ending {
    End(StreamSummary),
    Fail(WireError),
}

/// The result of an offered piece.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offer {
    Taken,
    /// The piece was not taken. The stream's signal is woken when it can be offered again.
    NoRoom,
    /// The caller is gone.
    Gone,
}

/// Why a stream was not opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OpenError {
    /// The number is in use, so the router breaks the protocol.
    InUse,
    /// The connection has as many streams as allowed.
    Full { limit: usize },
}

/// What the writer does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    Write,
    Wait,
    /// No more output will come.
    Finished,
}

impl SendQueue {
    pub(super) fn new(window: u32, backlog_bytes: usize, max_streams: usize) -> Self {
        Self {
            out: BytesMut::new(),
            streams: HashMap::new(),
            waiting: VecDeque::new(),
            woken: Vec::new(),
            window: window.into(),
            backlog_bytes,
            max_streams,
            phase: Phase::Open,
        }
    }

    /// Opens a stream for a router.
    pub(super) fn open(
        &mut self,
        stream: u32,
        generating: Option<GeneratingGuard>,
    ) -> Result<Arc<StreamSignal>, OpenError> {
        if self.streams.contains_key(&stream) {
            return Err(OpenError::InUse);
        }
        if self.streams.len() >= self.max_streams {
            return Err(OpenError::Full {
                limit: self.max_streams,
            });
        }
        let signal = Arc::new(StreamSignal::default());
        let out = OutStream {
            signal: signal.clone(),
            window: self.window,
            backlog: VecDeque::new(),
            backlog_bytes: 0,
            ending: None,
            is_waiting: false,
            sender_waits: false,
            _generating: generating,
        };
        self.streams.insert(stream, out);
        Ok(signal)
    }

    /// Queues a piece, which is sent as soon as there is room for it. A stream that has more than its backlog of them fails,
    /// unless the piece is `of_document`, an answer that is complete.
    pub(super) fn queue(
        &mut self,
        stream: u32,
        tokens: PieceTokens<'_>,
        bytes: &[u8],
        of_document: bool,
    ) -> Result<(), CallerGone> {
        let slot = self
            .streams
            .get_mut(&stream)
            .filter(|slot| slot.ending.is_none())
            .ok_or(CallerGone)?;
        let cost = piece_cost(tokens.id_bytes(), bytes.len());
        if slot.backlog.is_empty() && slot.window > 0 && self.out.len() < FULL_BYTES {
            slot.window -= i64::from(cost);
            frame::put_data(&mut self.out, stream, tokens, bytes);
            return Ok(());
        }
        slot.backlog_bytes += cost as usize;
        if slot.backlog_bytes > self.backlog_bytes && !of_document {
            let error = WireError::new(
                ErrorKind::Overloaded,
                format!(
                    "the client reads too slowly: more than {} bytes of its answer wait",
                    self.backlog_bytes
                ),
            );
            self.put_ending(stream, Ending::Fail(error));
            self.cancel(stream);
            metrics::counter!("signalbox_request_plane_slow_readers_total").increment(1);
            return Err(CallerGone);
        }
        let mut framed = BytesMut::new();
        frame::put_data(&mut framed, stream, tokens, bytes);
        slot.backlog.push_back((cost, framed.freeze()));
        self.advance(stream);
        Ok(())
    }

    /// Sends a piece now or does not take it.
    pub(super) fn offer(&mut self, stream: u32, bytes: &[u8]) -> Offer {
        let Some(slot) = self.streams.get_mut(&stream).filter(|slot| slot.ending.is_none()) else {
            return Offer::Gone;
        };
        if slot.backlog.is_empty() && slot.window > 0 && self.out.len() < FULL_BYTES {
            slot.window -= i64::from(piece_cost(0, bytes.len()));
            frame::put_data(&mut self.out, stream, PieceTokens::Count(0), bytes);
            return Offer::Taken;
        }
        slot.sender_waits = true;
        self.advance(stream);
        Offer::NoRoom
    }

    /// Ends a stream, after its queued pieces.
    pub(super) fn finish(&mut self, stream: u32, ending: Ending) {
        if let Some(slot) = self.streams.get_mut(&stream) {
            slot.ending.get_or_insert(ending);
            self.advance(stream);
        }
    }

    /// Moves a stream's backlog to the output, as far as the stream's window and the output allow.
    fn advance(&mut self, stream: u32) {
        let Some(slot) = self.streams.get_mut(&stream) else {
            return;
        };
        while slot.window > 0
            && self.out.len() < FULL_BYTES
            && let Some((cost, framed)) = slot.backlog.pop_front()
        {
            slot.window -= i64::from(cost);
            slot.backlog_bytes -= cost as usize;
            self.out.extend_from_slice(&framed);
        }
        if slot.backlog.is_empty()
            && let Some(ending) = slot.ending.take()
        {
            self.streams.remove(&stream);
            self.put_ending(stream, ending);
            return;
        }
        let wants_room = !slot.backlog.is_empty() || slot.sender_waits;
        if !wants_room || slot.window <= 0 {
            return;
        }
        if self.out.len() >= FULL_BYTES {
            if !slot.is_waiting {
                slot.is_waiting = true;
                self.waiting.push_back(stream);
            }
        } else if mem::take(&mut slot.sender_waits) {
            self.woken.push(slot.signal.clone());
        }
    }

    /// Adds credit to a stream's window. Credit for an unknown stream crossed the stream's end and is ignored.
    pub(super) fn credit(&mut self, stream: u32, bytes: u32) {
        if let Some(slot) = self.streams.get_mut(&stream) {
            slot.window = (slot.window + i64::from(bytes)).min(i64::from(*WINDOW_BYTES.end()));
            self.advance(stream);
        }
    }

    /// Cancels a stream for the router.
    pub(super) fn cancel(&mut self, stream: u32) {
        if let Some(slot) = self.streams.remove(&stream) {
            slot.signal.cancel();
            self.woken.push(slot.signal);
        }
    }

    /// Fails a stream that was not opened.
    pub(super) fn refuse(&mut self, stream: u32, error: WireError) {
        self.put_ending(stream, Ending::Fail(error));
    }

    fn put_ending(&mut self, stream: u32, ending: Ending) {
        self.put(match ending {
            Ending::End(summary) => Frame::End { stream, summary },
            Ending::Fail(error) => Frame::fail(stream, &error),
        });
    }

    /// Queues a control frame.
    pub(super) fn put(&mut self, frame: Frame) {
        if self.phase == Phase::Open {
            // A control frame is smaller than any limit, so encoding cannot fail.
            let _ = FrameCodec::new(usize::MAX).encode(frame, &mut self.out);
        }
    }

    /// The number of bytes that wait if the router sends frames and does not read the answers; `None` otherwise.
    pub(super) fn unread(&self) -> Option<usize> {
        (self.out.len() > NOT_READING_BYTES).then_some(self.out.len())
    }

    pub(super) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Swaps the output into `into`, which is empty.
    pub(super) fn take(&mut self, into: &mut BytesMut) -> Output {
        while self.out.len() < FULL_BYTES
            && let Some(stream) = self.waiting.pop_front()
        {
            if let Some(slot) = self.streams.get_mut(&stream) {
                slot.is_waiting = false;
                self.advance(stream);
            }
        }
        if self.out.is_empty() {
            return if self.phase == Phase::Open {
                Output::Wait
            } else {
                Output::Finished
            };
        }
        mem::swap(&mut self.out, into);
        Output::Write
    }

    /// Cancels every stream and takes nothing more. Bytes framed already are still written, and then `error` as a Fail
    /// frame on stream 0.
    pub(super) fn finish_all(&mut self, error: Option<&WireError>) {
        if let Some(error) = error {
            self.put(Frame::fail(0, error));
        }
        for (_, slot) in self.streams.drain() {
            slot.signal.cancel();
            self.woken.push(slot.signal);
        }
        self.waiting.clear();
        if self.phase == Phase::Open {
            self.phase = Phase::Finishing;
        }
    }

    /// Cancels every stream and drops the output, because the connection is gone.
    pub(super) fn close(&mut self) {
        self.finish_all(None);
        self.phase = Phase::Closed;
        self.out = BytesMut::new();
    }

    /// The signals to wake once the lock is released.
    pub(super) fn take_woken(&mut self) -> Vec<Arc<StreamSignal>> {
        mem::take(&mut self.woken)
    }
}
