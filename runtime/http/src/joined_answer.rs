//! The answers to the prompts of one request, joined into one answer.
//!
//! Each prompt is routed by itself, and a worker writes each answer as a part ([`AnswerPart`]): with the right `index` of its
//! choices, and without an end. A stream passes on the events of all parts as they come. A document has the choices of all
//! parts in the order of the prompts. The end, with the token counts of all parts, is written here.
//!
//! The first prompt's answer begins before the others are routed: they often have a long beginning in common, which is then
//! in a KV cache.
//!
//! [`AnswerPart`]: signalbox_protocol::AnswerPart

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use signalbox_protocol::{ErrorKind, StreamSummary, WireError};

use crate::{answer::Answer, document::MAX_DOCUMENT_BYTES};

/// Most prompts of one request that are routed at the same time, so that one request does not fill the workers. The others
/// wait for their turn.
const MAX_AT_ONCE: usize = 16;

/// What precedes the choices of an answer. No text in JSON contains it, because quotes are escaped there.
const CHOICES: &[u8] = b"\"choices\":[";

/// Routes the prompt with a number.
pub(crate) type Route<A> = Box<dyn Fn(usize) -> LocalBoxFuture<'static, Result<A, WireError>>>;

/// The joined answer.
pub(crate) struct JoinedAnswer<A> {
    route: Route<A>,
    /// Prompts that are not routed yet.
    waiting: VecDeque<usize>,
    routing: FuturesUnordered<LocalBoxFuture<'static, (usize, Result<A, WireError>)>>,
    running: Vec<(usize, A)>,
    /// The workers had no room for a prompt. The others wait until an answer has ended.
    is_held: bool,
    form: Form,
    /// The sums over the parts that have ended.
    summary: StreamSummary,
    tokens: u32,
    is_ended: bool,
}

/// What the parts are joined into.
#[derive(Debug)]
enum Form {
    /// Events. `usage` is what precedes the choices in an event, once an event was seen, if the client asks for the token
    /// counts.
    Stream { usage: Option<Vec<u8>> },
    /// A document: the pieces of each part until all have ended, and then those of the whole.
    Document {
        parts: Vec<VecDeque<Bytes>>,
        bytes: u64,
        whole: VecDeque<Bytes>,
    },
}

impl<A: Answer + 'static> JoinedAnswer<A> {
    /// The events of `count` answers, of which `first` is that to the first prompt. `include_usage`: the last event has the
    /// token counts.
    pub(crate) fn stream(first: A, count: usize, include_usage: bool, route: Route<A>) -> Self {
        let usage = include_usage.then(Vec::new);
        Self::new(first, count, Form::Stream { usage }, route)
    }

    /// The document of `count` answers, of which `first` is that to the first prompt.
    pub(crate) fn document(first: A, count: usize, route: Route<A>) -> Self {
        let form = Form::Document {
            parts: vec![VecDeque::new(); count],
            bytes: 0,
            whole: VecDeque::new(),
        };
        Self::new(first, count, form, route)
    }

    fn new(first: A, count: usize, form: Form, route: Route<A>) -> Self {
        Self {
            route,
            waiting: (1..count).collect(),
            routing: FuturesUnordered::new(),
            running: vec![(0, first)],
            is_held: false,
            form,
            summary: StreamSummary::default(),
            tokens: 0,
            is_ended: false,
        }
    }

    /// The next piece of any part, with the part's number.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(usize, Bytes), WireError>>> {
        loop {
            self.route_waiting();
            match self.routing.poll_next_unpin(cx) {
                Poll::Ready(Some((number, Ok(answer)))) => {
                    self.running.push((number, answer));
                    continue;
                }
                Poll::Ready(Some((number, Err(error)))) => {
                    let others = self.running.len() + self.routing.len();
                    if error.kind != ErrorKind::Overloaded || others == 0 {
                        return Poll::Ready(Some(Err(error)));
                    }
                    self.waiting.push_front(number);
                    self.is_held = true;
                    continue;
                }
                Poll::Ready(None) | Poll::Pending => {}
            }
            match self.poll_running(cx) {
                Poll::Ready(Some(piece)) => return Poll::Ready(Some(piece)),
                // An answer has ended, so that another prompt may be routed.
                Poll::Ready(None) if !(self.waiting.is_empty() && self.is_idle()) => {}
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.routing.is_empty() && self.running.is_empty()
    }

    /// Routes prompts that wait, if there is room for them.
    fn route_waiting(&mut self) {
        self.is_held &= !self.is_idle();
        while !self.is_held && self.running.len() + self.routing.len() < MAX_AT_ONCE {
            let Some(number) = self.waiting.pop_front() else {
                return;
            };
            let routed = (self.route)(number);
            self.routing.push(Box::pin(async move { (number, routed.await) }));
        }
    }

    /// A piece of an answer under way; `None` if one has ended, or none is left.
    fn poll_running(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(usize, Bytes), WireError>>> {
        if self.is_idle() {
            return Poll::Ready(None);
        }
        for place in 0..self.running.len() {
            let (number, answer) = &mut self.running[place];
            match answer.poll_next_unpin(cx) {
                Poll::Pending => {}
                Poll::Ready(Some(Ok(piece))) => {
                    let piece = (*number, piece);
                    // The next call begins with the next answer, so that none keeps the others waiting.
                    self.running.rotate_left(place + 1);
                    return Poll::Ready(Some(Ok(piece)));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => {
                    let (_, answer) = self.running.swap_remove(place);
                    self.count(&answer);
                    self.is_held = false;
                    return Poll::Ready(None);
                }
            }
        }
        Poll::Pending
    }

    fn count(&mut self, answer: &A) {
        let part = answer.summary().unwrap_or_default();
        self.summary.prompt_tokens = self.summary.prompt_tokens.saturating_add(part.prompt_tokens);
        self.summary.cached_tokens = self.summary.cached_tokens.saturating_add(part.cached_tokens);
        self.summary.completion_tokens = self
            .summary
            .completion_tokens
            .saturating_add(part.completion_tokens);
        self.tokens = self.tokens.saturating_add(answer.tokens());
    }
}

impl Form {
    /// Takes a piece of a part. Returns what the client gets at once.
    fn push(&mut self, number: usize, piece: Bytes) -> Result<Option<Bytes>, WireError> {
        match self {
            Self::Stream { usage } => {
                if let Some(head) = usage.as_mut().filter(|head| head.is_empty())
                    && let Some(choices) = behind_choices(&piece)
                {
                    head.extend_from_slice(&piece[..choices]);
                }
                Ok(Some(piece).filter(|piece| !piece.is_empty()))
            }
            Self::Document { parts, bytes, .. } => {
                *bytes += piece.len() as u64;
                if *bytes > MAX_DOCUMENT_BYTES {
                    let message = format!(
                        "the answer is larger than {MAX_DOCUMENT_BYTES} bytes; ask for fewer tokens or a stream"
                    );
                    return Err(WireError::new(ErrorKind::Internal, message));
                }
                if !piece.is_empty() {
                    parts[number].push_back(piece);
                }
                Ok(None)
            }
        }
    }

    /// All parts have ended. Returns the last piece of a stream; a document is whole now.
    fn end(&mut self, summary: StreamSummary) -> Result<Option<Bytes>, WireError> {
        match self {
            Self::Stream { usage } => {
                let mut end = Vec::new();
                if let Some(mut head) = usage.take() {
                    head.extend_from_slice(b"],");
                    end = head;
                    end.extend_from_slice(usage_member(summary).as_bytes());
                    end.extend_from_slice(b"}\n\n");
                }
                end.extend_from_slice(b"data: [DONE]\n\n");
                Ok(Some(end.into()))
            }
            Self::Document { parts, whole, .. } => {
                for (number, mut part) in std::mem::take(parts).into_iter().enumerate() {
                    if number > 0 {
                        let first = part.front_mut().ok_or_else(no_part)?;
                        let choices = behind_choices(first).ok_or_else(no_part)?;
                        *first = first.slice(choices..);
                        whole.push_back(Bytes::from_static(b","));
                    }
                    whole.append(&mut part);
                }
                whole.push_back(format!("],{}}}", usage_member(summary)).into());
                Ok(None)
            }
        }
    }
}

/// The position behind the bracket that opens the choices. A worker writes all that precedes it into its first piece.
fn behind_choices(piece: &[u8]) -> Option<usize> {
    let start = piece
        .windows(CHOICES.len())
        .position(|window| window == CHOICES)?;
    Some(start + CHOICES.len())
}

fn no_part() -> WireError {
    WireError::new(ErrorKind::Internal, "the worker's answer has no choices")
}

fn usage_member(usage: StreamSummary) -> String {
    let StreamSummary {
        prompt_tokens,
        cached_tokens,
        completion_tokens,
    } = usage;
    let total = u64::from(prompt_tokens) + u64::from(completion_tokens);
    format!(
        "\"usage\":{{\"prompt_tokens\":{prompt_tokens},\"completion_tokens\":{completion_tokens},\
         \"total_tokens\":{total},\"prompt_tokens_details\":{{\"cached_tokens\":{cached_tokens}}}}}"
    )
}

impl<A: Answer + 'static> Stream for JoinedAnswer<A> {
    type Item = Result<Bytes, WireError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if this.is_ended {
                let Form::Document { whole, .. } = &mut this.form else {
                    return Poll::Ready(None);
                };
                return Poll::Ready(whole.pop_front().map(Ok));
            }
            let pushed = match this.poll_piece(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(piece)) => piece.and_then(|(number, piece)| this.form.push(number, piece)),
                Poll::Ready(None) => {
                    this.is_ended = true;
                    this.form.end(this.summary)
                }
            };
            match pushed {
                Ok(None) => {}
                Ok(Some(bytes)) => return Poll::Ready(Some(Ok(bytes))),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

impl<A: Answer + 'static> Answer for JoinedAnswer<A> {
    fn summary(&self) -> Option<StreamSummary> {
        self.is_ended.then_some(self.summary)
    }

    fn tokens(&self) -> u32 {
        let running = self.running.iter().map(|(_, answer)| answer.tokens());
        running.fold(self.tokens, u32::saturating_add)
    }
}

impl<A> fmt::Debug for JoinedAnswer<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinedAnswer")
            .field("waiting", &self.waiting.len())
            .field("routing", &self.routing.len())
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
