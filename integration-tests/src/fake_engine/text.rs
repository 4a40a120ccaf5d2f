//! The text side of a fake engine: its tokenizer and chat template, and a "model" whose next token depends on all tokens
//! before it and on nothing else.
//!
//! Two engines therefore answer alike, and an answer that is continued from its tokens at another engine equals the
//! undisturbed one.

use anyhow::Context;
use serde_json::{Map, Value};
use signalbox_tokenize::{ChatPrompt, ModelArtifacts, ModelText};

/// One token in this many ends the answer, unless the request forbids it.
const END_ONE_IN: u64 = 24;

/// A loaded tokenizer, chat template and "model".
#[derive(Debug)]
pub(super) struct Text {
    model: ModelText,
    /// The tokens that answers are made of: printable, valid text on their own.
    ordinary: Vec<u32>,
}

impl Text {
    pub(super) fn load(artifacts: &ModelArtifacts) -> anyhow::Result<Self> {
        let model = ModelText::load(artifacts)?;
        let is_printable = |token: &u32| {
            let piece = std::str::from_utf8(model.piece(*token)).unwrap_or_default();
            !model.is_special(*token) && !piece.is_empty() && !piece.chars().any(char::is_control)
        };
        let ordinary: Vec<u32> = (0..model.vocab_size()).filter(is_printable).collect();
        anyhow::ensure!(!ordinary.is_empty(), "the tokenizer has no printable token");
        Ok(Self { model, ordinary })
    }

    /// The tokens of the chat of a request body.
    pub(super) fn encode_chat(&self, body: &Map<String, Value>) -> anyhow::Result<Vec<u32>> {
        let chat = ChatPrompt::of_request(body)?;
        Ok(self.model.encode_chat(&chat)?)
    }

    /// The tokens of a text; `special` adds those of the beginning and end, if the model has them.
    pub(super) fn encode(&self, text: &str, special: bool) -> anyhow::Result<Vec<u32>> {
        let mut tokens = self.model.encode_prompt(text)?;
        if !special {
            let special = self.model.special_tokens();
            if special.add_bos && !tokens.is_empty() {
                tokens.remove(0);
            }
            if special.add_eos {
                tokens.pop();
            }
        }
        Ok(tokens)
    }

    pub(super) fn decode(&self, tokens: &[u32]) -> anyhow::Result<String> {
        self.model.decode(tokens).context("the tokens cannot be decoded")
    }

    /// The text of one token; empty for a special one.
    pub(super) fn piece(&self, token: u32) -> String {
        if self.model.is_special(token) {
            return String::new();
        }
        String::from_utf8_lossy(self.model.piece(token)).into_owned()
    }

    /// The token as byte-level vocabularies write it: `Ġworld`.
    pub(super) fn name(&self, token: u32) -> String {
        let piece = self.model.piece(token);
        if self.model.is_special(token) {
            return String::from_utf8_lossy(piece).into_owned();
        }
        piece.iter().map(|byte| byte_character(*byte)).collect()
    }

    /// The bytes of one token.
    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        self.model.piece(token)
    }

    pub(super) fn vocabulary(&self) -> u32 {
        self.model.vocab_size()
    }

    /// The token that ends an answer.
    fn end(&self) -> u32 {
        self.model.eos_tokens().first().copied().unwrap_or(0)
    }

    /// What the "model" generates after `prompt`: at most `most` tokens, the last one the end token if `may_end` and it
    /// comes after `least` others. `choice` is the number of the answer among several.
    pub(super) fn generate(
        &self,
        prompt: &[u32],
        choice: usize,
        least: usize,
        most: usize,
        may_end: bool,
    ) -> Vec<u32> {
        let mut state = prompt
            .iter()
            .fold(mix(choice as u64), |state, token| step(state, *token));
        let mut tokens = Vec::new();
        while tokens.len() < most {
            let is_end = mix(state ^ 1).is_multiple_of(END_ONE_IN);
            let token = if is_end && may_end && tokens.len() >= least {
                self.end()
            } else {
                self.ordinary[(state % self.ordinary.len() as u64) as usize]
            };
            tokens.push(token);
            if token == self.end() {
                break;
            }
            state = step(state, token);
        }
        tokens
    }

    /// Whether the token ends an answer.
    pub(super) fn is_end(&self, token: u32) -> bool {
        token == self.end()
    }

    /// A number that stands for `tokens`, for answers that are no text.
    pub(super) fn fingerprint(tokens: &[u32]) -> u64 {
        tokens.iter().fold(mix(0), |state, token| step(state, *token))
    }
}

/// GPT-2's character for a byte: itself if it is visible, and one from U+0100 on if not.
fn byte_character(byte: u8) -> char {
    let is_visible = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_visible(&byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !is_visible(byte)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn step(state: u64, token: u32) -> u64 {
    mix(state ^ u64::from(token).wrapping_add(1))
}

/// The finaliser of splitmix64 (Steele et al., 2014): every bit of the result depends on every bit of `number`.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_continued_from_its_tokens_is_the_undisturbed_answer() {
        let text = Text::load(&ModelArtifacts::byte_level()).unwrap();
        let prompt = text.encode("The 8:15 to", true).unwrap();
        let whole = text.generate(&prompt, 0, 0, 40, false);
        assert_eq!(whole.len(), 40);
        let (delivered, rest) = whole.split_at(17);
        assert_eq!(
            text.generate(&[&prompt, delivered].concat(), 0, 0, 23, false),
            rest
        );
        assert_ne!(text.generate(&prompt, 1, 0, 40, false), whole);
    }

    #[test]
    fn answers_end_by_themselves_unless_told_not_to() {
        let text = Text::load(&ModelArtifacts::byte_level()).unwrap();
        let ended = (0..40_u32).filter(|number| {
            let tokens = text.generate(&[*number], 0, 2, 200, true);
            assert!(tokens.len() > 2);
            tokens.last().is_some_and(|token| text.is_end(*token))
        });
        assert!(ended.count() > 30);
    }
}
