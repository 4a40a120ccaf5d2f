//! Log probabilities in the two shapes of OpenAI's API.

use std::fmt::Write;

use super::json::{push_display, push_logprob, push_string};

/// A token of an answer, or of a prompt that the answer repeats, with its log probability.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEntry {
    /// The token's exact bytes, which may be a part of a character.
    pub bytes: Vec<u8>,
    /// The token's log probability. `None` for the first token of a prompt, which nothing precedes.
    pub logprob: Option<f32>,
    /// The likeliest tokens at its position with their log probabilities, likeliest first.
    pub top: Vec<(Vec<u8>, f32)>,
}

/// Appends the shape for chats:
/// `{"content":[{"token","logprob","bytes","top_logprobs":[{"token","logprob","bytes"}]}],"refusal":null}`.
pub(super) fn push_chat(entries: &[TokenEntry], out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"content\":[");
    for (index, entry) in entries.iter().enumerate() {
        push_comma(index, out);
        push_chat_token(&entry.bytes, entry.logprob.unwrap_or_default(), out);
        out.extend_from_slice(b",\"top_logprobs\":[");
        for (index, (bytes, logprob)) in entry.top.iter().enumerate() {
            push_comma(index, out);
            push_chat_token(bytes, *logprob, out);
            out.push(b'}');
        }
        out.extend_from_slice(b"]}");
    }
    out.extend_from_slice(b"],\"refusal\":null}");
}

/// Appends a token's object without its closing brace.
fn push_chat_token(bytes: &[u8], logprob: f32, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"token\":");
    match std::str::from_utf8(bytes) {
        Ok(text) => push_string(out, text),
        Err(_) => push_string(out, &hex_escaped("", bytes)),
    }
    out.extend_from_slice(b",\"logprob\":");
    push_logprob(out, logprob);
    out.extend_from_slice(b",\"bytes\":[");
    for (index, byte) in bytes.iter().enumerate() {
        push_comma(index, out);
        push_display(out, byte);
    }
    out.push(b']');
}

/// Appends the shape for completions:
/// `{"tokens":[],"token_logprobs":[],"top_logprobs":[{token: logprob}],"text_offset":[]}`.
/// `offset` is the first token's position in the text, in characters. Returns the position after the last token.
pub(super) fn push_completion(entries: &[TokenEntry], mut offset: usize, out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(b"{\"tokens\":[");
    for (index, entry) in entries.iter().enumerate() {
        push_comma(index, out);
        push_completion_token(&entry.bytes, out);
    }
    out.extend_from_slice(b"],\"token_logprobs\":[");
    for (index, entry) in entries.iter().enumerate() {
        push_comma(index, out);
        match entry.logprob {
            Some(logprob) => push_logprob(out, logprob),
            None => out.extend_from_slice(b"null"),
        }
    }
    out.extend_from_slice(b"],\"top_logprobs\":");
    if entries.iter().all(|entry| entry.top.is_empty()) {
        out.extend_from_slice(b"null");
    } else {
        out.push(b'[');
        for (index, entry) in entries.iter().enumerate() {
            push_comma(index, out);
            match entry.logprob {
                Some(logprob) => push_top(entry, logprob, out),
                None => out.extend_from_slice(b"null"),
            }
        }
        out.push(b']');
    }
    out.extend_from_slice(b",\"text_offset\":[");
    for (index, entry) in entries.iter().enumerate() {
        push_comma(index, out);
        push_display(out, offset);
        // Counts the first byte of each character, so that a character spread over several tokens counts once.
        offset += entry
            .bytes
            .iter()
            .filter(|byte| **byte & 0b1100_0000 != 0b1000_0000)
            .count();
    }
    out.extend_from_slice(b"]}");
    offset
}

/// Appends the likeliest tokens, and the chosen one if it is not among them.
fn push_top(entry: &TokenEntry, logprob: f32, out: &mut Vec<u8>) {
    out.push(b'{');
    let chosen = (&entry.bytes, logprob);
    let missing = entry.top.iter().all(|(bytes, _)| *bytes != entry.bytes);
    let top = entry.top.iter().map(|(bytes, logprob)| (bytes, *logprob));
    for (index, (bytes, logprob)) in top.chain(missing.then_some(chosen)).enumerate() {
        push_comma(index, out);
        push_completion_token(bytes, out);
        out.push(b':');
        push_logprob(out, logprob);
    }
    out.push(b'}');
}

/// Appends a token's text. A part of a character is written as OpenAI does: `bytes:\xe2\x80`.
fn push_completion_token(bytes: &[u8], out: &mut Vec<u8>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => push_string(out, text),
        Err(_) => push_string(out, &hex_escaped("bytes:", bytes)),
    }
}

fn hex_escaped(prefix: &str, bytes: &[u8]) -> String {
    bytes.iter().fold(prefix.to_owned(), |mut text, byte| {
        let written = write!(text, "\\x{byte:02x}");
        debug_assert!(written.is_ok(), "writing to a String never fails");
        text
    })
}

fn push_comma(index: usize, out: &mut Vec<u8>) {
    if index > 0 {
        out.push(b',');
    }
}
