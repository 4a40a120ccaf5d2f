use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::ModelArtifacts;

fn byte_level() -> &'static ModelText {
    static TEXT: LazyLock<ModelText> =
        LazyLock::new(|| ModelText::load(&ModelArtifacts::byte_level()).unwrap());
    &TEXT
}

/// The token of this byte alone.
fn byte(text: &ModelText, byte: u8) -> u32 {
    (0..text.vocab_size())
        .find(|token| !text.is_special(*token) && text.piece(*token) == [byte])
        .unwrap()
}

/// The piece that each token completes, and last the piece of `finish`.
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
    let text = byte_level();
    let tokens: Vec<_> = "a😀é".bytes().map(|value| byte(text, value)).collect();
    assert_eq!(pushes(text, &tokens), ["a", "", "", "", "😀", "", "é", ""]);
}

#[test]
fn only_invalid_characters_are_replaced() {
    let text = byte_level();
    let tokens = |bytes: &[u8]| bytes.iter().map(|value| byte(text, *value)).collect::<Vec<_>>();
    assert_eq!(pushes(text, &tokens(b"\xF0\x9F!")), ["", "", "\u{FFFD}!", ""]);
    assert_eq!(pushes(text, &tokens(b"\x80a")), ["\u{FFFD}", "a", ""]);
    assert_eq!(pushes(text, &tokens(b"\xE2\x82")), ["", "", "\u{FFFD}"]);
    assert_eq!(pushes(text, &tokens(b"\xC3\xC3\xA9")), ["", "\u{FFFD}", "é", ""]);
}

#[test]
fn special_tokens_have_no_text_and_split_no_character() {
    let text = byte_level();
    let [first, second] = [0xC3, 0xA9].map(|value| byte(text, value));
    assert_eq!(pushes(text, &[1, first, 2, second, 0]), ["", "", "", "é", "", ""]);
    assert_eq!(pushes(text, &[u32::MAX]), ["", ""]);
}

#[test]
fn a_finished_decoder_can_be_used_again() {
    let text = byte_level();
    let mut decoder = TokenDecoder::default();
    let mut out = String::new();
    decoder.push(text, byte(text, 0xE2), &mut out);
    decoder.finish(text, &mut out);
    decoder.finish(text, &mut out);
    decoder.push(text, byte(text, b'a'), &mut out);
    assert_eq!(out, "\u{FFFD}a");
}

proptest! {
    #[test]
    fn all_pieces_joined_equal_the_tokens_decoded_at_once(tokens in prop::collection::vec(0..300u32, 0..60)) {
        let text = byte_level();
        let together = pushes(text, &tokens).concat();
        let visible = tokens.iter().filter(|token| !text.is_special(**token));
        let bytes: Vec<u8> = visible.flat_map(|token| text.token_bytes(*token)).collect();
        prop_assert_eq!(&together, &String::from_utf8_lossy(&bytes));
        prop_assert_eq!(&together, &text.decode(&tokens).unwrap());
    }

    #[test]
    fn any_text_survives_encoding_and_decoding(sample in any::<String>()) {
        let text = byte_level();
        let tokens = text.encode_prompt(&sample).unwrap();
        prop_assert_eq!(text.decode(&tokens).unwrap(), sample);
    }

    #[test]
    fn at_most_three_bytes_are_held(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let text = byte_level();
        let mut decoder = TokenDecoder::default();
        for value in bytes {
            decoder.push(text, byte(text, value), &mut String::new());
            prop_assert!(decoder.held.len() <= 3);
        }
    }
}
