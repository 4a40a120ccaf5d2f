//! One choice of an answer: decodes its tokens, scans the text for stop texts, and writes the text that no stop text
//! can include.

use std::collections::VecDeque;

use signalbox_protocol::FinishReason;
use signalbox_tokenize::{ModelText, TokenDecoder};

use crate::{
    answer::{ChoiceWriter, StopMatcher, StopScan, TokenEntry},
    engine::TokenLogprobs,
};

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
    /// Log probabilities of the tokens in the next piece. Empty between calls.
    piece_logprobs: Vec<TokenEntry>,
    finished: bool,
}

impl Choice {
    pub(super) fn new(writer: ChoiceWriter, stops: &[String]) -> Self {
        Self {
            writer,
            decoder: TokenDecoder::default(),
            stops: StopMatcher::new(stops),
            pending: String::new(),
            emitted: 0,
            pending_logprobs: VecDeque::new(),
            piece_logprobs: Vec::new(),
            finished: false,
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
    pub(super) fn resume(&mut self, text: &ModelText, generated: &[u32], ignore_eos: bool) -> bool {
        // What the other engine wrote.
        let mut written = Vec::new();
        self.writer.start(&mut written);
        for token in generated {
            if self.push(text, *token, None, ignore_eos, &mut written) {
                break;
            }
            written.clear();
        }
        self.finished
    }

    /// Takes the next token and writes to `out` the text that no stop text can include any more. Returns whether the
    /// token finished the choice: it completed a stop text, or ends the sequence and `ignore_eos` is false.
    pub(super) fn push(
        &mut self,
        text: &ModelText,
        token: u32,
        logprobs: Option<&TokenLogprobs>,
        ignore_eos: bool,
        out: &mut Vec<u8>,
    ) -> bool {
        if !ignore_eos && text.eos_tokens().contains(&token) {
            self.finish(FinishReason::Stop, out);
            return true;
        }
        self.writer.start(out);
        if let Some(logprobs) = logprobs {
            let position = self.emitted + self.pending.len();
            let entry = entry(text, token, logprobs);
            self.pending_logprobs.push_back((position, entry));
        }
        self.decoder.push(text, token, &mut self.pending);
        match self.stops.scan(&self.pending) {
            StopScan::Emit(length) => {
                self.emit(length, out);
                false
            }
            StopScan::Stop(start) => {
                self.stop(start, out);
                true
            }
        }
    }

    /// Finishes the choice at the end of its generation: writes the text that was held back. A character that the model
    /// began and did not complete is left out: U+FFFD in its place would be one that the model did not mean.
    pub(super) fn finish(&mut self, reason: FinishReason, out: &mut Vec<u8>) {
        if let StopScan::Stop(start) = self.stops.scan(&self.pending) {
            return self.stop(start, out);
        }
        self.emit(self.pending.len(), out);
        // The rest are tokens without text, such as special ones that did not end the answer.
        let rest = self.pending_logprobs.drain(..).map(|(_, entry)| entry);
        self.piece_logprobs.extend(rest);
        self.writer.push("", &mut self.piece_logprobs, out);
        self.writer.finish(reason, out);
        self.finished = true;
    }

    /// Finishes the choice at the stop text that begins at byte `start` of the pending text.
    fn stop(&mut self, start: usize, out: &mut Vec<u8>) {
        self.emit(start, out);
        self.writer.finish(FinishReason::Stop, out);
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
        self.writer
            .push(&self.pending[..length], &mut self.piece_logprobs, out);
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

#[cfg(test)]
mod tests {
    use signalbox_protocol::{Endpoint, SamplingParams, StreamSummary};
    use signalbox_tokenize::ModelArtifacts;

    use super::*;
    use crate::{answer::Answer, runner::tests::request};

    /// The text of a completion whose tokens are these bytes, one each, and that ends with `end`.
    fn completion(bytes: &[u8], stops: &[String], end: FinishReason) -> String {
        let text = ModelText::load(&ModelArtifacts::byte_level()).unwrap();
        let mut request = request(false, SamplingParams::default());
        request.format.endpoint = Endpoint::Completions;
        let answer = Answer::new(&request, "fp");
        let mut choice = Choice::new(answer.choice(0, false), stops);
        let mut out = Vec::new();
        for byte in bytes {
            let token = (0..text.vocab_size())
                .find(|token| !text.is_special(*token) && text.token_bytes(*token) == [*byte])
                .unwrap();
            choice.push(&text, token, None, false, &mut out);
        }
        match end {
            FinishReason::Stop => _ = choice.push(&text, text.eos_tokens()[0], None, false, &mut out),
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
