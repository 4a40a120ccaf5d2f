//! The requests an engine is working on: takes what a step did, and gives each request its share of it.

use std::time::{Duration, Instant};

use hashbrown::HashMap;
use signalbox_protocol::{ErrorKind, FinishReason, StreamSummary, WireError};
use signalbox_tokenize::ModelText;

use super::{choice::Choice, sink::AnswerSink};
use crate::{
    answer::Answer,
    engine::{SampledToken, SequenceId, StepOutput},
};

/// One request: `n` choices, each a sequence of the engine.
pub(super) struct OpenRequest {
    pub(super) sink: Box<dyn AnswerSink>,
    pub(super) answer: Answer,
    pub(super) choices: Vec<Choice>,
    pub(super) accepted: Instant,
    /// Time for the whole answer, from `accepted`.
    pub(super) patience: Duration,
    pub(super) ignore_eos: bool,
    pub(super) prompt_tokens: u32,
    /// Tokens of the prompt found in the cache, once its prefill is done.
    pub(super) cached: Option<u32>,
    pub(super) completion_tokens: u32,
    /// Tokens generated and not yet counted with a piece: their text is held back.
    pub(super) uncounted: u32,
    /// The caller turned out to be gone.
    pub(super) gone: bool,
    /// Something is queued and not flushed.
    pub(super) unflushed: bool,
}

/// All requests the engine has taken, by number.
#[derive(Default)]
pub(super) struct OpenRequests {
    open: HashMap<u64, OpenRequest>,
    /// Requests of the step at hand that have something to flush, or are over.
    touched: Vec<u64>,
    /// Bytes of one piece; used again for each.
    piece: Vec<u8>,
}

impl OpenRequest {
    /// The engine sequences that are still running, for `number`.
    fn running(&self, number: u64) -> impl Iterator<Item = SequenceId> {
        let unfinished = |(place, choice): (usize, &Choice)| (!choice.is_finished()).then_some(place as u16);
        self.choices
            .iter()
            .enumerate()
            .filter_map(unfinished)
            .map(move |choice| SequenceId::new(number, choice))
    }

    /// Hands `piece` on and empties it.
    fn queue(&mut self, piece: &mut Vec<u8>) {
        if !piece.is_empty() {
            self.gone |= self.sink.queue(self.uncounted, piece).is_err();
            self.uncounted = 0;
            piece.clear();
        }
    }

    fn usage(&self) -> StreamSummary {
        StreamSummary {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached.unwrap_or(0),
            completion_tokens: self.completion_tokens,
        }
    }

    fn count_token(&mut self) {
        self.uncounted += 1;
        self.completion_tokens += 1;
    }
}

impl OpenRequests {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn insert(&mut self, number: u64, request: OpenRequest) {
        self.open.insert(number, request);
    }

    /// The engine did not take a sequence of this request: it fails as a whole. Sequences the engine has are added to
    /// `cancels`.
    pub(super) fn refuse(&mut self, number: u64, error: WireError, cancels: &mut Vec<SequenceId>) {
        if let Some(request) = self.open.remove(&number) {
            cancels.extend(request.running(number));
            request.sink.fail(error);
        }
    }

    /// Gives every request what `output` has for it: pieces in the order of the step, then one flush a request. The
    /// sequences that the engine need not go on with are added to `cancels`.
    pub(super) fn deliver(&mut self, text: &ModelText, output: &StepOutput, cancels: &mut Vec<SequenceId>) {
        for (id, cached) in &output.prefilled {
            if let Some(request) = self.open.get_mut(&id.request()) {
                // Choices find what the first one computed; what was there before any of them is what was saved.
                request.cached = Some(request.cached.map_or(*cached, |least| least.min(*cached)));
            }
        }
        for token in &output.tokens {
            self.deliver_token(text, token, cancels);
        }
        for (id, reason) in &output.finished {
            self.finish(text, *id, *reason);
        }
        for (id, error) in &output.failed {
            self.refuse(id.request(), error.clone(), cancels);
        }
        self.flush();
    }

    /// Ends the requests whose caller left or whose time is over.
    pub(super) fn reap(&mut self, now: Instant, cancels: &mut Vec<SequenceId>) {
        let over = self.open.extract_if(|_, request| {
            request.gone
                || request.sink.is_cancelled()
                || now.saturating_duration_since(request.accepted) >= request.patience
        });
        for (number, request) in over {
            cancels.extend(request.running(number));
            let error = if request.gone || request.sink.is_cancelled() {
                WireError::new(ErrorKind::Cancelled, "The caller left.")
            } else {
                let message = format!(
                    "The answer was not whole within {} ms.",
                    request.patience.as_millis()
                );
                WireError::new(ErrorKind::DeadlineExceeded, message)
            };
            request.sink.fail(error);
        }
    }

    /// Fails everything.
    pub(super) fn fail_all(&mut self, error: &WireError) {
        for (_, request) in self.open.drain() {
            request.sink.fail(error.clone());
        }
    }

    fn deliver_token(&mut self, text: &ModelText, token: &SampledToken, cancels: &mut Vec<SequenceId>) {
        let id = token.sequence;
        let Some(request) = self.open.get_mut(&id.request()) else {
            return;
        };
        let Some(choice) = request
            .choices
            .get_mut(usize::from(id.choice()))
            .filter(|c| !c.is_finished())
        else {
            return;
        };
        let ended = if !request.ignore_eos && text.eos_tokens().contains(&token.token) {
            choice.finish(text, FinishReason::Stop, &mut self.piece);
            true
        } else {
            choice.push(text, token, &mut self.piece)
        };
        if ended {
            cancels.push(id);
        }
        request.count_token();
        request.queue(&mut self.piece);
        touch(&mut self.touched, request, id);
    }

    fn finish(&mut self, text: &ModelText, id: SequenceId, reason: FinishReason) {
        let Some(request) = self.open.get_mut(&id.request()) else {
            return;
        };
        let Some(choice) = request
            .choices
            .get_mut(usize::from(id.choice()))
            .filter(|c| !c.is_finished())
        else {
            return;
        };
        choice.finish(text, reason, &mut self.piece);
        request.queue(&mut self.piece);
        touch(&mut self.touched, request, id);
    }

    /// Ends the requests that are whole and flushes the others.
    fn flush(&mut self) {
        let Self { open, touched, piece } = self;
        for number in touched.drain(..) {
            let Some(request) = open.get_mut(&number) else {
                continue;
            };
            if !request.choices.iter().all(Choice::is_finished) {
                request.unflushed = false;
                request.sink.flush();
                continue;
            }
            let Some(mut request) = open.remove(&number) else {
                continue;
            };
            let usage = request.usage();
            if request.answer.is_stream() {
                request.answer.write_stream_end(usage, piece);
            } else {
                request
                    .answer
                    .write_document(request.choices.iter().map(Choice::writer), usage, piece);
            }
            request.queue(piece);
            request.sink.end(usage);
        }
    }
}

fn touch(touched: &mut Vec<u64>, request: &mut OpenRequest, id: SequenceId) {
    if !request.unflushed {
        request.unflushed = true;
        touched.push(id.request());
    }
}
