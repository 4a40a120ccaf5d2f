//! Where an answer's bytes go.

use signalbox_protocol::{StreamSummary, WireError};
use signalbox_request_plane::{CallerGone, Responder};

/// Takes the pieces of one answer: a stream of the request plane, or a test's record of them.
pub trait AnswerSink: Send {
    /// Takes a piece that stands for `tokens` tokens, without sending it yet.
    ///
    /// # Errors
    /// Nobody waits for it.
    fn queue(&self, tokens: u32, bytes: &[u8]) -> Result<(), CallerGone>;

    /// Sends what is queued.
    fn flush(&self);

    /// Whether nobody waits for the answer any more.
    fn is_cancelled(&self) -> bool;

    /// The answer is whole.
    fn end(self: Box<Self>, summary: StreamSummary);

    /// There will be no more of the answer.
    fn fail(self: Box<Self>, error: WireError);
}

impl AnswerSink for Responder {
    fn queue(&self, tokens: u32, bytes: &[u8]) -> Result<(), CallerGone> {
        Self::queue(self, tokens, bytes)
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
