//! The answer to a request, from a worker to a client.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::Stream;
use signalbox_protocol::{ParityState, StreamSummary, WireError, WorkerId};
use signalbox_request_plane::{ResponseEvent, ResponseStream};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{block_learner::LearnedAnswer, client_errors, latency::StreamTimer, load::Reservation};

#[cfg(test)]
mod tests;

/// A request that a worker has begun to answer. Dropping it cancels the work at the engine.
#[derive(Debug)]
pub struct RoutedAnswer {
    /// The worker that answers.
    pub worker: WorkerId,
    /// `name@version` of the policy that decided.
    pub policy: Arc<str>,
    /// Leading KV blocks of the prompt that the index credited the worker with on its device.
    pub overlap_blocks: u32,
    /// How exact this router's knowledge of the worker's KV cache was at the decision.
    pub kv: ParityState,
    /// The answer itself.
    pub stream: AnswerStream,
}

/// The bytes of an answer, ready for the client: server-sent events, or one JSON document in pieces.
///
/// An error is the last item. The bytes before it were delivered, and are not sent again.
#[derive(Debug)]
pub struct AnswerStream {
    first: Option<Bytes>,
    /// `None` after the stream ended, so that its load is released then.
    open: Option<OpenAnswer>,
    summary: Option<StreamSummary>,
}

#[derive(Debug)]
struct OpenAnswer {
    response: ResponseStream,
    _reservation: Reservation,
    observers: AnswerObservers,
    deadline: Pin<Box<Sleep>>,
}

/// What receives the summary of an answer that ends without an error.
#[derive(Debug, Default)]
pub(crate) struct AnswerObservers {
    /// `None` for an answer that is not a stream.
    pub(crate) timer: Option<StreamTimer>,
    /// `None` if the router does not learn the worker's KV blocks.
    pub(crate) learned: Option<LearnedAnswer>,
}

impl AnswerObservers {
    pub(crate) fn ended(self, summary: StreamSummary) {
        if let Some(timer) = self.timer {
            timer.ended(summary);
        }
        if let Some(learned) = self.learned {
            learned.ended(summary);
        }
    }
}

impl AnswerStream {
    /// An answer that began with the bytes `first`. It holds `reservation` until its end.
    pub(crate) fn new(
        first: Bytes,
        response: ResponseStream,
        reservation: Reservation,
        observers: AnswerObservers,
        deadline: Instant,
    ) -> Self {
        let deadline = Box::pin(sleep_until(deadline));
        Self {
            first: Some(first),
            open: Some(OpenAnswer {
                response,
                _reservation: reservation,
                observers,
                deadline,
            }),
            summary: None,
        }
    }

    /// An answer that ended without a byte.
    pub(crate) fn ended(summary: StreamSummary) -> Self {
        Self {
            first: None,
            open: None,
            summary: Some(summary),
        }
    }

    /// Token counts of the answer; `None` until the stream has ended without an error.
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
                std::mem::take(&mut open.observers).ended(summary);
                self.summary = Some(summary);
                None
            }
            Poll::Ready(Some(Err(error))) => Some(client_errors::worker_failed(error)),
            Poll::Ready(None) => Some(client_errors::no_end()),
            // The deadline is checked only while no bytes are ready, which costs nothing per chunk.
            Poll::Pending => {
                ready!(open.deadline.as_mut().poll(cx));
                Some(client_errors::not_whole_in_time())
            }
        };
        self.open = None;
        Poll::Ready(error.map(Err))
    }
}
