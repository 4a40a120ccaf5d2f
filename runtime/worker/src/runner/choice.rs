//! One choice of an answer: tokens become text, text is checked for stop texts, and what is certain is written.

use std::collections::VecDeque;

use signalbox_protocol::FinishReason;
use signalbox_tokenize::{ModelText, TokenDecoder};

use crate::{
    answer::{ChoiceWriter, StopMatcher, StopVerdict, TokenEntry},
    engine::{SampledToken, TokenLogprobs},
};

#[derive(Debug)]
pub(super) struct Choice {
    writer: ChoiceWriter,
    decoder: TokenDecoder,
    stops: StopMatcher,
    /// Text that is decoded and not said: it may be the beginning of a stop text.
    pending: String,
    /// Bytes of text said so far.
    said: usize,
    /// Log probabilities of tokens whose text is not said, each with the place where its text begins, in bytes.
    held: VecDeque<(usize, TokenEntry)>,
    ready: Vec<TokenEntry>,
    finished: bool,
}

impl Choice {
    pub(super) fn new(writer: ChoiceWriter, stops: &[String]) -> Self {
        Self {
            writer,
            decoder: TokenDecoder::default(),
            stops: StopMatcher::new(stops),
            pending: String::new(),
            said: 0,
            held: VecDeque::new(),
            ready: Vec::new(),
            finished: false,
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    pub(super) fn writer(&self) -> &ChoiceWriter {
        &self.writer
    }

    /// Takes the next token; what it makes certain is written to `out`. True when it completed a stop text: then the
    /// choice is finished.
    pub(super) fn push(&mut self, text: &ModelText, token: &SampledToken, out: &mut Vec<u8>) -> bool {
        self.writer.start(out);
        if let Some(logprobs) = &token.logprobs {
            let begins = self.said + self.pending.len();
            self.held.push_back((begins, entry(text, token.token, logprobs)));
        }
        self.decoder.push(text, token.token, &mut self.pending);
        match self.stops.judge(&self.pending) {
            StopVerdict::Say(length) => {
                self.say(length, out);
                false
            }
            StopVerdict::Stop(at) => {
                self.stop(at, out);
                true
            }
        }
    }

    /// The model or the engine ended it: nothing is held back any longer.
    pub(super) fn finish(&mut self, text: &ModelText, reason: FinishReason, out: &mut Vec<u8>) {
        self.decoder.finish(text, &mut self.pending);
        if let StopVerdict::Stop(at) = self.stops.judge(&self.pending) {
            return self.stop(at, out);
        }
        self.say(self.pending.len(), out);
        // Tokens without text of their own, like special ones that did not end the answer.
        self.ready.extend(self.held.drain(..).map(|(_, entry)| entry));
        self.writer.push("", &mut self.ready, out);
        self.writer.finish(reason, out);
        self.finished = true;
    }

    /// A stop text begins at byte `at` of what is pending: it and what follows is never said.
    fn stop(&mut self, at: usize, out: &mut Vec<u8>) {
        self.say(at, out);
        self.writer.finish(FinishReason::Stop, out);
        self.finished = true;
    }

    /// Says the first `length` bytes of what is pending.
    fn say(&mut self, length: usize, out: &mut Vec<u8>) {
        if length == 0 {
            return;
        }
        self.said += length;
        while self.held.front().is_some_and(|(begins, _)| *begins < self.said) {
            self.ready.extend(self.held.pop_front().map(|(_, entry)| entry));
        }
        self.writer.push(&self.pending[..length], &mut self.ready, out);
        self.pending.drain(..length);
    }
}

fn entry(text: &ModelText, token: u32, logprobs: &TokenLogprobs) -> TokenEntry {
    let top = logprobs
        .top
        .iter()
        .map(|(token, logprob)| (text.token_bytes(*token), *logprob))
        .collect();
    TokenEntry {
        bytes: text.token_bytes(token),
        logprob: logprobs.chosen,
        top,
    }
}
