//! Converts SentencePiece's models (`tokenizer.model`) to `tokenizer.json`.
//!
//! A model is a protocol buffer, `ModelProto` of SentencePiece's `sentencepiece_model.proto`; the few fields that matter
//! here are read by hand. Supported are models of byte-pair encoding that leave text as it is but for its spaces: those
//! of Llama 2, Mistral and their kin.

use std::collections::HashMap;

use crate::definition::{AddedToken, Definition};

/// The numbers of a piece's type.
mod kind {
    pub(super) const NORMAL: u64 = 1;
    pub(super) const UNKNOWN: u64 = 2;
    pub(super) const CONTROL: u64 = 3;
    pub(super) const USER_DEFINED: u64 = 4;
}

/// `TrainerSpec.ModelType`.
const BYTE_PAIRS: u64 = 2;

/// The parts of a model that decide its tokens.
#[derive(Debug, Default)]
pub(crate) struct Model {
    tokens: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<u64>,
    model_type: u64,
    adds_space_before: bool,
    removes_spaces: bool,
    maps_characters: bool,
}

impl Model {
    /// Reads a model.
    ///
    /// # Errors
    /// The bytes are no such protocol buffer, or the model is of a kind that is not supported. The reason says what.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self {
            adds_space_before: true,
            removes_spaces: true,
            ..Self::default()
        };
        let mut input = bytes;
        while let Some((number, field)) = next_field(&mut input)? {
            match (number, field) {
                (1, Field::Bytes(piece)) => model.read_piece(piece)?,
                (2, Field::Bytes(mut trainer)) => {
                    while let Some((number, field)) = next_field(&mut trainer)? {
                        if let (3, Field::Number(model_type)) = (number, field) {
                            model.model_type = model_type;
                        }
                    }
                }
                (3, Field::Bytes(normalizer)) => model.read_normalizer(normalizer)?,
                _ => {}
            }
        }
        model.check()?;
        Ok(model)
    }

    fn read_piece(&mut self, mut piece: &[u8]) -> Result<(), String> {
        let (mut text, mut score, mut kind) = (String::new(), 0.0, kind::NORMAL);
        while let Some((number, field)) = next_field(&mut piece)? {
            match (number, field) {
                (1, Field::Bytes(bytes)) => {
                    text = String::from_utf8(bytes.to_vec())
                        .map_err(|_| format!("piece {} is not UTF-8", self.tokens.len()))?;
                }
                (2, Field::Four(bits)) => score = f32::from_bits(bits),
                (3, Field::Number(number)) => kind = number,
                _ => {}
            }
        }
        self.tokens.push(text);
        self.scores.push(score);
        self.kinds.push(kind);
        Ok(())
    }

    fn read_normalizer(&mut self, mut normalizer: &[u8]) -> Result<(), String> {
        while let Some((number, field)) = next_field(&mut normalizer)? {
            match (number, field) {
                (2, Field::Bytes(map)) => self.maps_characters = !map.is_empty(),
                (3, Field::Number(flag)) => self.adds_space_before = flag != 0,
                (4, Field::Number(flag)) => self.removes_spaces = flag != 0,
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        if self.tokens.is_empty() {
            return Err("the file is no SentencePiece model: it has no pieces".to_owned());
        }
        let unsupported = [
            (self.model_type != BYTE_PAIRS, "is not of byte-pair encoding"),
            (self.maps_characters, "maps characters to others"),
            (self.removes_spaces, "removes spaces"),
        ];
        match unsupported.into_iter().find(|(is, _)| *is) {
            Some((_, what)) => Err(format!(
                "the SentencePiece model {what}, which is not supported; convert the tokenizer to tokenizer.json"
            )),
            None => Ok(()),
        }
    }

    /// The text of the first control piece of these names.
    pub(crate) fn control(&self, name: &str) -> Option<&str> {
        let mut pieces = self.tokens.iter().zip(&self.kinds);
        pieces
            .find(|(token, kind)| **kind == kind::CONTROL && *token == name)
            .map(|(token, _)| &**token)
    }

    /// The model as a `tokenizer.json`, with more special tokens behind its pieces.
    ///
    /// # Errors
    /// The added tokens leave a gap of ids.
    pub(crate) fn tokenizer_json(&self, added: &HashMap<u32, String>) -> Result<Vec<u8>, String> {
        let pieces = self.tokens.iter().zip(&self.kinds).enumerate();
        let mut tokens: Vec<AddedToken<'_>> = pieces
            .filter_map(|(id, (token, kind))| match *kind {
                kind::CONTROL | kind::UNKNOWN => Some(AddedToken::new(id as u32, token, true)),
                kind::USER_DEFINED => Some(AddedToken::new(id as u32, token, false)),
                _ => None,
            })
            .collect();
        let first = self.tokens.len() as u32;
        let mut behind: Vec<_> = added.iter().filter(|(id, _)| **id >= first).collect();
        behind.sort_unstable();
        for ((id, token), expected) in behind.into_iter().zip(first..) {
            if *id != expected {
                return Err(format!("no token has the id {expected}, and {token:?} has {id}"));
            }
            tokens.push(AddedToken::new(*id, token, true));
        }
        let unknown = self.kinds.iter().position(|kind| *kind == kind::UNKNOWN);
        let definition = Definition::sentence_piece(
            &self.tokens,
            merges_by_score(&self.tokens, &self.scores, |id| self.kinds[id] == kind::NORMAL),
            tokens,
            unknown.map(|id| &*self.tokens[id]),
            self.adds_space_before,
        );
        Ok(definition.to_json())
    }
}

/// The merges that give SentencePiece's tokens. SentencePiece joins the two neighbours whose joint token has the
/// highest score; BPE joins by the rank of a merge. Hence every split of a token into two tokens becomes a merge,
/// ranked by the token's score, then by the ids of the two parts.
pub(crate) fn merges_by_score<'a>(
    tokens: &'a [String],
    scores: &[f32],
    is_normal: impl Fn(usize) -> bool,
) -> Vec<(&'a str, &'a str)> {
    let ids: HashMap<&str, usize> = tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| is_normal(*id))
        .map(|(id, token)| (&**token, id))
        .collect();
    let mut merges = Vec::new();
    for (token, id) in &ids {
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(left_id), Some(right_id)) = (ids.get(left), ids.get(right)) {
                merges.push((scores[*id], *left_id, *right_id, left, right));
            }
        }
    }
    merges.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    merges
        .into_iter()
        .map(|(_, _, _, left, right)| (left, right))
        .collect()
}

/// The value of a field of a protocol buffer.
enum Field<'a> {
    Number(u64),
    Four(u32),
    Eight,
    Bytes(&'a [u8]),
}

/// The next field and its number; `None` at the end.
fn next_field<'a>(input: &mut &'a [u8]) -> Result<Option<(u64, Field<'a>)>, String> {
    if input.is_empty() {
        return Ok(None);
    }
    let cut = || "the file is no SentencePiece model, or is cut off".to_owned();
    let key = number(input).ok_or_else(cut)?;
    let field = match key & 7 {
        0 => Field::Number(number(input).ok_or_else(cut)?),
        1 => {
            take(input, 8).ok_or_else(cut)?;
            Field::Eight
        }
        2 => {
            let length = number(input).ok_or_else(cut)?;
            let length = usize::try_from(length).map_err(|_| cut())?;
            Field::Bytes(take(input, length).ok_or_else(cut)?)
        }
        5 => {
            let bytes = take(input, 4).and_then(|bytes| bytes.try_into().ok());
            Field::Four(u32::from_le_bytes(bytes.ok_or_else(cut)?))
        }
        _ => return Err(cut()),
    };
    Ok(Some((key >> 3, field)))
}

/// A number of variable length: seven bits a byte, the lowest first.
fn number(input: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *take(input, 1)?.first()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take<'a>(input: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MODEL: &[u8] = include_bytes!("../tests/oracle/sentencepiece/tokenizer.model");

    #[test]
    fn other_kinds_of_models_are_refused_with_the_reason() {
        for (bytes, expected) in [
            (b"".as_slice(), "has no pieces"),
            (b"hello", "no SentencePiece model"),
            (&MODEL[..MODEL.len() / 2], "cut off"),
            // One piece, and a trainer with model type 1: unigram.
            (
                b"\x0a\x03\x0a\x01a\x12\x02\x18\x01",
                "is not of byte-pair encoding",
            ),
            (b"\x0a\x03\x0a\x01a\x12\x02\x18\x02", "removes spaces"),
            (
                b"\x0a\x03\x0a\x01a\x12\x02\x18\x02\x1a\x05\x12\x01x\x20\x00",
                "maps characters",
            ),
        ] {
            let error = Model::read(bytes).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn tokens_behind_the_pieces_have_no_gaps() {
        let model = Model::read(MODEL).unwrap();
        let first = model.tokens.len() as u32;
        let added = |id: u32| HashMap::from([(id, "<x>".to_owned()), (0, "<unk>".to_owned())]);
        assert!(model.tokenizer_json(&added(first)).is_ok());
        let error = model.tokenizer_json(&added(first + 1)).unwrap_err();
        assert!(error.contains(&format!("no token has the id {first}")), "{error}");
    }

    proptest! {
        #[test]
        fn damaged_models_never_make_reading_panic(at in 0..MODEL.len(), byte in any::<u8>(), length in 0..MODEL.len()) {
            let mut bytes = MODEL.to_vec();
            bytes[at] = byte;
            bytes.truncate(length.max(1));
            if let Ok(model) = Model::read(&bytes) {
                let _ = model.tokenizer_json(&HashMap::new());
            }
        }
    }
}
