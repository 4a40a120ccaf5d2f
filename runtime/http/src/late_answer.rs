//! A streamed answer whose first bytes are late.
//!
//! A prompt may wait for a worker, or be computed, for longer than a client or a proxy waits for the first byte. After some
//! time (`--ping-after-s`) the client therefore gets the head of the answer, and from then on a comment (`: ping`) as often,
//! until the first bytes of the answer. Readers of server-sent events ignore comments. The status is sent by then, so an error
//! becomes an event, and the head does not name the worker.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, future::LocalBoxFuture};
use signalbox_protocol::{StreamSummary, WireError, WorkerId};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::{answer::Answer, begun_answer::Begun};

/// A comment, which keeps connections open and that clients ignore.
const PING: Bytes = Bytes::from_static(b": ping\n\n");

/// An answer that may not have begun.
pub(crate) struct LateAnswer {
    state: State,
    pings: Interval,
}

enum State {
    Beginning(LocalBoxFuture<'static, Result<Begun, WireError>>),
    Begun(Box<Begun>),
    Failed,
}

impl LateAnswer {
    /// The answer that `beginning` gives. A ping comes at once, and then one every `pause`.
    pub(crate) fn new(beginning: LocalBoxFuture<'static, Result<Begun, WireError>>, pause: Duration) -> Self {
        let mut pings = interval(pause);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            state: State::Beginning(beginning),
            pings,
        }
    }
}

impl Stream for LateAnswer {
    type Item = Result<Bytes, WireError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Begun(begun) => return begun.answer.poll_next_unpin(cx),
                State::Failed => return Poll::Ready(None),
                State::Beginning(beginning) => match beginning.poll_unpin(cx) {
                    Poll::Ready(Ok(begun)) => this.state = State::Begun(Box::new(begun)),
                    Poll::Ready(Err(error)) => {
                        this.state = State::Failed;
                        return Poll::Ready(Some(Err(error)));
                    }
                    Poll::Pending => return this.pings.poll_tick(cx).map(|_| Some(Ok(PING))),
                },
            }
        }
    }
}

impl Answer for LateAnswer {
    fn summary(&self) -> Option<StreamSummary> {
        match &self.state {
            State::Begun(begun) => begun.answer.summary(),
            State::Beginning(_) | State::Failed => None,
        }
    }

    fn tokens(&self) -> u32 {
        match &self.state {
            State::Begun(begun) => begun.answer.tokens(),
            State::Beginning(_) | State::Failed => 0,
        }
    }

    fn late_worker(&self) -> Option<&WorkerId> {
        match &self.state {
            State::Begun(begun) => Some(&begun.worker),
            State::Beginning(_) | State::Failed => None,
        }
    }
}

impl fmt::Debug for LateAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LateAnswer")
            .field("has_begun", &self.late_worker().is_some())
            .finish_non_exhaustive()
    }
}
