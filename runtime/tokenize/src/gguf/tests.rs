use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::{ModelArtifacts, ModelText};

/// Builds GGUF files, valid and invalid ones.
pub(crate) struct GgufFile {
    keys: u64,
    body: Vec<u8>,
}

impl GgufFile {
    pub(crate) fn new() -> Self {
        Self {
            keys: 0,
            body: Vec::new(),
        }
    }

    fn key(mut self, key: &str, kind: u32) -> Self {
        self.keys += 1;
        self.put_string(key);
        self.body.extend(kind.to_le_bytes());
        self
    }

    fn put_string(&mut self, text: &str) {
        self.body.extend((text.len() as u64).to_le_bytes());
        self.body.extend(text.as_bytes());
    }

    fn array(mut self, key: &str, kind: u32, length: usize) -> Self {
        self = self.key(key, 9);
        self.body.extend(kind.to_le_bytes());
        self.body.extend((length as u64).to_le_bytes());
        self
    }

    pub(crate) fn string(mut self, key: &str, value: &str) -> Self {
        self = self.key(key, 8);
        self.put_string(value);
        self
    }

    pub(crate) fn number(mut self, key: &str, value: u32) -> Self {
        self = self.key(key, 4);
        self.body.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn boolean(mut self, key: &str, value: bool) -> Self {
        self = self.key(key, 7);
        self.body.push(u8::from(value));
        self
    }

    pub(crate) fn strings<T: AsRef<str>>(mut self, key: &str, values: &[T]) -> Self {
        self = self.array(key, 8, values.len());
        values.iter().for_each(|value| self.put_string(value.as_ref()));
        self
    }

    pub(crate) fn floats(mut self, key: &str, values: &[f32]) -> Self {
        self = self.array(key, 6, values.len());
        self.body
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    pub(crate) fn types(mut self, values: &[i32]) -> Self {
        self = self.array("tokenizer.ggml.token_type", 5, values.len());
        self.body
            .extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let head = [
            b"GGUF".as_slice(),
            &3u32.to_le_bytes(),
            &0u64.to_le_bytes(),
            &self.keys.to_le_bytes(),
        ];
        [head.concat(), self.body.clone()].concat()
    }

    pub(crate) fn write(&self) -> (tempfile::TempDir, PathBuf) {
        write(&self.bytes())
    }
}

fn write(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn byte_level(pre: &str) -> GgufFile {
    let alphabet = (0..=u8::MAX).map(|byte| crate::pieces::character_of(byte).to_string());
    let tokens: Vec<_> = alphabet
        .chain(["he", "llo", "ll", "<|im_end|>", "<tool>", "</s>"].map(str::to_owned))
        .collect();
    let mut types = vec![1; tokens.len()];
    types[259] = 3;
    types[260] = 4;
    GgufFile::new()
        .string("general.architecture", "llama")
        .number("llama.context_length", 2048)
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", pre)
        .strings("tokenizer.ggml.tokens", &tokens)
        .types(&types)
        .strings("tokenizer.ggml.merges", &["h e", "l l", "ll o"])
        .number("tokenizer.ggml.eos_token_id", 259)
}

/// `▁`, the bytes, and a few pieces. Later pieces have lower scores, as in a vocabulary that SentencePiece trained.
fn sentence_piece() -> GgufFile {
    let head = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
    let bytes = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
    let pieces = ["▁", "a", "b", "c", "ab", "▁a", "bc", "abc"].map(str::to_owned);
    let tokens: Vec<_> = head.chain(bytes).chain(pieces).collect();
    let types = [vec![2, 3, 3], vec![6; 256], vec![1; tokens.len() - 259]].concat();
    let scores: Vec<_> = (0..tokens.len())
        .map(|id| if id < 263 { 0.0 } else { -(id as f32) })
        .collect();
    GgufFile::new()
        .string("general.architecture", "llama")
        .string("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &tokens)
        .types(&types)
        .floats("tokenizer.ggml.scores", &scores)
        .number("tokenizer.ggml.unknown_token_id", 0)
        .number("tokenizer.ggml.bos_token_id", 1)
        .number("tokenizer.ggml.eos_token_id", 2)
}

fn load(file: &GgufFile) -> ModelText {
    let (_folder, path) = file.write();
    ModelText::load(&ModelArtifacts::from_gguf(&path).unwrap()).unwrap()
}

fn error(file: &GgufFile) -> String {
    let (_folder, path) = file.write();
    ModelArtifacts::from_gguf(&path).unwrap_err().to_string()
}

#[test]
fn every_type_of_value_is_read() {
    let mut file = GgufFile::new()
        .string("general.architecture", "qwen3")
        .number("qwen3.context_length", 40960);
    file = file
        .boolean("yes", true)
        .strings("texts", &["a", "é"])
        .floats("floats", &[0.5])
        .types(&[1, -2]);
    file = file.key("u64", 10);
    file.body.extend(u64::MAX.to_le_bytes());
    file = file.key("i8", 1);
    file.body.extend((-3i8).to_le_bytes());
    file = file.key("f64", 12);
    file.body.extend(0.1f64.to_le_bytes());
    file = file.array("i16s", 3, 1);
    file.body.extend((-7i16).to_le_bytes());
    let (_folder, path) = file.write();
    let metadata = read_gguf_metadata(&path).unwrap();
    assert_eq!((metadata.version(), metadata.tensor_count()), (3, 0));
    assert_eq!(metadata.context_length().unwrap(), 40960);
    assert_eq!(metadata.name(), None);
    assert_eq!(metadata.boolean("yes").unwrap(), Some(true));
    assert_eq!(metadata.strings("texts").unwrap().unwrap(), ["a", "é"]);
    assert_eq!(metadata.floats("floats").unwrap(), Some([0.5].as_slice()));
    assert_eq!(
        metadata.integers("tokenizer.ggml.token_type").unwrap(),
        Some([1, -2].as_slice())
    );
    assert_eq!(metadata.integer("u64").unwrap(), Some(u64::MAX));
    assert_eq!(metadata.float("f64").unwrap(), Some(0.1));
    assert_eq!(metadata.integers("i16s").unwrap(), Some([-7].as_slice()));
    let negative = metadata.integer("i8").unwrap_err().to_string();
    assert!(
        negative.contains("\"i8\" is negative; it should be 0 or more"),
        "{negative}"
    );
    let missing = metadata.block_count().unwrap_err().to_string();
    assert!(
        missing.contains("no metadata key \"qwen3.block_count\""),
        "{missing}"
    );
    let wrong = metadata.string("yes").unwrap_err().to_string();
    assert!(
        wrong.contains("\"yes\" is a boolean; it should be a string"),
        "{wrong}"
    );
}

#[test]
fn a_file_that_is_no_gguf_is_refused_with_the_reason() {
    for (bytes, expected) in [
        (b"PK\x03\x04rest".as_slice(), "begins with \"PK\\\\x03\\\\x04\""),
        (b"", "begins with \"\""),
        (
            b"GGUF\x01\0\0\0",
            "GGUF version 1; supported are versions 2 and 3",
        ),
        (b"GGUF\0\0\0\x03", "GGUF version 50331648"),
        (
            b"GGUF\x03\0\0\0\0",
            "truncated: it ends at byte 9, inside the number of tensors",
        ),
    ] {
        let (_folder, path) = write(bytes);
        let error = read_gguf_metadata(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let error = read_gguf_metadata(folder.path()).unwrap_err().to_string();
    assert!(error.contains("cannot read"), "{error}");
    let error = read_gguf_metadata(&folder.path().join("absent.gguf"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("absent.gguf"), "{error}");
}

#[test]
fn a_length_beyond_the_end_of_the_file_is_refused_before_it_is_used() {
    for kind in [0, 5, 8, 10] {
        let mut file = GgufFile::new().array("list", kind, 0);
        file.body.truncate(file.body.len() - 8);
        file.body.extend(u64::MAX.to_le_bytes());
        let (_folder, path) = file.write();
        let error = read_gguf_metadata(&path).unwrap_err().to_string();
        assert!(
            error.contains("truncated") && error.contains("\"list\""),
            "{error}"
        );
    }
    let mut many = GgufFile::new();
    many.keys = u64::MAX;
    assert!(error(&many).contains("the limit is 65536"));
    let mut nested = GgufFile::new().array("nested", 9, 1);
    nested.body.extend([0; 64]);
    assert!(error(&nested).contains("unknown type 9"));
}

#[test]
fn a_byte_level_tokenizer_merges_by_rank_and_recognises_added_tokens() {
    let text = load(&byte_level("qwen2"));
    assert_eq!(text.encode_prompt("hello").unwrap(), [256, 257]);
    assert_eq!(
        text.encode_prompt("he<tool>ll<|im_end|>").unwrap(),
        [256, 260, 258, 259]
    );
    assert_eq!(
        text.decode(&[256, 260, 258, 259]).unwrap(),
        "he<tool>ll",
        "decoding leaves out the special token only"
    );
    assert_eq!(text.eos_tokens(), [259], "</s> is plain text in this vocabulary");
}

#[test]
fn an_unknown_pre_tokenizer_is_refused_with_the_supported_names() {
    let error = error(&byte_level("tomorrow"));
    assert!(
        error.contains("tokenizer.ggml.pre \"tomorrow\" is not supported"),
        "{error}"
    );
    assert!(
        error.contains("smollm") && error.contains("llama-bpe") && error.contains("qwen2"),
        "{error}"
    );
}

#[test]
fn every_supported_pre_tokenizer_loads() {
    for name in pre_tokenizer::names() {
        let file = byte_level(name).number("tokenizer.ggml.bos_token_id", 259);
        let text = load(&file);
        let sample = "He'll pay 1234 €, \n\n  世界ひら \u{301}!";
        let tokens = text.encode_prompt(sample).unwrap();
        assert_eq!(text.decode(&tokens).unwrap(), sample, "{name}");
    }
}

#[test]
fn each_family_splits_digits_its_own_way() {
    let merges = ["1 2", "12 3"];
    let file = |pre: &str| {
        let alphabet = (0..=u8::MAX).map(|byte| crate::pieces::character_of(byte).to_string());
        let tokens: Vec<_> = alphabet.chain(["12", "123"].map(str::to_owned)).collect();
        GgufFile::new()
            .string("general.architecture", "llama")
            .string("tokenizer.ggml.model", "gpt2")
            .string("tokenizer.ggml.pre", pre)
            .strings("tokenizer.ggml.tokens", &tokens)
            .strings("tokenizer.ggml.merges", &merges)
            .boolean("tokenizer.ggml.add_bos_token", false)
    };
    let tokens = |pre: &str| load(&file(pre)).encode_prompt("123123").unwrap().len();
    assert_eq!(
        (
            tokens("smollm"),
            tokens("qwen2"),
            tokens("llama-bpe"),
            tokens("gpt-2")
        ),
        (6, 6, 2, 2)
    );
}

#[test]
fn sentence_piece_joins_by_score_and_falls_back_to_bytes() {
    let text = load(&sentence_piece());
    // "ab" has a higher score than "bc", so "abc" is joined from "ab" and "c". The prefix space comes first.
    assert_eq!(text.encode_prompt("abc").unwrap(), [1, 259, 266]);
    assert_eq!(
        text.encode_prompt("bc é").unwrap(),
        [1, 259, 265, 259, 3 + 0xC3, 3 + 0xA9]
    );
    assert_eq!(
        text.decode(&[1, 265, 259, 3 + 0xC3, 3 + 0xA9, 2]).unwrap(),
        "bc é"
    );
    assert_eq!(text.token_bytes(264), b" a");
    assert_eq!(text.token_bytes(3 + 0xFF), [0xFF]);
    assert_eq!(text.eos_tokens(), [2]);
    let plain = load(&sentence_piece().boolean("tokenizer.ggml.add_space_prefix", false));
    assert_eq!(plain.encode_prompt("abc").unwrap(), [1, 266]);
}

#[test]
fn a_missing_or_wrong_key_is_named() {
    let base = || GgufFile::new().string("general.architecture", "llama");
    assert!(error(&base()).contains("\"tokenizer.ggml.tokens\""));
    let tokens = || base().strings("tokenizer.ggml.tokens", &["a", "b"]);
    assert!(error(&tokens()).contains("\"tokenizer.ggml.model\""));
    let unigram = tokens().string("tokenizer.ggml.model", "t5");
    assert!(error(&unigram).contains("tokenizer.ggml.model \"t5\" is not supported"));
    let llama = || tokens().string("tokenizer.ggml.model", "llama");
    assert!(error(&llama()).contains("\"tokenizer.ggml.scores\""));
    let short = llama().floats("tokenizer.ggml.scores", &[0.0]);
    assert!(error(&short).contains("tokenizer.ggml.scores has 1 entries; tokenizer.ggml.tokens has 2"));
    let no_bos = llama().floats("tokenizer.ggml.scores", &[0.0, 0.0]);
    assert!(error(&no_bos).contains("\"tokenizer.ggml.bos_token_id\""));
    let outside = llama()
        .floats("tokenizer.ggml.scores", &[0.0, 0.0])
        .boolean("tokenizer.ggml.add_bos_token", false)
        .number("tokenizer.ggml.eos_token_id", 2);
    assert!(error(&outside).contains("tokenizer.ggml.eos_token_id is 2; tokenizer.ggml.tokens has 2 tokens"));
    let twice = base().strings("tokenizer.ggml.tokens", &["a", "a"]);
    assert!(error(&twice).contains("\"a\" twice, as 0 and as 1"));
}

proptest! {
    /// As after a download that broke off.
    #[test]
    fn a_truncated_file_is_an_error(cut in 0.0..1.0f64) {
        let whole = sentence_piece().bytes();
        let (_folder, path) = write(&whole[..(whole.len() as f64 * cut) as usize]);
        prop_assert!(read_gguf_metadata(&path).is_err());
    }

    #[test]
    fn a_damaged_file_never_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = byte_level("smollm").bytes();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let (_folder, path) = write(&bytes);
        if let Ok(artifacts) = ModelArtifacts::from_gguf(&path) {
            let _ = ModelText::load(&artifacts);
        }
    }
}
