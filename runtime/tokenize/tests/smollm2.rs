//! Compares the tokens and the chat template of a real model with those of llama.cpp and the reference.
//!
//! The tests need SmolLM2-135M-Instruct as a GGUF file, at the path in `SIGNALBOX_TEST_MODEL` or where `make test` puts
//! it. The expected tokens are llama.cpp's: `oracle/smollm2.py` wrote them to `oracle/smollm2.json`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;
use signalbox_tokenize::{ChatPrompt, ModelArtifacts, ModelText, TokenDecoder, read_gguf_metadata};
use tokenizers::Tokenizer;

fn model() -> PathBuf {
    let named = std::env::var_os("SIGNALBOX_TEST_MODEL").map(PathBuf::from);
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = named.unwrap_or_else(|| workspace.join(".local/models/SmolLM2-135M-Instruct.Q4_1.gguf"));
    assert!(
        path.is_file(),
        "no model at {}: run `make test`, which fetches it, or set SIGNALBOX_TEST_MODEL",
        path.display()
    );
    path
}

static ARTIFACTS: LazyLock<ModelArtifacts> = LazyLock::new(|| ModelArtifacts::from_gguf(&model()).unwrap());

static TEXT: LazyLock<ModelText> = LazyLock::new(|| {
    let text = ModelText::load(&ARTIFACTS).unwrap();
    assert!(
        text.wait_until_encoder_chosen(),
        "the fast tokenizer supports this model"
    );
    text
});

static REFERENCE: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_bytes(ARTIFACTS.tokenizer_json()).unwrap());

/// The tokens that llama.cpp gives for a text: `llama_tokenize(text, add_special = false, parse_special = true)`.
#[derive(Deserialize)]
struct Tokenized {
    text: String,
    ids: Vec<u32>,
}

fn oracle() -> Vec<Tokenized> {
    serde_json::from_str(include_str!("oracle/smollm2.json")).unwrap()
}

#[test]
fn tokens_equal_those_of_llama_cpp() {
    let oracle = oracle();
    assert!(oracle.len() > 40);
    for Tokenized { text, ids } in oracle {
        assert_eq!(TEXT.encode_prompt(&text).unwrap(), ids, "{text:?}");
    }
}

proptest! {
    /// Words of many scripts, runs, turn markers and other characters. Each text is encoded twice, the second time from
    /// the segment cache.
    #[test]
    fn tokens_equal_those_of_the_reference(
        pieces in prop::collection::vec(prop_oneof![
            " ?[a-zA-Z']{1,9}", "[0-9.,]{1,5}", "[ \t\r\n]{1,4}", "[!-~]{1,6}", "\\PC{1,6}",
            any::<String>(),
            prop::sample::select(vec!["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<|im_"])
                .prop_map(str::to_owned),
        ], 0..40),
    ) {
        let text = pieces.concat();
        let expected = REFERENCE.encode_fast(&*text, false).unwrap();
        prop_assert_eq!(&*TEXT.encode_prompt(&text).unwrap(), expected.get_ids());
        prop_assert_eq!(&*TEXT.encode_prompt(&text).unwrap(), expected.get_ids());
    }
}

#[test]
fn decoding_token_by_token_gives_the_text() {
    for Tokenized { ids, .. } in oracle() {
        let mut decoder = TokenDecoder::default();
        let mut pieces = String::new();
        ids.iter()
            .for_each(|token| decoder.push(&TEXT, *token, &mut pieces));
        decoder.finish(&TEXT, &mut pieces);
        let visible = ids.iter().filter(|token| !TEXT.is_special(**token));
        let bytes: Vec<u8> = visible.flat_map(|token| TEXT.token_bytes(*token)).collect();
        assert_eq!(pieces, String::from_utf8(bytes).unwrap());
    }
}

#[test]
fn the_metadata_describes_the_model() {
    let metadata = read_gguf_metadata(&model()).unwrap();
    assert_eq!(metadata.architecture().unwrap(), "llama");
    assert_eq!(metadata.name(), Some("Smollm2 135M 8k Lc100K Mix1 Ep2"));
    assert_eq!(
        (
            metadata.context_length().unwrap(),
            metadata.block_count().unwrap()
        ),
        (8192, 30)
    );
    assert_eq!(
        (
            metadata.embedding_length().unwrap(),
            metadata.vocabulary_size().unwrap()
        ),
        (576, 49152)
    );
    assert_eq!(
        (metadata.tensor_count(), metadata.file_bytes()),
        (272, 98_362_432)
    );
}

#[test]
fn chats_are_rendered_with_the_models_template() {
    let messages = json!([{"role": "user", "content": "Hello"}]);
    let prompt = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
                  <|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(TEXT.render_chat(&ChatPrompt::new(&messages)).unwrap(), prompt);
    let tokens = TEXT.encode_chat(&ChatPrompt::new(&messages)).unwrap();
    assert_eq!(
        tokens,
        TEXT.encode_prompt(prompt).unwrap(),
        "no token is added before a chat"
    );
    assert_eq!(tokens[0], 1);
    assert_eq!(TEXT.eos_tokens(), [0, 2], "<|endoftext|> and <|im_end|>");
    assert_eq!(TEXT.vocab_size(), 49152);
}

#[test]
fn artifacts_are_deterministic_and_survive_serialisation() {
    let artifacts = ModelArtifacts::from_gguf(&model()).unwrap();
    assert_eq!(
        artifacts.digest(),
        ModelArtifacts::from_gguf(&model()).unwrap().digest()
    );
    let read = ModelArtifacts::from_bytes(&artifacts.to_bytes()).unwrap();
    assert_eq!(read.digest(), artifacts.digest());
    let text = ModelText::load(&read).unwrap();
    assert_eq!(
        text.encode_prompt("Hello world").unwrap(),
        TEXT.encode_prompt("Hello world").unwrap()
    );
}

#[test]
fn a_text_of_megabytes_is_known_not_to_fit_without_being_encoded() {
    let spaces = " ".repeat(15 << 20);
    assert!(
        TEXT.least_tokens(&spaces) > 8_192,
        "{}",
        TEXT.least_tokens(&spaces)
    );
    for text in [
        "",
        "a",
        "Signals and points",
        &"word ".repeat(500),
        &spaces[..2_000],
        "\0\u{1}🌟é",
    ] {
        assert!(
            TEXT.least_tokens(text) <= TEXT.encode_prompt(text).unwrap().len(),
            "{text:?}"
        );
    }
}
