//! An answer whose first bytes have arrived, to one prompt or to several, or to a chat that becomes a response.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use signalbox_protocol::{ParityState, StreamSummary, WireError, WorkerId};
use signalbox_router::{AnswerStream, RoutedAnswer};

use crate::{answer::Answer, joined_answer::JoinedAnswer, response_answer::ResponseAnswer};

/// A request that a worker has begun to answer. Of several prompts, all but the answer is about the first one.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) worker: WorkerId,
    pub(crate) policy: Arc<str>,
    pub(crate) overlap_blocks: u32,
    pub(crate) kv: ParityState,
    /// Why the worker has the request, if the client asks for it and may know.
    pub(crate) explanation: Option<String>,
    pub(crate) answer: BegunAnswer,
}

/// The answer.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every request has one prompt; a box would cost each an allocation"
)]
pub(crate) enum BegunAnswer {
    One(AnswerStream),
    Joined(Box<JoinedAnswer<AnswerStream>>),
    Response(Box<ResponseAnswer<AnswerStream>>),
}

impl Begun {
    pub(crate) fn new(first: RoutedAnswer, answer: impl FnOnce(AnswerStream) -> BegunAnswer) -> Self {
        Self {
            worker: first.worker,
            policy: first.policy,
            overlap_blocks: first.overlap_blocks,
            kv: first.kv,
            explanation: first.explanation,
            answer: answer(first.stream),
        }
    }
}

impl Stream for BegunAnswer {
    type Item = Result<Bytes, WireError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.get_mut() {
            Self::One(answer) => answer.poll_next_unpin(cx),
            Self::Joined(answer) => answer.poll_next_unpin(cx),
            Self::Response(answer) => answer.poll_next_unpin(cx),
        }
    }
}

impl Answer for BegunAnswer {
    fn summary(&self) -> Option<StreamSummary> {
        match self {
            Self::One(answer) => Answer::summary(answer),
            Self::Joined(answer) => answer.summary(),
            Self::Response(answer) => answer.summary(),
        }
    }

    fn tokens(&self) -> u32 {
        match self {
            Self::One(answer) => Answer::tokens(answer),
            Self::Joined(answer) => answer.tokens(),
            Self::Response(answer) => answer.tokens(),
        }
    }
}
