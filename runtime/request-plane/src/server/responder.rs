//! How a worker answers calls.

use std::sync::Arc;

use signalbox_protocol::{ErrorKind, StreamSummary, WireError};

use super::{
    router_connection::RouterConnection,
    send_queue::{Ending, Offer},
    stream_signal::{CallerGone, StreamSignal},
};
use crate::{
    call_parts::CallParts,
    frame::{MAX_PIECE_BYTES, MAX_PIECE_IDS, PieceTokens},
};

/// The worker's code that answers calls.
pub trait CallHandler: Send + Sync + 'static {
    /// Takes a call. Must not block, because it runs in the task that reads the connection. Answers through `responder`,
    /// now or later, from any thread.
    fn call(&self, parts: CallParts, responder: Responder);
}

/// Answers one call. A responder dropped without `end` or `fail` fails the stream with an internal error.
#[derive(Debug)]
pub struct Responder {
    connection: Arc<RouterConnection>,
    stream: u32,
    signal: Arc<StreamSignal>,
    answered: bool,
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

    /// Queues a piece and does not wake the writer; [`Self::flush`] does. So the pieces of all sequences of an engine
    /// step leave in one write. Pieces beyond the stream's window are kept, up to
    /// [`ServerConfig::stream_backlog_bytes`](super::ServerConfig::stream_backlog_bytes).
    ///
    /// `tokens` is the number of tokens in the piece. A piece over [`MAX_PIECE_BYTES`] is cut.
    ///
    /// # Errors
    /// The caller is gone, or reads the answer too slowly; in the latter case the stream has failed as overloaded.
    pub fn queue(&self, tokens: u32, bytes: &[u8]) -> Result<(), CallerGone> {
        self.queue_piece(PieceTokens::Count(tokens), bytes)
    }

    /// As [`Self::queue`], with the ids of the piece's tokens if the call asks for them
    /// ([`GenerateRequest::wants_token_ids`](signalbox_protocol::GenerateRequest::wants_token_ids)).
    ///
    /// # Errors
    /// As [`Self::queue`].
    pub fn queue_piece(&self, tokens: PieceTokens<'_>, bytes: &[u8]) -> Result<(), CallerGone> {
        self.queue_pieces(tokens, bytes, false)
    }

    /// Queues an answer that is one document, which flows to the router as fast as the router reads it. The stream's backlog
    /// does not limit it: the document is complete, so nothing more comes, and to fail it would waste all its work.
    ///
    /// # Errors
    /// The caller is gone.
    pub fn queue_document(&self, tokens: PieceTokens<'_>, document: &[u8]) -> Result<(), CallerGone> {
        self.queue_pieces(tokens, document, true)
    }

    fn queue_pieces(
        &self,
        tokens: PieceTokens<'_>,
        bytes: &[u8],
        of_document: bool,
    ) -> Result<(), CallerGone> {
        if self.is_cancelled() {
            return Err(CallerGone);
        }
        let tokens = match tokens {
            PieceTokens::Ids(ids) if ids.len() > MAX_PIECE_IDS => PieceTokens::Count(ids.len() as u32),
            tokens => tokens,
        };
        self.connection.queue(|send_queue| {
            cut(tokens, bytes)
                .try_for_each(|(tokens, piece)| send_queue.queue(self.stream, tokens, piece, of_document))
        })
    }

    /// Wakes the writer of this call's connection if anything is queued there. If nothing is, a flush costs one atomic
    /// read, so a step may flush for each of its sequences.
    pub fn flush(&self) {
        self.connection.flush();
    }

    /// Waits until the stream's window has room, then sends a piece and flushes: for bulk answers and watches. A piece
    /// over [`MAX_PIECE_BYTES`] is cut.
    ///
    /// # Errors
    /// The caller is gone.
    pub async fn send(&self, bytes: &[u8]) -> Result<(), CallerGone> {
        for (_, piece) in cut(PieceTokens::Count(0), bytes) {
            loop {
                let changed = self.signal.changed();
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

    /// Ends the answer, after the pieces queued already, and flushes.
    pub fn end(mut self, summary: StreamSummary) {
        self.finish(Ending::End(summary));
    }

    /// Fails the answer, after the pieces queued already, and flushes.
    pub fn fail(mut self, error: WireError) {
        self.finish(Ending::Fail(error));
    }

    /// Whether the caller is gone.
    pub fn is_cancelled(&self) -> bool {
        self.signal.is_cancelled()
    }

    /// Returns once the caller is gone.
    pub async fn cancelled(&self) {
        loop {
            let changed = self.signal.changed();
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
            let message = "the worker dropped the request without an answer, which is a defect of the worker";
            self.finish(Ending::Fail(WireError::new(ErrorKind::Internal, message)));
        }
    }
}

/// Cuts a piece into parts of at most [`MAX_PIECE_BYTES`]. The last part carries the tokens, because their bytes are
/// complete only with that part.
fn cut<'a>(tokens: PieceTokens<'a>, bytes: &'a [u8]) -> impl Iterator<Item = (PieceTokens<'a>, &'a [u8])> {
    let last = bytes.len().saturating_sub(1) / MAX_PIECE_BYTES;
    (0..=last).map(move |part| {
        let start = part * MAX_PIECE_BYTES;
        let end = bytes.len().min(start + MAX_PIECE_BYTES);
        let tokens = if part == last {
            tokens
        } else {
            PieceTokens::Count(0)
        };
        (tokens, &bytes[start..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_at_the_limit_and_the_last_has_the_tokens() {
        let (none, all) = (PieceTokens::Count(0), PieceTokens::Ids(&[7, 8]));
        let bytes = vec![0; MAX_PIECE_BYTES + 1];
        let parts = |length: usize| {
            let parts = cut(all, &bytes[..length]).map(|(tokens, part)| (tokens, part.len()));
            parts.collect::<Vec<_>>()
        };
        assert_eq!(parts(0), [(all, 0)]);
        assert_eq!(parts(MAX_PIECE_BYTES), [(all, MAX_PIECE_BYTES)]);
        assert_eq!(parts(MAX_PIECE_BYTES + 1), [(none, MAX_PIECE_BYTES), (all, 1)]);
    }
}
