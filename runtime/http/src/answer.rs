//! An answer under way: the worker's bytes, forwarded as they arrive.
//!
//! Pieces that are ready at the same time leave in one chunk; no piece waits to be merged. When the client closes its
//! connection, the body is dropped and with it the answer, which cancels the work at the engine. A client that does not
//! read stops the library from asking the body for more, so the deadline and the end of a drain end the answer from
//! outside ([`RunningAnswers`]).

use std::{
    cell::RefCell,
    fmt,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use actix_web::body::{BodySize, MessageBody};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use signalbox_protocol::{StreamSummary, WireError, WorkerId};
use signalbox_router::AnswerStream;
use tokio::time::Instant;

use crate::{
    dialect,
    metrics::{Expected, RequestRecord},
    running_answers::{EndFromOutside, Registration, RunningAnswers},
};

/// Most bytes merged into one chunk. The HTTP library buffers as many before it writes.
const MAX_MERGED_BYTES: usize = 32 * 1024;

/// Bytes for the client, and the token counts after they ended without an error.
pub(crate) trait Answer: Stream<Item = Result<Bytes, WireError>> + Unpin + fmt::Debug {
    /// The token counts; `None` until the stream has ended without an error.
    fn summary(&self) -> Option<StreamSummary>;

    /// Tokens in the bytes so far.
    fn tokens(&self) -> u32;

    /// The worker of an answer that began after its head was sent; `None` before it begins.
    fn late_worker(&self) -> Option<&WorkerId> {
        None
    }
}

impl Answer for AnswerStream {
    fn summary(&self) -> Option<StreamSummary> {
        Self::summary(self)
    }

    fn tokens(&self) -> u32 {
        Self::tokens(self)
    }
}

/// The body of a streamed answer. An error after the first bytes becomes an event, since the status is already sent.
#[derive(Debug)]
pub(crate) struct AnswerBody<A> {
    running: Rc<Running<A>>,
    record: RequestRecord,
    /// What the record takes when an answer begins whose head was sent before.
    late: Option<Expected>,
    _registration: Option<Registration>,
}

/// The part of a body that something else than its reader may end.
#[derive(Debug)]
struct Running<A>(RefCell<RunningState<A>>);

#[derive(Debug)]
struct RunningState<A> {
    /// `None` after its end: the engine's work ends with the answer, not with the connection.
    answer: Option<A>,
    /// Why the answer was ended from outside; the client has not received it yet.
    ended: Option<WireError>,
    /// Of the connection's task, while the answer has no bytes.
    reader: Option<Waker>,
}

impl<A: Answer + 'static> AnswerBody<A> {
    /// The body of `answer`, which ends at `deadline` at the latest.
    pub(crate) fn new(
        answer: A,
        record: RequestRecord,
        answers: &Rc<RunningAnswers>,
        deadline: Instant,
    ) -> Self {
        let mut body = Self::unregistered(answer, record);
        body._registration = Some(answers.register(deadline, Rc::downgrade(&body.running) as _));
        body
    }

    /// As [`Self::new`], for an answer that has not begun.
    pub(crate) fn late(
        answer: A,
        record: RequestRecord,
        expected: Expected,
        answers: &Rc<RunningAnswers>,
        deadline: Instant,
    ) -> Self {
        Self {
            late: Some(expected),
            ..Self::new(answer, record, answers, deadline)
        }
    }

    /// A body that only its reader ends.
    pub(crate) fn unregistered(answer: A, record: RequestRecord) -> Self {
        let state = RunningState {
            answer: Some(answer),
            ended: None,
            reader: None,
        };
        Self {
            running: Rc::new(Running(RefCell::new(state))),
            record,
            late: None,
            _registration: None,
        }
    }
}

impl<A: fmt::Debug> EndFromOutside for Running<A> {
    fn end(&self, error: &WireError) {
        let mut state = self.0.borrow_mut();
        // Dropping the answer cancels the work at the engine.
        if state.answer.take().is_some() {
            state.ended = Some(error.clone());
        }
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

impl<A: Answer + 'static> MessageBody for AnswerBody<A> {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.get_mut();
        let mut state = this.running.0.borrow_mut();
        let mut ready = Merged::default();
        if let Some(error) = state.ended.take() {
            ready.push(fail(&mut this.record, &error));
        }
        while let Some(answer) = state.answer.as_mut() {
            match answer.poll_next_unpin(cx) {
                Poll::Pending if ready.is_empty() => {
                    if !state
                        .reader
                        .as_ref()
                        .is_some_and(|reader| reader.will_wake(cx.waker()))
                    {
                        state.reader = Some(cx.waker().clone());
                    }
                    return Poll::Pending;
                }
                Poll::Pending => break,
                Poll::Ready(Some(Ok(piece))) => {
                    if let Some(expected) = this.late
                        && let Some(worker) = answer.late_worker()
                    {
                        this.late = None;
                        this.record.routed_to(worker);
                        this.record.begun(expected.prompt_tokens);
                        this.record.first_token(expected.choices);
                    }
                    this.record.delivered(answer.tokens());
                    ready.push(piece);
                }
                Poll::Ready(Some(Err(error))) => {
                    state.answer = None;
                    ready.push(fail(&mut this.record, &error));
                }
                Poll::Ready(None) => {
                    this.record.finish(200, answer.summary());
                    state.answer = None;
                }
            }
            if ready.len() >= MAX_MERGED_BYTES {
                break;
            }
        }
        Poll::Ready(ready.into_bytes().map(Ok))
    }
}

/// The last event of an answer that failed.
fn fail(record: &mut RequestRecord, error: &WireError) -> Bytes {
    record.finish(error.status(), None);
    dialect::event(record.endpoint(), error)
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
