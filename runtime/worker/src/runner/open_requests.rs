//! The open requests of an engine: delivers the results of a step to the requests.

use std::time::{Duration, Instant};

use hashbrown::HashMap;
use signalbox_protocol::{ErrorKind, FinishReason, StreamSummary, WireError};
use signalbox_request_plane::PieceTokens;
use signalbox_tokenize::ModelText;

use super::{choice::Choice, sink::AnswerSink};
use crate::{
    answer::Answer,
    engine::{PromptToken, SampledToken, SequenceId, StepOutput},
};

/// Tokens of a whole answer, after its first one, that are reported together. Routers count them as load.
const REPORTED_TOKENS: u32 = 64;

/// One open request. It has `n` choices, each a sequence of the engine.
pub(super) struct OpenRequest {
    pub(super) sink: Box<dyn AnswerSink>,
    pub(super) answer: Answer,
    pub(super) choices: Vec<Choice>,
    pub(super) accepted_at: Instant,
    /// Time for the whole answer, from `accepted_at` on.
    pub(super) time_limit: Duration,
    pub(super) prompt_tokens: u32,
    /// Number of prompt tokens found in the cache. `None` until the prefill is done.
    pub(super) cached_tokens: Option<u32>,
    pub(super) completion_tokens: u32,
    /// Generated tokens that no queued piece accounts for, because their text is held back.
    pub(super) uncounted_tokens: u32,
    /// The ids of those, if the router asks for them.
    pub(super) uncounted_ids: Option<Vec<u32>>,
    /// The bytes of the next piece. A reused buffer, empty between steps.
    pub(super) piece: Vec<u8>,
    /// The sink reported that the caller has closed the stream.
    pub(super) caller_gone: bool,
    /// The request is in [`OpenRequests::to_flush`].
    pub(super) needs_flush: bool,
}

/// All open requests of an engine, by number.
#[derive(Default)]
pub(super) struct OpenRequests {
    open: HashMap<u64, OpenRequest>,
    /// Requests with a result in the current step: to flush, or to end.
    to_flush: Vec<u64>,
}

impl OpenRequest {
    /// The engine's sequences of request `number` that are still running.
    fn running(&self, number: u64) -> impl Iterator<Item = SequenceId> {
        let unfinished = |(index, choice): (usize, &Choice)| (!choice.is_finished()).then_some(index as u16);
        self.choices
            .iter()
            .enumerate()
            .filter_map(unfinished)
            .map(move |choice| SequenceId::new(number, choice))
    }

    /// Queues what the step wrote, as one piece. So a piece with the last token of a stream has the stream's end too: a
    /// router that has that token has the whole answer.
    fn queue(&mut self) {
        if self.piece.is_empty() {
            return;
        }
        let tokens = match &self.uncounted_ids {
            Some(ids) => PieceTokens::Ids(ids),
            None => PieceTokens::Count(self.uncounted_tokens),
        };
        let queued = if self.answer.is_stream() {
            self.sink.queue(tokens, &self.piece)
        } else {
            self.sink.queue_document(tokens, &self.piece)
        };
        self.caller_gone |= queued.is_err();
        self.uncounted_tokens = 0;
        if let Some(ids) = &mut self.uncounted_ids {
            ids.clear();
        }
        self.piece.clear();
    }

    /// Reports the tokens of a whole answer, which has no bytes before its end, by a piece without bytes: at the first token
    /// the router releases the prompt's load, and with each further one it counts more of the answer.
    fn report_tokens(&mut self) {
        let is_first = self.completion_tokens == self.uncounted_tokens;
        if self.uncounted_tokens > 0 && (is_first || self.uncounted_tokens >= REPORTED_TOKENS) {
            let tokens = PieceTokens::Count(self.uncounted_tokens);
            self.caller_gone |= self.sink.queue(tokens, &[]).is_err();
            self.uncounted_tokens = 0;
        }
    }

    pub(super) fn usage(&self) -> StreamSummary {
        StreamSummary {
            prompt_tokens: self.prompt_tokens,
            // Tokens that another worker generated are cached here like those of a prompt.
            cached_tokens: self.cached_tokens.unwrap_or(0).min(self.prompt_tokens),
            completion_tokens: self.completion_tokens,
        }
    }

    fn count_token(&mut self, token: u32) {
        self.uncounted_tokens += 1;
        self.completion_tokens += 1;
        if let Some(ids) = &mut self.uncounted_ids {
            ids.push(token);
        }
    }
}

impl OpenRequests {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn insert(&mut self, number: u64, request: OpenRequest) {
        self.open.insert(number, request);
    }

    /// Fails a whole request, because the engine refused or failed one of its sequences. Adds the request's running
    /// sequences to `cancels`.
    pub(super) fn fail(&mut self, number: u64, error: WireError, cancels: &mut Vec<SequenceId>) {
        if let Some(request) = self.open.remove(&number) {
            cancels.extend(request.running(number));
            request.sink.fail(error);
        }
    }

    /// Delivers the results of a step: for each request one piece and a flush. Adds the
    /// sequences that a stop text or the end-of-sequence token ended to `cancels`.
    pub(super) fn deliver(&mut self, text: &ModelText, output: &StepOutput, cancels: &mut Vec<SequenceId>) {
        for (id, cached) in &output.prefilled {
            if let Some(request) = self.open.get_mut(&id.request()) {
                // Later choices also find the blocks that the first choice computed. The least number is what was
                // cached before the request.
                let least = request.cached_tokens.map_or(*cached, |least| least.min(*cached));
                request.cached_tokens = Some(least);
            }
        }
        for token in &output.prompt_tokens {
            self.deliver_prompt_token(text, token);
        }
        for token in &output.tokens {
            self.deliver_token(text, token, cancels);
        }
        for (id, reason) in &output.finished {
            self.finish(*id, *reason);
        }
        for (id, error) in &output.failed {
            self.fail(id.request(), error.clone(), cancels);
        }
        self.flush();
    }

    /// Ends the requests whose caller has closed the stream or whose time limit has passed.
    pub(super) fn reap(&mut self, now: Instant, cancels: &mut Vec<SequenceId>) {
        let ended = self.open.extract_if(|_, request| {
            request.caller_gone
                || request.sink.is_cancelled()
                || now.saturating_duration_since(request.accepted_at) >= request.time_limit
        });
        for (number, request) in ended {
            cancels.extend(request.running(number));
            let error = if request.caller_gone || request.sink.is_cancelled() {
                WireError::new(ErrorKind::Cancelled, "the caller closed the stream")
            } else {
                let message = format!(
                    "the answer was not complete within the deadline of {} ms",
                    request.time_limit.as_millis()
                );
                WireError::new(ErrorKind::DeadlineExceeded, message)
            };
            request.sink.fail(error);
        }
    }

    /// Fails all requests.
    pub(super) fn fail_all(&mut self, error: &WireError) {
        for (_, request) in self.open.drain() {
            request.sink.fail(error.clone());
        }
    }

    fn deliver_prompt_token(&mut self, text: &ModelText, token: &PromptToken) {
        let choice = usize::from(token.sequence.choice());
        let request = self.open.get_mut(&token.sequence.request());
        if let Some(choice) = request.and_then(|request| request.choices.get_mut(choice)) {
            choice.push_prompt(text, token.token, token.logprobs.as_ref());
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
            .filter(|choice| !choice.is_finished())
        else {
            return;
        };
        let logprobs = token.logprobs.as_ref();
        if choice.push(text, token.token, logprobs, &mut request.piece) {
            cancels.push(id);
        }
        request.count_token(token.token);
        mark_for_flush(&mut self.to_flush, request, id);
    }

    fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        let Some(request) = self.open.get_mut(&id.request()) else {
            return;
        };
        let Some(choice) = request
            .choices
            .get_mut(usize::from(id.choice()))
            .filter(|choice| !choice.is_finished())
        else {
            return;
        };
        choice.finish(reason, &mut request.piece);
        mark_for_flush(&mut self.to_flush, request, id);
    }

    /// Ends the requests whose answer is complete and flushes the others, of those with a result in this step.
    fn flush(&mut self) {
        for number in self.to_flush.drain(..) {
            let Some(request) = self.open.get_mut(&number) else {
                continue;
            };
            if !request.choices.iter().all(Choice::is_finished) {
                request.needs_flush = false;
                if request.answer.is_stream() {
                    request.queue();
                } else {
                    request.report_tokens();
                }
                request.sink.flush();
                continue;
            }
            let Some(mut request) = self.open.remove(&number) else {
                continue;
            };
            let usage = request.usage();
            if request.answer.is_stream() {
                request.answer.write_stream_end(usage, &mut request.piece);
            } else {
                let choices = request.choices.iter().map(Choice::writer);
                request.answer.write_document(choices, usage, &mut request.piece);
            }
            request.queue();
            request.sink.end(usage);
        }
    }
}

fn mark_for_flush(to_flush: &mut Vec<u64>, request: &mut OpenRequest, id: SequenceId) {
    if !request.needs_flush {
        request.needs_flush = true;
        to_flush.push(id.request());
    }
}
