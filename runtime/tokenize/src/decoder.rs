//! Turns the tokens of a generation into text as they arrive.
//!
//! A token may end inside a character. The decoder holds the incomplete bytes, three at most, until later tokens
//! complete the character or make it invalid. Only an invalid character is replaced, by U+FFFD. All pieces joined
//! equal the bytes of all tokens decoded at once, lossily.

use crate::{ModelText, TextError};

/// Turns the tokens of one sequence into text piece by piece. Holds incomplete UTF-8 until it is complete.
#[derive(Debug, Default, Clone)]
pub struct TokenDecoder {
    /// The first bytes of a character: valid so far, and incomplete.
    held: Vec<u8>,
}

impl TokenDecoder {
    /// Appends the text that `token` completes to `out`, which may be nothing. Special tokens and ids outside the
    /// vocabulary have no text.
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

    /// Ends the text: appends U+FFFD to `out` if the decoder holds an incomplete character. The decoder can be used
    /// again afterwards.
    pub fn finish(&mut self, _text: &ModelText, out: &mut String) {
        if !self.held.is_empty() {
            self.held.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

impl ModelText {
    /// The text of `tokens` without special tokens: all that a [`TokenDecoder`] gives in pieces.
    ///
    /// The tokens are taken as the continuation of a text. A leading space therefore stays, even if the tokenizer adds
    /// one before the first word of a text.
    ///
    /// # Errors
    /// A token is outside the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TextError> {
        self.check_vocabulary(tokens)?;
        let mut text = String::with_capacity(tokens.len() * 4);
        let mut decoder = TokenDecoder::default();
        for token in tokens {
            decoder.push(self, *token, &mut text);
        }
        decoder.finish(self, &mut text);
        Ok(text)
    }

    /// The text of `tokens`, special tokens included.
    ///
    /// # Errors
    /// A token is outside the vocabulary.
    pub fn decode_with_special(&self, tokens: &[u32]) -> Result<String, TextError> {
        self.check_vocabulary(tokens)?;
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|token| self.piece(*token))
            .copied()
            .collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn check_vocabulary(&self, tokens: &[u32]) -> Result<(), TextError> {
        let vocabulary = self.vocab_size();
        match tokens.iter().find(|token| **token >= vocabulary) {
            None => Ok(()),
            Some(token) => Err(TextError::Encode(format!(
                "token {token} does not exist; the model has {vocabulary} tokens"
            ))),
        }
    }
}

/// Appends complete characters to `out`, and U+FFFD for each invalid one. Returns the incomplete character at the end.
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
        // These bytes are valid, so `from_utf8_lossy` replaces nothing.
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
