use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::ModelArtifacts;
use crate::definition::{AddedToken, Definition};
use crate::gguf::pre_tokenizer::PreTokenizer;
use crate::pieces::character_of;

fn reference_of(definition: &[u8]) -> Tokenizer {
    Tokenizer::from_bytes(definition).unwrap()
}

fn edited(edit: impl FnOnce(&mut Json)) -> Vec<u8> {
    let mut json = serde_json::from_slice(ModelArtifacts::byte_level().tokenizer_json()).unwrap();
    edit(&mut json);
    json.to_string().into_bytes()
}

fn refusal(definition: &[u8]) -> String {
    exact(&reference_of(definition), definition)
        .map(|_| ())
        .unwrap_err()
}

#[test]
fn the_corpus_has_a_few_hundred_texts_and_is_the_same_each_time() {
    let added = vec!["<|im_end|>".to_owned()];
    let texts: Vec<_> = corpus::texts(&added).collect();
    assert!((250..500).contains(&texts.len()), "{}", texts.len());
    assert!(texts.iter().map(String::len).sum::<usize>() < 100_000);
    assert!(texts.iter().eq(corpus::texts(&added).collect::<Vec<_>>().iter()));
    for few in 0..100 {
        let added: Vec<_> = (0..few).map(|id| format!("<{id}>")).collect();
        let checked = corpus::texts(&added).count() - corpus::texts(&[]).count();
        assert_eq!(checked, few.min(48), "every token at either end once");
    }
}

#[test]
fn a_supported_kind_uses_the_fast_tokenizer() {
    let artifacts = ModelArtifacts::byte_level();
    let definition = artifacts.tokenizer_json();
    let encoder = Encoder::new(reference_of(definition), definition.clone());
    assert!(encoder.wait_until_checked());
}

#[test]
fn an_unsupported_kind_uses_the_reference() {
    let definition = edited(|json| {
        json["pre_tokenizer"] = serde_json::json!({"type": "UnicodeScripts"});
    });
    let encoder = Encoder::new(reference_of(&definition), definition.clone().into());
    assert!(!encoder.wait_until_checked());
    assert_eq!(
        encoder.encode("hello").unwrap(),
        by_reference(encoder.reference(), "hello").unwrap()
    );
}

#[test]
fn a_fast_tokenizer_with_other_tokens_is_refused() {
    let definition = edited(|_| ());
    let other = edited(|json| {
        json["model"]["merges"].as_array_mut().unwrap().remove(0);
    });
    let reason = exact(&reference_of(&definition), &other).map(|_| ()).unwrap_err();
    assert!(
        reason.starts_with("the fast tokenizer and the reference give different tokens for "),
        "{reason}"
    );
}

#[test]
fn an_added_token_with_another_id_in_the_definition_is_refused() {
    let definition = edited(|json| json["added_tokens"][1]["id"] = Json::from(u32::MAX));
    assert_eq!(
        refusal(&definition),
        "added token \"<|im_start|>\" has the id 4294967295 in the definition and another in the reference"
    );
}

#[test]
fn the_reference_encodes_text_with_a_mongolian_vowel_separator() {
    let Both { reference, fast } = Both::of(&of_family("gpt-2")).unwrap();
    let text = "a  \u{180e}b \u{180e} c";
    assert_eq!(by_fast(&fast, text), None);
    assert_ne!(
        fast.encode(text).unwrap(),
        by_reference(&reference, text).unwrap(),
        "the two tokenizers still differ"
    );
}

/// Text as clients send it: words, runs, turn markers and any other characters.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-z]{1,8}",
        4 => " ?[a-zA-Z']{1,6}",
        2 => "[0-9]{1,5}",
        2 => "[ \t\r\n]{1,4}",
        2 => "[!-/:-@]{1,3}",
        2 => prop::sample::select(vec!["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool>", "<|im_", "|>"]).prop_map(str::to_owned),
        2 => "\\PC{1,4}",
        1 => any::<String>(),
        1 => "[\u{4e00}-\u{4e40}\u{3040}-\u{3060}]{1,4}",
        1 => "[a-e][\u{300}-\u{330}]{1,3}",
    ];
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

/// Any two of these bytes are a token, so that splitting words at another place changes the tokens.
const PAIRED: &[u8] = b" \n\rabZ09'.,-_$sS";

/// A byte-level tokenizer that splits words as a GGUF file with this `tokenizer.ggml.pre` does.
fn of_family(name: &str) -> Vec<u8> {
    let family = PreTokenizer::named(Some(name)).unwrap();
    let byte = |byte: u8| character_of(byte).to_string();
    let paired: Vec<_> = PAIRED.iter().map(|left| byte(*left)).collect();
    let pairs = || {
        paired
            .iter()
            .flat_map(|left| paired.iter().map(move |right| (&**left, &**right)))
    };
    let joined = pairs().map(|(left, right)| format!("{left}{right}"));
    let special = ["<|im_start|>", "<tool>"];
    let tokens: Vec<_> = special
        .map(str::to_owned)
        .into_iter()
        .chain((0..=u8::MAX).map(byte))
        .chain(joined)
        .collect();
    let added = vec![
        AddedToken::new(0, special[0], true),
        AddedToken::new(1, special[1], false),
    ];
    Definition::byte_level(
        &tokens,
        pairs().collect(),
        added,
        &family.words,
        family.ignore_merges,
        family.nfc,
    )
    .to_json()
}

struct Both {
    reference: Tokenizer,
    fast: Box<fastokens::Tokenizer>,
}

impl Both {
    fn of(definition: &[u8]) -> Result<Self, String> {
        let reference = reference_of(definition);
        let fast = exact(&reference, definition)?;
        Ok(Self { reference, fast })
    }
}

/// Families that differ in how they split words.
const FAMILIES: [&str; 14] = [
    "smollm",
    "gpt-2",
    "qwen2",
    "qwen35",
    "stablelm2",
    "llama-bpe",
    "dbrx",
    "tekken",
    "gpt-4o",
    "deepseek-v3",
    "deepseek-coder",
    "falcon",
    "seed-coder",
    "default",
];

static ALL: LazyLock<Vec<(&str, Both)>> = LazyLock::new(|| {
    let of = |name| {
        (
            name,
            Both::of(&of_family(name)).unwrap_or_else(|reason| panic!("{name}: {reason}")),
        )
    };
    FAMILIES.map(of).into()
});

proptest! {
    /// Covers the segment cache: a text encoded twice, and a text that shares segments with it.
    #[test]
    fn the_fast_tokenizer_gives_the_references_tokens(text in any_text(), turn in any_text()) {
        prop_assume!(!text.contains(MONGOLIAN_VOWEL_SEPARATOR) && !turn.contains(MONGOLIAN_VOWEL_SEPARATOR));
        for (name, Both { reference, fast }) in &*ALL {
            let chat = format!("<|im_start|>{text}<tool>{turn}");
            for text in [&text, &chat, &chat, &format!("{turn}<tool>{chat}")] {
                prop_assert_eq!(by_fast(fast, text).unwrap(), by_reference(reference, text).unwrap(), "{} {:?}", name, text);
            }
        }
    }
}
