//! The destination of an answer's bytes.

use signalbox_protocol::{StreamSummary, WireError};
use signalbox_request_plane::{CallerGone, PieceTokens, Responder};

/// Takes the pieces of one answer. The implementations are a stream of the request plane and a test's record.
pub trait AnswerSink: Send {
    /// Queues a piece that accounts for `tokens`, without sending it.
    ///
    /// # Errors
    /// The caller has closed the stream.
    fn queue(&self, tokens: PieceTokens<'_>, bytes: &[u8]) -> Result<(), CallerGone>;

    /// Queues an answer that is one document, of any size.
    ///
    /// # Errors
    /// The caller has closed the stream.
    fn queue_document(&self, tokens: PieceTokens<'_>, document: &[u8]) -> Result<(), CallerGone>;

    /// Sends the queued pieces.
    fn flush(&self);

    /// Whether the caller has closed the stream.
    fn is_cancelled(&self) -> bool;

    /// Ends a complete answer.
    fn end(self: Box<Self>, summary: StreamSummary);

    /// Ends the answer with an error.
    fn fail(self: Box<Self>, error: WireError);
}

impl AnswerSink for Responder {
    fn queue(&self, tokens: PieceTokens<'_>, bytes: &[u8]) -> Result<(), CallerGone> {
        self.queue_piece(tokens, bytes)
    }

    fn queue_document(&self, tokens: PieceTokens<'_>, document: &[u8]) -> Result<(), CallerGone> {
        Self::queue_document(self, tokens, document)
    }

    fn flush(&self) {
        Self::flush(self);
    }

    fn is_cancelled(&self) -> bool {
        Self::is_cancelled(self)
    }

    fn end(self: Box<Self>, summary: StreamSummary) {
        Self::end(*self, summary);
    }

    fn fail(self: Box<Self>, error: WireError) {
        Self::fail(*self, error);
    }
}
