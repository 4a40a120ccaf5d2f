//! A generation's tokens become text as they arrive.
//!
//! A token may end inside a character. What is not whole yet, three bytes at most, is held back until the next tokens
//! complete it or show that nothing can: then, and only then, U+FFFD stands for it. The pieces put together are what
//! the bytes of all tokens give when decoded at once, lossily.

use crate::ModelText;

/// Turns a generation's tokens into text piece by piece, holding back incomplete UTF-8. One a sequence.
#[derive(Debug, Default, Clone)]
pub struct TokenDecoder {
    /// The beginning of a character, not yet whole. Never complete, never wrong.
    held: Vec<u8>,
}

impl TokenDecoder {
    /// The text that `token` completes, appended to `out`; maybe none yet. Special tokens, and ids outside the
    /// vocabulary, have none.
    pub fn push(&mut self, text: &ModelText, token: u32, out: &mut String) {
        if text.is_special(token) {
            return;
        }
        let piece = text.piece(token);
        if self.held.is_empty() {
            let rest = append_whole(piece, out);
            self.held.extend_from_slice(rest);
        } else {
            self.held.extend_from_slice(piece);
            let rest = append_whole(&self.held, out).len();
            self.held.drain(..self.held.len() - rest);
        }
    }

    /// What is held back at the end, appended to `out`: U+FFFD, if anything. The decoder may then begin anew.
    pub fn finish(&mut self, _text: &ModelText, out: &mut String) {
        if !self.held.is_empty() {
            self.held.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

/// Appends what is whole or can never be, the latter as U+FFFD; gives back the incomplete character at the end.
fn append_whole<'a>(mut bytes: &'a [u8], out: &mut String) -> &'a [u8] {
    loop {
        let error = match std::str::from_utf8(bytes) {
            Ok(text) => {
                out.push_str(text);
                return &[];
            }
            Err(error) => error,
        };
        let (valid, rest) = bytes.split_at(error.valid_up_to());
        // Valid up to here as was just found: nothing is replaced.
        out.push_str(&String::from_utf8_lossy(valid));
        let Some(invalid) = error.error_len() else {
            return rest;
        };
        out.push(char::REPLACEMENT_CHARACTER);
        bytes = &rest[invalid..];
    }
}

#[cfg(test)]
mod tests;
