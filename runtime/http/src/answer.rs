//! An answer under way: the worker's bytes, forwarded as they arrive.
//!
//! Pieces that are ready at the same time leave in one chunk; no piece waits to be merged. When the client closes its
//! connection, the body is dropped and with it the answer, which cancels the work at the engine.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use actix_web::body::{BodySize, MessageBody};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use signalbox_protocol::{ErrorKind, StreamSummary, WireError};
use signalbox_router::AnswerStream;

use crate::{dialect, metrics::RequestRecord};

/// Most bytes merged into one chunk. The HTTP library buffers as many before it writes.
const MAX_MERGED_BYTES: usize = 32 * 1024;

/// Largest answer in one JSON document. About 16 choices of 64,000 tokens with their log probabilities fit.
const MAX_DOCUMENT_BYTES: usize = 256 * 1024 * 1024;

/// Bytes for the client, and the token counts after they ended without an error.
pub(crate) trait Answer: Stream<Item = Result<Bytes, WireError>> + Unpin {
    /// The token counts; `None` until the stream has ended without an error.
    fn summary(&self) -> Option<StreamSummary>;
}

impl Answer for AnswerStream {
    fn summary(&self) -> Option<StreamSummary> {
        Self::summary(self)
    }
}

/// The body of a streamed answer. An error after the first bytes becomes an event, since the status is already sent.
#[derive(Debug)]
pub(crate) struct AnswerBody<A> {
    /// `None` after its end: the engine's work ends with the answer, not with the connection.
    answer: Option<A>,
    record: RequestRecord,
}

impl<A: Answer> AnswerBody<A> {
    pub(crate) fn new(answer: A, record: RequestRecord) -> Self {
        Self {
            answer: Some(answer),
            record,
        }
    }

    fn end(&mut self) {
        if let Some(answer) = self.answer.take() {
            self.record.finish(200, answer.summary());
        }
    }

    fn fail(&mut self, error: &WireError) -> Bytes {
        self.answer = None;
        self.record.finish(error.status(), None);
        dialect::event(self.record.endpoint(), error)
    }
}

impl<A: Answer + 'static> MessageBody for AnswerBody<A> {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.get_mut();
        let mut ready = Merged::default();
        while let Some(answer) = this.answer.as_mut() {
            match answer.poll_next_unpin(cx) {
                Poll::Pending if ready.is_empty() => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(Some(Ok(piece))) => ready.push(piece),
                Poll::Ready(Some(Err(error))) => ready.push(this.fail(&error)),
                Poll::Ready(None) => this.end(),
            }
            if ready.len() >= MAX_MERGED_BYTES {
                break;
            }
        }
        Poll::Ready(ready.into_bytes().map(Ok))
    }
}

/// Pieces that leave in one chunk. A single piece is not copied.
#[derive(Debug, Default)]
struct Merged {
    first: Bytes,
    all: BytesMut,
}

impl Merged {
    fn push(&mut self, piece: Bytes) {
        if self.is_empty() {
            self.first = piece;
            return;
        }
        if self.all.is_empty() {
            self.all.reserve(self.first.len() + piece.len());
            self.all.extend_from_slice(&self.first);
        }
        self.all.extend_from_slice(&piece);
    }

    fn len(&self) -> usize {
        self.first.len().max(self.all.len())
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `None` if there is no piece, which ends the body.
    fn into_bytes(self) -> Option<Bytes> {
        match (self.first.is_empty(), self.all.is_empty()) {
            (true, _) => None,
            (false, true) => Some(self.first),
            (false, false) => Some(self.all.freeze()),
        }
    }
}

/// Collects an answer that is one JSON document.
pub(crate) async fn collect(answer: &mut impl Answer) -> Result<Bytes, WireError> {
    let mut document = Merged::default();
    while let Some(piece) = answer.next().await {
        document.push(piece?);
        if document.len() > MAX_DOCUMENT_BYTES {
            let message = format!(
                "the answer is larger than {MAX_DOCUMENT_BYTES} bytes; ask for fewer tokens or a stream"
            );
            return Err(WireError::new(ErrorKind::Internal, message));
        }
    }
    document
        .into_bytes()
        .ok_or_else(|| WireError::new(ErrorKind::Internal, "the worker's answer is empty"))
}
