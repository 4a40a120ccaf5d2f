use proptest::prelude::*;

use super::*;
use crate::ModelText;

#[test]
fn a_container_reads_back_equal_to_what_was_written() {
    let artifacts = ModelArtifacts::byte_level();
    let bytes = artifacts.to_bytes();
    let read = ModelArtifacts::from_bytes(&bytes).unwrap();
    assert_eq!(read, artifacts);
    assert_eq!(read.to_bytes(), bytes);
    assert_eq!(read.digest(), artifacts.digest());
    assert_eq!(
        artifacts.digest(),
        Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    );
}

/// Routers and workers of different builds must compute the same digest.
#[test]
fn the_digest_of_known_artifacts_never_changes() {
    assert_eq!(ModelArtifacts::byte_level().digest(), BYTE_LEVEL_DIGEST);
}

const BYTE_LEVEL_DIGEST: &str = "20ac2e03c38b22fe7673e73c6c97f7cebd2ffbfdecfc80617a249dacb9349c95";

#[test]
fn another_template_gives_another_digest() {
    let artifacts = ModelArtifacts::byte_level();
    let mut other = artifacts.clone();
    other.header.chat_template = None;
    assert_ne!(other.digest(), artifacts.digest());
}

#[test]
fn bytes_that_are_no_container_are_refused_with_the_reason() {
    let good = ModelArtifacts::byte_level().to_bytes();
    let check = |bytes: &[u8], expected: &str| {
        let error = ModelArtifacts::from_bytes(bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(b"", "do not begin with \"SBXTEXT\"");
    check(b"{\"version\": \"1.0\"}", "do not begin with \"SBXTEXT\"");
    check(
        &[&good[..7], &[2], &good[8..]].concat(),
        "the container has version 2",
    );
    check(&[&good[..8], &u32::MAX.to_le_bytes()].concat(), "the limit is");
    check(&good[..good.len() - 1], "its length field says");
    check(&[&good, b"x".as_slice()].concat(), "its length field says");
    check(
        &[&good[..8], &2u32.to_le_bytes(), b"{}", &0u64.to_le_bytes()].concat(),
        "missing field",
    );
}

#[test]
fn a_special_token_outside_the_vocabulary_is_refused_at_load() {
    let mut artifacts = ModelArtifacts::byte_level();
    artifacts.header.special_tokens.end = vec![300];
    let error = ModelText::load(&artifacts).unwrap_err().to_string();
    assert!(
        error.contains("special token 300 is outside the vocabulary of 300 tokens"),
        "{error}"
    );
}

#[test]
fn the_end_of_a_message_does_not_end_a_harmony_generation() {
    assert!(is_end_token("<|end|>", &["<|end|>", "<|user|>"]));
    assert!(!is_end_token("<|end|>", &["<|end|>", "<|return|>", "<|call|>"]));
    assert!(!is_end_token("<|im_start|>", &[]));
}

proptest! {
    #[test]
    fn a_damaged_container_never_panics(place in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>()) {
        let mut bytes = ModelArtifacts::byte_level().to_bytes().to_vec();
        let place = place.index(bytes.len());
        bytes[place] = byte;
        bytes.truncate(cut.index(bytes.len()) + 1);
        let _ = ModelArtifacts::from_bytes(&bytes);
    }
}

#[test]
fn the_engines_preparation_and_tokens_are_part_of_the_digest() {
    let artifacts = ModelArtifacts::byte_level();
    assert_eq!(
        artifacts
            .clone()
            .with_preparation(MessagePreparation::Signalbox)
            .digest(),
        BYTE_LEVEL_DIGEST,
        "the default leaves no trace"
    );
    let vllm = artifacts.clone().with_preparation(MessagePreparation::Vllm);
    assert_ne!(vllm.digest(), artifacts.digest());
    let read = ModelArtifacts::from_bytes(&vllm.to_bytes()).unwrap();
    assert_eq!(read.preparation(), MessagePreparation::Vllm);
    let bos = SpecialToken {
        id: 1,
        content: "<|im_start|>".to_owned(),
    };
    let special = SpecialTokens {
        bos: Some(bos),
        ..artifacts.special_tokens().clone()
    };
    let with_bos = ModelArtifacts::assembled(artifacts.tokenizer_json().clone(), None, special);
    let adding = with_bos.clone().with_add_bos(true);
    assert_ne!(adding.digest(), with_bos.digest());
    let text = ModelText::load(&adding).unwrap();
    assert_eq!(text.encode_prompt("hello").unwrap()[0], 1);
    let own = artifacts.with_chat_template(Some("x".to_owned())).unwrap();
    assert_eq!(own.chat_template(), Some("x"));
    assert!(own.with_chat_template(Some("x".repeat(2 << 20))).is_err());
}
