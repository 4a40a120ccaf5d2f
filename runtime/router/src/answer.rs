//! The answer to a request, from a worker to a client.

use std::{
    fmt,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::{Stream, future::LocalBoxFuture};
use signalbox_kv_index::WorkerSlot;
use signalbox_protocol::{ParityState, StreamSummary, WireError, WorkerId};
use signalbox_request_plane::{LinkError, ResponseEvent, ResponseStream, TokenIds};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    attempt_report::AttemptReport,
    attempts::needs_budget,
    block_learner::LearnedAnswer,
    breaker::Fault,
    client_errors,
    continuation::{Continuation, Interrupted},
    latency::StreamTimer,
    load::Reservation,
    outcome::OutcomeReporter,
    patience::Silence,
};

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
    /// Why this worker has the request, in words, if the request asks for it.
    pub explanation: Option<String>,
    /// The answer itself.
    pub stream: AnswerStream,
}

/// The bytes of an answer, ready for the client: server-sent events, or one JSON document in pieces.
///
/// If the worker fails, another one continues the answer where that is possible; the reader notices only a pause. An error
/// is the last item. The bytes before it were delivered, and are not sent again.
#[derive(Debug)]
pub struct AnswerStream {
    first: Option<Bytes>,
    state: AnswerState,
    /// `None` if the answer cannot be continued at another worker.
    continuation: Option<Continued>,
    summary: Option<StreamSummary>,
    /// Tokens in the bytes so far.
    tokens: u32,
}

#[expect(
    clippy::large_enum_variant,
    reason = "an answer is open nearly all of its time; a box would cost each an allocation"
)]
enum AnswerState {
    Open(OpenAnswer),
    /// Another worker is asked for the rest.
    Resuming(Resumed),
    /// The answer's load is released.
    Ended,
}

/// What continues an answer at another worker.
type Continued = (Continuation, Rc<dyn Reroute>);

/// Sends an unfinished answer to another worker.
pub(crate) trait Reroute: fmt::Debug {
    /// Takes a place in the retry budget. Returns false if there is none.
    fn may_retry(&self) -> bool;

    /// Whether a worker besides these may take a request for the model now.
    fn has_other(&self, model: &str, failed: &[WorkerSlot], worker: WorkerSlot) -> bool;

    /// The rest of the answer, or the error for the client.
    fn reroute(self: Rc<Self>, interrupted: Interrupted) -> Resumed;
}

/// The rest of an answer, once another worker has begun it.
pub(crate) type Resumed = LocalBoxFuture<'static, Result<RoutedAnswer, WireError>>;

#[derive(Debug)]
struct OpenAnswer {
    response: ResponseStream,
    reservation: Reservation,
    observers: AnswerObservers,
    deadline: Instant,
    /// Fires at the deadline, or when the silence is looked at next.
    timer: Pin<Box<Sleep>>,
    /// `None` if the answer is waited for until its deadline.
    silence: Option<Silence>,
}

/// What receives the summary of an answer that ends without an error.
#[derive(Debug, Default)]
pub(crate) struct AnswerObservers {
    /// `None` for an answer that is not a stream.
    pub(crate) timer: Option<StreamTimer>,
    /// `None` if the router does not learn the worker's KV blocks.
    pub(crate) learned: Option<LearnedAnswer>,
    /// What became of the request, also if it ends with an error.
    pub(crate) outcome: Option<OutcomeReporter>,
    /// How the worker did.
    pub(crate) attempt: Option<AttemptReport>,
}

impl AnswerObservers {
    pub(crate) fn ended(self, summary: StreamSummary) {
        if let Some(timer) = self.timer {
            timer.ended(summary);
        }
        if let Some(learned) = self.learned {
            learned.ended(summary);
        }
        if let Some(outcome) = self.outcome {
            outcome.ended(summary);
        }
        if let Some(attempt) = self.attempt {
            attempt.answered();
        }
    }

    /// The answer broke off. Returns whether its request is refused from now on, because it has lost a second worker.
    fn failed(&mut self, fault: Option<Fault>, error: &dyn fmt::Display) -> bool {
        let attempt = self.attempt.take();
        attempt.is_some_and(|attempt| attempt.failed(fault, error))
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
        let timer = Box::pin(sleep_until(deadline));
        Self {
            first: Some(first),
            state: AnswerState::Open(OpenAnswer {
                response,
                reservation,
                observers,
                deadline,
                timer,
                silence: None,
            }),
            continuation: None,
            summary: None,
            tokens: 0,
        }
    }

    /// The same answer, whose first bytes have this many tokens.
    pub(crate) fn begun_with(mut self, tokens: u32) -> Self {
        self.tokens = tokens;
        self
    }

    /// The same answer, whose worker may be stuck.
    pub(crate) fn watched_by(mut self, silence: Option<Silence>) -> Self {
        if let (AnswerState::Open(open), Some(silence)) = (&mut self.state, silence) {
            open.timer
                .as_mut()
                .reset(open.deadline.min(Instant::now() + Silence::LOOK_EVERY));
            open.silence = Some(silence);
        }
        self
    }

    /// The same answer, continued in this way if its worker fails.
    pub(crate) fn continued_by(mut self, continuation: Option<Continued>) -> Self {
        self.continuation = continuation;
        self
    }

    /// Tokens in the bytes so far, those of workers that failed included.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Token counts of the answer; `None` until the stream has ended without an error.
    pub fn summary(&self) -> Option<StreamSummary> {
        self.summary
    }
}

impl Stream for AnswerStream {
    type Item = Result<Bytes, WireError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(first) = self.first.take() {
                return Poll::Ready(Some(Ok(first)));
            }
            let this = &mut *self;
            let outcome = match &mut this.state {
                AnswerState::Ended => return Poll::Ready(None),
                AnswerState::Resuming(resumed) => match ready!(resumed.as_mut().poll(cx)) {
                    Ok(routed) => {
                        let before = self.tokens;
                        *self = routed.stream;
                        self.tokens = self.tokens.saturating_add(before);
                        continue;
                    }
                    Err(error) => Err(error),
                },
                AnswerState::Open(open) => match ready!(open.poll_event(cx, this.continuation.as_ref())) {
                    Event::Piece { tokens, ids, bytes } => {
                        self.tokens = self.tokens.saturating_add(tokens);
                        if let Some((continuation, _)) = &mut self.continuation
                            && !continuation.delivered(tokens, &ids)
                        {
                            self.continuation = None;
                        }
                        // A report of generated tokens is nothing for the client.
                        if bytes.is_empty() {
                            continue;
                        }
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                    Event::End(summary) => Ok(summary),
                    Event::Late => Err(client_errors::not_whole_in_time()),
                    Event::NoEnd => Err(client_errors::no_end()),
                    Event::LostTwice => Err(client_errors::lost_twice()),
                    Event::Failed(error) => match self.resume(error) {
                        Ok(resumed) => {
                            self.state = AnswerState::Resuming(resumed);
                            continue;
                        }
                        Err(error) => Err(client_errors::worker_failed(error)),
                    },
                },
            };
            self.state = AnswerState::Ended;
            self.continuation = None;
            return Poll::Ready(match outcome {
                Ok(summary) => {
                    self.summary = Some(summary);
                    None
                }
                Err(error) => Some(Err(error)),
            });
        }
    }
}

impl AnswerStream {
    fn resume(&mut self, error: LinkError) -> Result<Resumed, LinkError> {
        match self.continuation.take() {
            Some((_, replica)) if needs_budget(&error) && !replica.may_retry() => Err(error),
            Some((continuation, replica)) => Ok(replica.reroute(continuation.interrupted(error)?)),
            None => Err(error),
        }
    }
}

/// What happens next to an open answer.
enum Event {
    Piece {
        tokens: u32,
        ids: TokenIds,
        bytes: Bytes,
    },
    End(StreamSummary),
    Failed(LinkError),
    /// The connection was lost, and the request has lost a worker before.
    LostTwice,
    /// The worker's stream stopped with neither an end nor an error.
    NoEnd,
    /// The deadline has passed.
    Late,
}

impl OpenAnswer {
    fn poll_event(&mut self, cx: &mut Context<'_>, continuation: Option<&Continued>) -> Poll<Event> {
        Poll::Ready(match Pin::new(&mut self.response).poll_next(cx) {
            Poll::Ready(Some(Ok(ResponseEvent::Data { tokens, ids, bytes }))) => {
                self.reservation.generated(tokens);
                if let Some(outcome) = &mut self.observers.outcome {
                    outcome.generated(tokens);
                }
                if let Some(silence) = &mut self.silence {
                    silence.is_broken = true;
                }
                Event::Piece { tokens, ids, bytes }
            }
            Poll::Ready(Some(Ok(ResponseEvent::End(summary)))) => {
                std::mem::take(&mut self.observers).ended(summary);
                Event::End(summary)
            }
            Poll::Ready(Some(Err(error))) => match self.observers.failed(Fault::of(&error), &error) {
                true => Event::LostTwice,
                false => Event::Failed(error),
            },
            Poll::Ready(None) => {
                self.observers
                    .failed(Some(Fault::Error), &client_errors::no_end());
                Event::NoEnd
            }
            // Time is looked at only while no bytes are ready, which costs nothing per chunk.
            Poll::Pending => loop {
                ready!(self.timer.as_mut().poll(cx));
                let now = Instant::now();
                if now >= self.deadline {
                    break Event::Late;
                }
                if let Some(error) = self.stuck(now, continuation) {
                    self.observers.failed(Some(Fault::NoNextToken), &error);
                    break Event::Failed(error);
                }
                let next = self.deadline.min(now + Silence::LOOK_EVERY);
                self.timer.as_mut().reset(next);
            },
        })
    }

    /// The error of an answer whose worker is stuck. One that could be continued waits on where no other worker is left.
    fn stuck(&mut self, now: Instant, continuation: Option<&Continued>) -> Option<LinkError> {
        let silence = self.silence.as_mut()?;
        let quiet = silence.too_long(now, continuation.is_some())?;
        let has_other = continuation
            .is_none_or(|(rest, replica)| replica.has_other(rest.model(), rest.failed(), silence.worker()));
        has_other.then(|| client_errors::no_token(quiet).into())
    }
}

impl fmt::Debug for AnswerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(open) => open.fmt(f),
            Self::Resuming(_) => f.write_str("Resuming"),
            Self::Ended => f.write_str("Ended"),
        }
    }
}
