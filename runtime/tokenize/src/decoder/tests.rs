use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::ModelArtifacts;

fn fixture() -> &'static ModelText {
    static FIXTURE: LazyLock<ModelText> =
        LazyLock::new(|| ModelText::load(&ModelArtifacts::byte_level()).unwrap());
    &FIXTURE
}

/// The token of one byte.
fn byte(text: &ModelText, byte: u8) -> u32 {
    (0..text.vocab_size())
        .find(|token| !text.is_special(*token) && text.piece(*token) == [byte])
        .unwrap()
}

fn pushes(text: &ModelText, tokens: &[u32]) -> Vec<String> {
    let mut decoder = TokenDecoder::default();
    let mut pieces: Vec<_> = tokens
        .iter()
        .map(|token| {
            let mut out = String::new();
            decoder.push(text, *token, &mut out);
            out
        })
        .collect();
    let mut rest = String::new();
    decoder.finish(text, &mut rest);
    pieces.push(rest);
    pieces
}

#[test]
fn a_character_comes_out_whole_with_its_last_byte() {
    let text = fixture();
    let tokens: Vec<_> = "a😀é".bytes().map(|it| byte(text, it)).collect();
    assert_eq!(pushes(text, &tokens), ["a", "", "", "", "😀", "", "é", ""]);
}

#[test]
fn only_what_cannot_become_a_character_is_replaced() {
    let text = fixture();
    let tokens = |bytes: &[u8]| bytes.iter().map(|it| byte(text, *it)).collect::<Vec<_>>();
    assert_eq!(pushes(text, &tokens(b"\xF0\x9F!")), ["", "", "\u{FFFD}!", ""]);
    assert_eq!(pushes(text, &tokens(b"\x80a")), ["\u{FFFD}", "a", ""]);
    assert_eq!(pushes(text, &tokens(b"\xE2\x82")), ["", "", "\u{FFFD}"]);
    assert_eq!(pushes(text, &tokens(b"\xC3\xC3\xA9")), ["", "\u{FFFD}", "é", ""]);
}

#[test]
fn special_tokens_have_no_text_and_tear_none() {
    let text = fixture();
    let [first, second] = [0xC3, 0xA9].map(|it| byte(text, it));
    assert_eq!(pushes(text, &[1, first, 2, second, 0]), ["", "", "", "é", "", ""]);
    assert_eq!(pushes(text, &[u32::MAX]), ["", ""]);
}

#[test]
fn a_finished_decoder_begins_anew() {
    let text = fixture();
    let mut decoder = TokenDecoder::default();
    let mut out = String::new();
    decoder.push(text, byte(text, 0xE2), &mut out);
    decoder.finish(text, &mut out);
    decoder.finish(text, &mut out);
    decoder.push(text, byte(text, b'a'), &mut out);
    assert_eq!(out, "\u{FFFD}a");
}

proptest! {
    /// The promise: whatever the tokens, the pieces together are the whole decoded at once.
    #[test]
    fn pieces_together_are_the_whole(tokens in prop::collection::vec(0..300u32, 0..60)) {
        let text = fixture();
        let together = pushes(text, &tokens).concat();
        let bytes: Vec<u8> = tokens.iter().filter(|token| !text.is_special(**token)).flat_map(|it| text.token_bytes(*it)).collect();
        prop_assert_eq!(&together, &String::from_utf8_lossy(&bytes));
        prop_assert_eq!(&together, &text.decode(&tokens).unwrap());
    }

    #[test]
    fn any_text_survives_encoding_and_decoding(sample in any::<String>()) {
        let text = fixture();
        let tokens = text.encode_prompt(&sample).unwrap();
        prop_assert_eq!(text.decode(&tokens).unwrap(), sample);
    }

    #[test]
    fn at_most_three_bytes_are_held(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let text = fixture();
        let mut decoder = TokenDecoder::default();
        for it in bytes {
            decoder.push(text, byte(text, it), &mut String::new());
            prop_assert!(decoder.held.len() <= 3);
        }
    }
}
