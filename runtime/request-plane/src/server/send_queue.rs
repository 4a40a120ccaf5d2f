//! What one connection has still to write, and the streams it belongs to; without the socket.

#[cfg(test)]
mod tests;

use std::{collections::VecDeque, mem, sync::Arc};

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use signalbox_protocol::{ErrorKind, StreamSummary, WireError};
use tokio_util::codec::Encoder;

use super::{
    responder::{CallerGone, StreamSignal},
    state::GeneratingGuard,
};
use crate::{
    frame::{self, Frame, FrameCodec, piece_cost},
    hello::WINDOW_BYTES,
};

/// Pieces are framed while less than this waits to be written; beyond it they wait with their stream, so that a
/// blocked socket holds this much and one piece, not every stream's window.
const FULL_BYTES: usize = 1 << 20;

/// Where control frames alone have filled the output this far, the router sends and does not read.
const NOT_READING_BYTES: usize = 4 << 20;

/// What one connection has still to write.
#[derive(Debug)]
pub(super) struct SendQueue {
    out: BytesMut,
    streams: HashMap<u32, OutStream>,
    /// Streams that could send if `out` were not full, in the order they will.
    waiting: VecDeque<u32>,
    /// Whose responders are to be woken once the send_queue is unlocked.
    woken: Vec<Arc<StreamSignal>>,
    window: i64,
    backlog_bytes: usize,
    max_streams: usize,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// No stream is left; what is queued is still written.
    Finishing,
    Closed,
}

#[derive(Debug)]
struct OutStream {
    signal: Arc<StreamSignal>,
    /// Bytes the router has room for; one piece may take it below zero.
    window: i64,
    backlog: VecDeque<(u32, Bytes)>,
    backlog_bytes: usize,
    /// Follows the backlog.
    ending: Option<Ending>,
    is_waiting: bool,
    sender_waits: bool,
    _generating: Option<GeneratingGuard>,
}

/// How an answer ends.
#[derive(Debug)]
pub(super) enum Ending {
    End(StreamSummary),
    Fail(WireError),
}

/// What became of a piece offered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offer {
    Taken,
    /// The stream's signal tells when to offer it again.
    NoRoom,
    Gone,
}

/// Why a stream was not opened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OpenError {
    /// The router broke the protocol.
    InUse,
    /// This stream fails.
    Full { limit: usize },
}

/// What the writer is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    Write,
    Wait,
    /// Nothing will come any more.
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

    /// A router opens a stream.
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

    /// A piece that is sent as soon as there is room for it.
    pub(super) fn queue(&mut self, stream: u32, tokens: u32, bytes: &[u8]) -> Result<(), CallerGone> {
        let slot = self
            .streams
            .get_mut(&stream)
            .filter(|slot| slot.ending.is_none())
            .ok_or(CallerGone)?;
        if slot.backlog.is_empty() && slot.window > 0 && self.out.len() < FULL_BYTES {
            slot.window -= i64::from(piece_cost(bytes));
            frame::put_data(&mut self.out, stream, tokens, bytes);
            return Ok(());
        }
        slot.backlog_bytes += piece_cost(bytes) as usize;
        if slot.backlog_bytes > self.backlog_bytes {
            let error = WireError::new(
                ErrorKind::Overloaded,
                format!(
                    "The client reads too slowly: more than {} bytes of its answer wait.",
                    self.backlog_bytes
                ),
            );
            self.put_ending(stream, Ending::Fail(error));
            self.cancel(stream);
            metrics::counter!("signalbox_request_plane_slow_readers_total").increment(1);
            return Err(CallerGone);
        }
        slot.backlog.push_back((tokens, Bytes::copy_from_slice(bytes)));
        self.advance(stream);
        Ok(())
    }

    /// A piece that is sent now or not at all.
    pub(super) fn offer(&mut self, stream: u32, bytes: &[u8]) -> Offer {
        let Some(slot) = self.streams.get_mut(&stream).filter(|slot| slot.ending.is_none()) else {
            return Offer::Gone;
        };
        if slot.backlog.is_empty() && slot.window > 0 && self.out.len() < FULL_BYTES {
            slot.window -= i64::from(piece_cost(bytes));
            frame::put_data(&mut self.out, stream, 0, bytes);
            return Offer::Taken;
        }
        slot.sender_waits = true;
        self.advance(stream);
        Offer::NoRoom
    }

    /// The answer ends, after what it has queued.
    pub(super) fn finish(&mut self, stream: u32, ending: Ending) {
        if let Some(slot) = self.streams.get_mut(&stream) {
            slot.ending.get_or_insert(ending);
            self.advance(stream);
        }
    }

    /// Moves what a stream has waiting towards the socket, as far as its window and the output allow.
    fn advance(&mut self, stream: u32) {
        let Some(slot) = self.streams.get_mut(&stream) else {
            return;
        };
        while slot.window > 0
            && self.out.len() < FULL_BYTES
            && let Some((tokens, bytes)) = slot.backlog.pop_front()
        {
            let cost = piece_cost(&bytes);
            slot.window -= i64::from(cost);
            slot.backlog_bytes -= cost as usize;
            frame::put_data(&mut self.out, stream, tokens, &bytes);
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

    /// The router has read so much of a stream. Credit for a stream that has ended crossed its end.
    pub(super) fn credit(&mut self, stream: u32, bytes: u32) {
        if let Some(slot) = self.streams.get_mut(&stream) {
            slot.window = (slot.window + i64::from(bytes)).min(i64::from(*WINDOW_BYTES.end()));
            self.advance(stream);
        }
    }

    /// The router wants no more of a stream.
    pub(super) fn cancel(&mut self, stream: u32) {
        if let Some(slot) = self.streams.remove(&stream) {
            slot.signal.cancel();
            self.woken.push(slot.signal);
        }
    }

    /// Fails a stream that was never opened.
    pub(super) fn refuse(&mut self, stream: u32, error: WireError) {
        self.put_ending(stream, Ending::Fail(error));
    }

    fn put_ending(&mut self, stream: u32, ending: Ending) {
        self.put(match ending {
            Ending::End(summary) => Frame::End { stream, summary },
            Ending::Fail(error) => Frame::Fail {
                stream,
                json: error_json(&error),
            },
        });
    }

    /// Queues a control frame.
    pub(super) fn put(&mut self, frame: Frame) {
        if self.phase == Phase::Open {
            // Control frames are small, so no limit applies.
            let _ = FrameCodec::new(usize::MAX).encode(frame, &mut self.out);
        }
    }

    /// Bytes that wait because the router does not read what control frames answer; `None` while it does.
    pub(super) fn unread(&self) -> Option<usize> {
        (self.out.len() > NOT_READING_BYTES).then_some(self.out.len())
    }

    pub(super) fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Swaps what is to be written into `into`, which is empty.
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

    /// Cancels every stream and takes nothing more; what is framed already is still to be written, and `last` with
    /// it.
    pub(super) fn finish_all(&mut self, last: Option<&WireError>) {
        if let Some(error) = last {
            self.put(Frame::Fail {
                stream: 0,
                json: error_json(error),
            });
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

    /// The connection is gone.
    pub(super) fn close(&mut self) {
        self.finish_all(None);
        self.phase = Phase::Closed;
        self.out = BytesMut::new();
    }

    /// Whose responders to wake, once the lock is released.
    pub(super) fn take_woken(&mut self) -> Vec<Arc<StreamSignal>> {
        mem::take(&mut self.woken)
    }
}

/// An error for the wire.
pub(super) fn error_json(error: &WireError) -> Bytes {
    serde_json::to_vec(error).unwrap_or_default().into()
}
