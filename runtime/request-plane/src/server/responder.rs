//! How a call is answered.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use signalbox_protocol::{ErrorKind, StreamSummary, WireError};
use tokio::sync::Notify;

use super::{
    connection::RouterConnection,
    send_queue::{Ending, Offer},
};
use crate::frame::MAX_PIECE_BYTES;

/// Answers one call. Dropped without `end` or `fail`, it fails the stream as internal.
#[derive(Debug)]
pub struct Responder {
    connection: Arc<RouterConnection>,
    stream: u32,
    signal: Arc<StreamSignal>,
    answered: bool,
}

/// The stream is cancelled, its connection gone, or its backlog over the bound: stop working for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the caller is gone")]
pub struct CallerGone;

/// What a stream's responder must learn from its connection.
#[derive(Debug, Default)]
pub(super) struct StreamSignal {
    cancelled: AtomicBool,
    /// Cancelled, or room for another piece.
    changed: Notify,
}

impl StreamSignal {
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    pub(super) fn wake(&self) {
        self.changed.notify_waiters();
    }
}

impl Responder {
    pub(super) fn new(connection: Arc<RouterConnection>, stream: u32, signal: Arc<StreamSignal>) -> Self {
        Self {
            connection,
            stream,
            signal,
            answered: false,
        }
    }

    /// Queues a piece without waking the writer; [`Self::flush`] does. Lets one engine step write all its sequences
    /// in one go. Beyond what the router has room for, pieces are kept up to
    /// [`ServerConfig::stream_backlog_bytes`](super::ServerConfig::stream_backlog_bytes).
    ///
    /// `tokens` is the number of tokens the piece stands for. A piece over [`MAX_PIECE_BYTES`] is cut.
    ///
    /// # Errors
    /// Nobody waits for the answer any more, or the router reads it too slowly and has been told so.
    pub fn queue(&self, tokens: u32, bytes: &[u8]) -> Result<(), CallerGone> {
        if self.is_cancelled() {
            return Err(CallerGone);
        }
        self.connection.queue(|send_queue| {
            cut(tokens, bytes).try_for_each(|(tokens, piece)| send_queue.queue(self.stream, tokens, piece))
        })
    }

    /// Has everything queued on this call's connection written. Where nothing is, it costs one atomic read, so it
    /// may be called for each of a step's sequences.
    pub fn flush(&self) {
        self.connection.flush();
    }

    /// Sends a piece and waits until the router has room for it: for bulk answers and watches. A piece over
    /// [`MAX_PIECE_BYTES`] is cut.
    ///
    /// # Errors
    /// Nobody waits for the answer any more.
    pub async fn send(&self, bytes: &[u8]) -> Result<(), CallerGone> {
        for (_, piece) in cut(0, bytes) {
            loop {
                let changed = self.signal.changed.notified();
                match self
                    .connection
                    .queue(|send_queue| send_queue.offer(self.stream, piece))
                {
                    Offer::Taken => break,
                    Offer::Gone => return Err(CallerGone),
                    Offer::NoRoom => changed.await,
                }
            }
            self.flush();
        }
        Ok(())
    }

    /// The answer is whole. Flushes.
    pub fn end(mut self, summary: StreamSummary) {
        self.finish(Ending::End(summary));
    }

    /// The answer fails. Flushes; pieces already queued go first.
    pub fn fail(mut self, error: WireError) {
        self.finish(Ending::Fail(error));
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_cancelled(&self) -> bool {
        self.signal.cancelled.load(Ordering::Acquire)
    }

    /// Returns once nobody waits for the answer any more.
    pub async fn cancelled(&self) {
        loop {
            let changed = self.signal.changed.notified();
            if self.is_cancelled() {
                return;
            }
            changed.await;
        }
    }

    fn finish(&mut self, ending: Ending) {
        self.answered = true;
        self.connection
            .queue(|send_queue| send_queue.finish(self.stream, ending));
        self.flush();
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.answered {
            let message = "The worker gave up the request without an answer; this is a defect of the worker.";
            self.finish(Ending::Fail(WireError::new(ErrorKind::Internal, message)));
        }
    }
}

/// Parts of at most [`MAX_PIECE_BYTES`]. The tokens count with the last one: then all their bytes are there.
fn cut(tokens: u32, bytes: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let last = bytes.len().saturating_sub(1) / MAX_PIECE_BYTES;
    (0..=last).map(move |part| {
        let start = part * MAX_PIECE_BYTES;
        let end = bytes.len().min(start + MAX_PIECE_BYTES);
        (if part == last { tokens } else { 0 }, &bytes[start..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_at_the_limit_and_the_last_has_the_tokens() {
        let lengths = |len: usize| {
            cut(7, &vec![0; len])
                .map(|(t, b)| (t, b.len()))
                .collect::<Vec<_>>()
        };
        assert_eq!(lengths(0), [(7, 0)]);
        assert_eq!(lengths(MAX_PIECE_BYTES), [(7, MAX_PIECE_BYTES)]);
        assert_eq!(lengths(MAX_PIECE_BYTES + 1), [(0, MAX_PIECE_BYTES), (7, 1)]);
    }
}
