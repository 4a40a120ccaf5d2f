//! Log probabilities in the two shapes of OpenAI's API.

use std::fmt::Write;

use super::json::{push_display, push_logprob, push_string};

/// One generated token with its log probability.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEntry {
    /// The token's exact bytes; maybe only a part of a character.
    pub bytes: Vec<u8>,
    /// Of this token.
    pub logprob: f32,
    /// The likeliest tokens at its place, likeliest first.
    pub top: Vec<(Vec<u8>, f32)>,
}

/// Chat: `{"content":[{"token","logprob","bytes","top_logprobs":[{"token","logprob","bytes"}]}],"refusal":null}`.
pub(super) fn push_chat(entries: &[TokenEntry], out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"content\":[");
    for (place, entry) in entries.iter().enumerate() {
        push_comma(place, out);
        push_chat_token(&entry.bytes, entry.logprob, out);
        out.extend_from_slice(b",\"top_logprobs\":[");
        for (place, (bytes, logprob)) in entry.top.iter().enumerate() {
            push_comma(place, out);
            push_chat_token(bytes, *logprob, out);
            out.push(b'}');
        }
        out.extend_from_slice(b"]}");
    }
    out.extend_from_slice(b"],\"refusal\":null}");
}

/// Without the closing brace.
fn push_chat_token(bytes: &[u8], logprob: f32, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"token\":");
    match std::str::from_utf8(bytes) {
        Ok(text) => push_string(out, text),
        Err(_) => push_string(out, &hex_escaped("", bytes)),
    }
    out.extend_from_slice(b",\"logprob\":");
    push_logprob(out, logprob);
    out.extend_from_slice(b",\"bytes\":[");
    for (place, byte) in bytes.iter().enumerate() {
        push_comma(place, out);
        push_display(out, byte);
    }
    out.push(b']');
}

/// Completions: `{"tokens":[],"token_logprobs":[],"top_logprobs":[{token: logprob}],"text_offset":[]}`, where
/// `offset` is the first token's place in the text. Returns the place after the last token.
pub(super) fn push_completion(entries: &[TokenEntry], mut offset: usize, out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(b"{\"tokens\":[");
    for (place, entry) in entries.iter().enumerate() {
        push_comma(place, out);
        push_completion_token(&entry.bytes, out);
    }
    out.extend_from_slice(b"],\"token_logprobs\":[");
    for (place, entry) in entries.iter().enumerate() {
        push_comma(place, out);
        push_logprob(out, entry.logprob);
    }
    out.extend_from_slice(b"],\"top_logprobs\":");
    if entries.iter().all(|entry| entry.top.is_empty()) {
        out.extend_from_slice(b"null");
    } else {
        out.push(b'[');
        for (place, entry) in entries.iter().enumerate() {
            push_comma(place, out);
            push_top(entry, out);
        }
        out.push(b']');
    }
    out.extend_from_slice(b",\"text_offset\":[");
    for (place, entry) in entries.iter().enumerate() {
        push_comma(place, out);
        push_display(out, offset);
        // Characters are counted where they begin, so that one spread over several tokens counts once.
        offset += entry
            .bytes
            .iter()
            .filter(|byte| **byte & 0b1100_0000 != 0b1000_0000)
            .count();
    }
    out.extend_from_slice(b"]}");
    offset
}

/// The likeliest tokens and, where it is none of them, the chosen one.
fn push_top(entry: &TokenEntry, out: &mut Vec<u8>) {
    out.push(b'{');
    let chosen = (&entry.bytes, entry.logprob);
    let missing = entry.top.iter().all(|(bytes, _)| *bytes != entry.bytes);
    let top = entry.top.iter().map(|(bytes, logprob)| (bytes, *logprob));
    for (place, (bytes, logprob)) in top.chain(missing.then_some(chosen)).enumerate() {
        push_comma(place, out);
        push_completion_token(bytes, out);
        out.push(b':');
        push_logprob(out, logprob);
    }
    out.push(b'}');
}

/// A part of a character is written as OpenAI does: `bytes:\xe2\x80`.
fn push_completion_token(bytes: &[u8], out: &mut Vec<u8>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => push_string(out, text),
        Err(_) => push_string(out, &hex_escaped("bytes:", bytes)),
    }
}

fn hex_escaped(prefix: &str, bytes: &[u8]) -> String {
    bytes.iter().fold(prefix.to_owned(), |mut text, byte| {
        let written = write!(text, "\\x{byte:02x}");
        debug_assert!(written.is_ok(), "a String takes everything");
        text
    })
}

fn push_comma(place: usize, out: &mut Vec<u8>) {
    if place > 0 {
        out.push(b',');
    }
}
