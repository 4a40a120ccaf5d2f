//! Writes a tokenizer in the format of Hugging Face's `tokenizer.json`.
//!
//! Tokenizers from other sources (a GGUF file, the built-in byte-level one) are converted to `tokenizer.json`. There is
//! then one way to load a tokenizer, and its bytes are stable.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Value, json};

/// The definition of a byte-pair tokenizer.
#[derive(Debug, Serialize)]
pub(crate) struct Definition<'a> {
    version: &'static str,
    truncation: Option<()>,
    padding: Option<()>,
    added_tokens: Vec<AddedToken<'a>>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: BytePairModel<'a>,
}

/// A token that the tokenizer finds in the text before it splits the rest into words.
#[derive(Debug, Serialize)]
pub(crate) struct AddedToken<'a> {
    id: u32,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

impl<'a> AddedToken<'a> {
    pub(crate) fn new(id: u32, content: &'a str, special: bool) -> Self {
        Self {
            id,
            content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct BytePairModel<'a> {
    r#type: &'static str,
    dropout: Option<f32>,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: Option<&'static str>,
    end_of_word_suffix: Option<&'static str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: Vocabulary<'a>,
    merges: Vec<(&'a str, &'a str)>,
}

/// Tokens in the order of their ids.
#[derive(Debug)]
struct Vocabulary<'a>(&'a [String]);

impl Serialize for Vocabulary<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (id, token) in self.0.iter().enumerate() {
            map.serialize_entry(token, &id)?;
        }
        map.end()
    }
}

/// How text is split into words before byte pairs are merged.
pub(crate) enum Words {
    /// As GPT-2 splits it.
    Gpt2,
    /// Every numeral becomes a word, then the rest is split as GPT-2 does it.
    DigitsThenGpt2,
    /// Each pattern in turn splits the pieces that the patterns before it left whole. The text between matches is kept.
    Patterns(&'static [&'static str]),
}

impl<'a> Definition<'a> {
    /// A byte-level BPE tokenizer, as GPT-2's: the vocabulary writes every byte as a printable character.
    pub(crate) fn byte_level(
        tokens: &'a [String],
        merges: Vec<(&'a str, &'a str)>,
        added_tokens: Vec<AddedToken<'a>>,
        words: &Words,
        ignore_merges: bool,
        nfc: bool,
    ) -> Self {
        let byte_level = |use_regex: bool| {
            let kind = "ByteLevel";
            json!({"type": kind, "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
        };
        let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "pretokenizers": steps});
        let pre_tokenizer = match words {
            Words::Gpt2 => byte_level(true),
            Words::DigitsThenGpt2 => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                sequence(vec![digits, byte_level(true)])
            }
            Words::Patterns(patterns) => {
                let splits = patterns.iter().map(|pattern| {
                    let pattern = json!({"Regex": pattern});
                    json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
                });
                sequence(splits.chain([byte_level(false)]).collect())
            }
        };
        Self {
            version: "1.0",
            truncation: None,
            padding: None,
            added_tokens,
            normalizer: if nfc { json!({"type": "NFC"}) } else { Value::Null },
            pre_tokenizer,
            post_processor: Value::Null,
            decoder: byte_level(true),
            model: BytePairModel::new(tokens, merges, None, false, ignore_merges),
        }
    }

    /// A SentencePiece BPE tokenizer: a space is `▁`, and a character without a token becomes one token per byte.
    pub(crate) fn sentence_piece(
        tokens: &'a [String],
        merges: Vec<(&'a str, &'a str)>,
        added_tokens: Vec<AddedToken<'a>>,
        unknown: Option<&'a str>,
        space_prefix: bool,
    ) -> Self {
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        let normalizer = if space_prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]})
        } else {
            spaces
        };
        Self {
            version: "1.0",
            truncation: None,
            padding: None,
            added_tokens,
            normalizer,
            pre_tokenizer: Value::Null,
            post_processor: Value::Null,
            decoder: json!({"type": "Sequence", "decoders": decoders}),
            model: BytePairModel::new(tokens, merges, unknown, true, false),
        }
    }

    /// The definition as a `tokenizer.json`. Equal definitions give equal bytes.
    #[expect(
        clippy::expect_used,
        reason = "strings, numbers and booleans under names that are strings are JSON"
    )]
    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("every map has strings for keys")
    }
}

impl<'a> BytePairModel<'a> {
    fn new(
        tokens: &'a [String],
        merges: Vec<(&'a str, &'a str)>,
        unk_token: Option<&'a str>,
        byte_fallback: bool,
        ignore_merges: bool,
    ) -> Self {
        Self {
            r#type: "BPE",
            dropout: None,
            unk_token,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: byte_fallback,
            byte_fallback,
            ignore_merges,
            vocab: Vocabulary(tokens),
            merges,
        }
    }
}
