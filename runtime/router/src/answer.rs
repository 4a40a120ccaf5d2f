//! An answer under way from a worker to a client.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use futures_util::Stream;
use signalbox_protocol::{ErrorKind, StreamSummary, WireError, WorkerId};
use signalbox_request_plane::{LinkError, ResponseEvent, ResponseStream};
use tokio::time::{Sleep, sleep_until};

use crate::load::Reservation;

/// A request that a worker has begun to answer. Dropping it cancels the work at the engine.
#[derive(Debug)]
pub struct RoutedAnswer {
    /// Who answers.
    pub worker: WorkerId,
    /// `name@version` of the policy that decided.
    pub policy: Arc<str>,
    /// Leading KV blocks of the prompt that the worker was known to hold.
    pub overlap_blocks: u32,
    /// The answer.
    pub stream: AnswerStream,
}

/// The answer's bytes as the client shall read them: server-sent events, or one JSON document in pieces.
///
/// An error is the last item; what came before it was delivered and is not sent again.
#[derive(Debug)]
pub struct AnswerStream {
    first: Option<Bytes>,
    /// Gone once the stream ended, and the load with it.
    open: Option<Open>,
    summary: Option<StreamSummary>,
}

#[derive(Debug)]
struct Open {
    response: ResponseStream,
    _reservation: Reservation,
    deadline: Pin<Box<Sleep>>,
}

impl AnswerStream {
    pub(crate) fn new(
        first: Bytes,
        response: ResponseStream,
        reservation: Reservation,
        deadline: Instant,
    ) -> Self {
        let deadline = Box::pin(sleep_until(deadline.into()));
        Self {
            first: Some(first),
            open: Some(Open {
                response,
                _reservation: reservation,
                deadline,
            }),
            summary: None,
        }
    }

    /// An answer without a byte.
    pub(crate) fn ended(summary: StreamSummary) -> Self {
        Self {
            first: None,
            open: None,
            summary: Some(summary),
        }
    }

    /// What the answer took; there once the stream ended well.
    pub fn summary(&self) -> Option<StreamSummary> {
        self.summary
    }
}

impl Stream for AnswerStream {
    type Item = Result<Bytes, WireError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        let Some(open) = &mut self.open else {
            return Poll::Ready(None);
        };
        let error = match Pin::new(&mut open.response).poll_next(cx) {
            Poll::Ready(Some(Ok(ResponseEvent::Data { bytes, .. }))) => return Poll::Ready(Some(Ok(bytes))),
            Poll::Ready(Some(Ok(ResponseEvent::End(summary)))) => {
                self.summary = Some(summary);
                None
            }
            Poll::Ready(Some(Err(error))) => Some(lost(error)),
            Poll::Ready(None) => Some(WireError::new(
                ErrorKind::Internal,
                "the worker's answer ended without its end",
            )),
            // Asked only while there is nothing to pass on: tokens come far apart.
            Poll::Pending => {
                ready!(open.deadline.as_mut().poll(cx));
                Some(WireError::new(
                    ErrorKind::DeadlineExceeded,
                    "the answer was not whole within the request's deadline",
                ))
            }
        };
        self.open = None;
        Poll::Ready(error.map(Err))
    }
}

/// What a client is told of a failed link.
pub(crate) fn lost(error: LinkError) -> WireError {
    match error {
        LinkError::Refused(error) => error,
        LinkError::Lost { .. } => WireError::new(
            ErrorKind::Unavailable,
            "the worker answering this request was lost; send the request again",
        ),
        LinkError::Unreachable { .. } | LinkError::Draining { .. } => WireError::new(
            ErrorKind::Unavailable,
            "the chosen worker cannot be reached; send the request again",
        ),
        LinkError::Full { .. } => WireError::new(
            ErrorKind::Overloaded,
            "the connection to the chosen worker holds as many requests as it may",
        ),
    }
}
