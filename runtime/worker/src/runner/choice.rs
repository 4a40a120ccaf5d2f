//! One choice of an answer: decodes its tokens, scans the text for stop texts, and writes the text that no stop text
//! can include.

use std::collections::VecDeque;

use std::sync::Arc;

use signalbox_protocol::{FinishReason, SamplingParams, ToolOutput};
use signalbox_tokenize::{ModelText, TokenDecoder};

use crate::{
    answer::{
        AnswerPart, ChoiceEnd, ChoiceWriter, StopMatcher, StopScan, TokenEntry, ToolCallParser, is_mark,
    },
    engine::TokenLogprobs,
};

/// The tool calls of a choice.
#[derive(Debug)]
struct ChoiceCalls {
    parser: ToolCallParser,
    /// The beginning of the calls' ids. An answer that another worker continues has the same ones.
    id: String,
    /// A buffer, empty between calls.
    parts: Vec<AnswerPart>,
}

#[derive(Debug)]
pub(super) struct Choice {
    writer: ChoiceWriter,
    decoder: TokenDecoder,
    stops: StopMatcher,
    /// Decoded text that is held back, because it may be the beginning of a stop text.
    pending: String,
    /// Number of bytes of text emitted so far.
    emitted: usize,
    /// Log probabilities of the tokens whose text is held back, each with the position of its text in bytes.
    pending_logprobs: VecDeque<(usize, TokenEntry)>,
    /// Log probabilities of the tokens in the next piece. Between calls it has those of the prompt only, before the first
    /// piece.
    piece_logprobs: Vec<TokenEntry>,
    /// Finds tool calls, if the request has tools.
    calls: Option<ChoiceCalls>,
    ignore_eos: bool,
    stop_tokens: Arc<[u32]>,
    /// Number of tokens, of which the first `min_tokens` may not end the choice.
    tokens: u32,
    min_tokens: u32,
    /// Number of leading bytes of `pending` in which no stop text counts.
    unchecked: usize,
    finished: bool,
}

impl Choice {
    /// The choice of a request with these parameters. `stop_tokens` are those of `sampling`.
    pub(super) fn new(writer: ChoiceWriter, sampling: &SamplingParams, stop_tokens: Arc<[u32]>) -> Self {
        Self {
            writer,
            decoder: TokenDecoder::default(),
            stops: StopMatcher::new(&sampling.stop),
            pending: String::new(),
            emitted: 0,
            pending_logprobs: VecDeque::new(),
            piece_logprobs: Vec::new(),
            calls: None,
            ignore_eos: sampling.ignore_eos,
            stop_tokens,
            tokens: 0,
            min_tokens: sampling.min_tokens,
            unchecked: 0,
            finished: false,
        }
    }

    /// Finds tool calls in the choice's text, as `output` says. `id` begins their ids.
    pub(super) fn with_calls(self, output: &ToolOutput, id: String) -> Self {
        Self {
            calls: Some(ChoiceCalls {
                parser: ToolCallParser::new(output.clone()),
                id,
                parts: Vec::new(),
            }),
            ..self
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    pub(super) fn writer(&self) -> &ChoiceWriter {
        &self.writer
    }

    /// Takes the tokens with which another engine began the choice, whose bytes the client has. Returns whether they finish
    /// it.
    pub(super) fn resume(&mut self, text: &ModelText, generated: &[u32]) -> bool {
        // What the other engine wrote.
        let mut written = Vec::new();
        self.writer.start(&mut written);
        for token in generated {
            if self.push(text, *token, None, &mut written) {
                break;
            }
            written.clear();
        }
        self.finished
    }

    /// Takes a token of the prompt, which the answer repeats with its log probabilities.
    pub(super) fn push_prompt(&mut self, text: &ModelText, token: u32, logprobs: Option<&TokenLogprobs>) {
        self.piece_logprobs.push(match logprobs {
            Some(logprobs) => entry(text, token, logprobs),
            None => TokenEntry {
                bytes: text.token_bytes(token),
                logprob: None,
                top: Vec::new(),
            },
        });
    }

    /// Takes the next token and writes to `out` the text that no stop text can include any more. Returns whether the
    /// token finished the choice: it completed a stop text, is one that ends answers, or ends the sequence and `ignore_eos` is
    /// false.
    pub(super) fn push(
        &mut self,
        text: &ModelText,
        token: u32,
        logprobs: Option<&TokenLogprobs>,
        out: &mut Vec<u8>,
    ) -> bool {
        self.writer.start(out);
        self.writer.count_token(token);
        self.tokens += 1;
        if self.tokens > self.min_tokens {
            let is_eos = !self.ignore_eos && text.eos_tokens().contains(&token);
            if is_eos || self.stop_tokens.contains(&token) {
                self.finish_with(
                    if is_eos {
                        ChoiceEnd::Eos
                    } else {
                        ChoiceEnd::StopToken(token)
                    },
                    out,
                );
                return true;
            }
        }
        if let Some(logprobs) = logprobs {
            let position = self.emitted + self.pending.len();
            let entry = entry(text, token, logprobs);
            self.pending_logprobs.push_back((position, entry));
        }
        if self.calls.is_some() && text.is_special(token) && is_mark(text.piece(token)) {
            self.pending.push_str(&String::from_utf8_lossy(text.piece(token)));
        }
        self.decoder.push(text, token, &mut self.pending);
        if self.tokens <= self.min_tokens {
            self.unchecked = self.pending.len();
        }
        match self.stops.scan(&self.pending, self.unchecked) {
            StopScan::Emit(length) => {
                self.emit(length, out);
                false
            }
            StopScan::Stop { start, index } => {
                self.stop(start, index, out);
                true
            }
        }
    }

    /// Finishes the choice at the end of its generation: writes the text that was held back. A character that the model
    /// began and did not complete is left out: U+FFFD in its place would be one that the model did not mean.
    pub(super) fn finish(&mut self, reason: FinishReason, out: &mut Vec<u8>) {
        self.finish_with(ChoiceEnd::Engine(reason), out);
    }

    fn finish_with(&mut self, end: ChoiceEnd<'_>, out: &mut Vec<u8>) {
        if let StopScan::Stop { start, index } = self.stops.scan(&self.pending, self.unchecked) {
            return self.stop(start, index, out);
        }
        self.emit(self.pending.len(), out);
        self.finish_calls(out);
        // The rest are tokens without text, such as special ones that did not end the answer.
        let rest = self.pending_logprobs.drain(..).map(|(_, entry)| entry);
        self.piece_logprobs.extend(rest);
        self.writer.push("", &mut self.piece_logprobs, out);
        self.writer.finish(end, out);
        self.finished = true;
    }

    /// Finishes the choice at stop text `index`, which begins at byte `start` of the pending text.
    fn stop(&mut self, start: usize, index: usize, out: &mut Vec<u8>) {
        self.emit(start, out);
        self.finish_calls(out);
        self.writer
            .finish(ChoiceEnd::StopText(self.stops.stop_text(index)), out);
        self.finished = true;
    }

    /// Writes the first `length` bytes of the pending text.
    fn emit(&mut self, length: usize, out: &mut Vec<u8>) {
        if length == 0 {
            return;
        }
        self.emitted += length;
        while let Some((_, entry)) = self
            .pending_logprobs
            .pop_front_if(|(position, _)| *position < self.emitted)
        {
            self.piece_logprobs.push(entry);
        }
        if let Some(calls) = &mut self.calls {
            calls.parser.push(&self.pending[..length], &mut calls.parts);
            self.write_parts(out);
        } else {
            self.writer
                .push(&self.pending[..length], &mut self.piece_logprobs, out);
        }
        self.pending.drain(..length);
        self.unchecked = self.unchecked.saturating_sub(length);
    }
}

impl Choice {
    /// Writes what the parser found.
    fn write_parts(&mut self, out: &mut Vec<u8>) {
        let Some(calls) = &mut self.calls else { return };
        for part in calls.parts.drain(..) {
            match part {
                AnswerPart::Text(text) => self.writer.push(&text, &mut self.piece_logprobs, out),
                AnswerPart::Call { index, name } => {
                    self.writer.push_call(format!("{}{index}", calls.id), name, out);
                }
                AnswerPart::Arguments { text, .. } => self.writer.push_arguments(&text, out),
            }
        }
    }

    /// Writes what the parser held back.
    fn finish_calls(&mut self, out: &mut Vec<u8>) {
        if let Some(calls) = &mut self.calls {
            calls.parser.finish(&mut calls.parts);
            self.write_parts(out);
        }
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
        logprob: Some(logprobs.chosen),
        top,
    }
}

#[cfg(test)]
mod tests {
    use signalbox_protocol::{Endpoint, StreamSummary};
    use signalbox_tokenize::ModelArtifacts;

    use super::*;
    use crate::{answer::Answer, runner::tests::request};

    /// The text of a completion whose tokens are these bytes, one each, and that ends with `end`.
    fn completion(bytes: &[u8], stops: &[String], end: FinishReason) -> String {
        let text = ModelText::load(&ModelArtifacts::byte_level()).unwrap();
        let sampling = SamplingParams {
            stop: stops.to_vec(),
            ..SamplingParams::default()
        };
        let mut request = request(false, sampling);
        request.format.endpoint = Endpoint::Completions;
        let answer = Answer::new(&request, "fp", &[]);
        let mut choice = Choice::new(answer.choice(0, false), &request.sampling, Arc::from([]));
        let mut out = Vec::new();
        for byte in bytes {
            let token = (0..text.vocab_size())
                .find(|token| !text.is_special(*token) && text.token_bytes(*token) == [*byte])
                .unwrap();
            choice.push(&text, token, None, &mut out);
        }
        match end {
            FinishReason::Stop => _ = choice.push(&text, text.eos_tokens()[0], None, &mut out),
            FinishReason::Length => choice.finish(end, &mut out),
        }
        answer.write_document([choice.writer()].into_iter(), StreamSummary::default(), &mut out);
        let document: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(document["choices"][0]["finish_reason"], end.as_str());
        document["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    #[test]
    fn half_a_character_at_the_end_is_left_out() {
        let stars = "🌟🌟".as_bytes();
        for end in [FinishReason::Length, FinishReason::Stop] {
            for cut in 0..4 {
                let answer = completion(&stars[..4 + cut], &[], end);
                assert_eq!(answer, "🌟", "{cut} of 4 bytes");
            }
            assert_eq!(completion(stars, &[], end), "🌟🌟");
            // Held back for the stop text, and followed by half a character.
            assert_eq!(completion(b"a\n\xF0\x9F", &["\n\n".into()], end), "a\n");
        }
    }

    #[test]
    fn a_character_that_the_model_broke_off_itself_is_replaced() {
        let answer = completion(b"\xF0\x9F!\x80\xC3", &[], FinishReason::Length);
        assert_eq!(answer, "\u{FFFD}!\u{FFFD}");
    }
}
