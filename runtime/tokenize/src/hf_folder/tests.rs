use serde_json::json;

use super::*;
use crate::{ChatPrompt, MessagePreparation, ModelText, TextError};

/// A folder with the built-in tokenizer and `files`.
fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("tokenizer.json"),
        ModelArtifacts::byte_level().tokenizer_json(),
    )
    .unwrap();
    for (name, content) in files {
        let content = content
            .as_str()
            .map_or_else(|| content.to_string(), str::to_owned);
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn read(files: &[(&str, Value)]) -> Result<ModelArtifacts, ArtifactError> {
    ModelArtifacts::from_hf_folder(folder(files).path())
}

#[test]
fn tokenizer_json_alone_is_enough() {
    let artifacts = read(&[]).unwrap();
    assert_eq!(artifacts.special_tokens().end, [0, 2], "by their names");
    let text = ModelText::load(&artifacts).unwrap();
    assert_eq!(
        text.render_chat(&ChatPrompt::new(&json!([]))),
        Err(TextError::NoTemplate)
    );
    let nothing = tempfile::tempdir().unwrap();
    let error = ModelArtifacts::from_hf_folder(nothing.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}

#[test]
fn special_tokens_come_as_strings_or_objects_from_either_file() {
    let config = json!({"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "pad_token": null, "add_bos_token": true});
    let map = json!({"bos_token": "<|endoftext|>", "unk_token": {"content": "<|endoftext|>"}});
    let artifacts = read(&[
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", map),
    ])
    .unwrap();
    let special = artifacts.special_tokens();
    let id = |token: &Option<SpecialToken>| token.as_ref().map(|token| token.id);
    assert_eq!(
        (
            id(&special.bos),
            id(&special.eos),
            id(&special.pad),
            id(&special.unk)
        ),
        (Some(1), Some(2), None, Some(0))
    );
    assert!(special.add_bos && !special.add_eos);
    assert_eq!(
        ModelText::load(&artifacts)
            .unwrap()
            .encode_prompt("hello")
            .unwrap()[0],
        1
    );
}

#[test]
fn every_declared_end_token_ends_a_generation() {
    let end = |ids: Value| read(&[("generation_config.json", json!({"eos_token_id": ids}))]);
    assert_eq!(end(json!(5)).unwrap().special_tokens().end, [0, 2, 5]);
    assert_eq!(end(json!([7, 5, 7])).unwrap().special_tokens().end, [0, 2, 5, 7]);
    assert_eq!(end(Value::Null).unwrap().special_tokens().end, [0, 2]);
    let error = end(json!(["</s>"])).unwrap_err().to_string();
    assert!(
        error.contains("generation_config.json: eos_token_id should be"),
        "{error}"
    );
}

#[test]
fn the_template_file_takes_precedence_over_the_configuration() {
    let config = |template: Value| ("tokenizer_config.json", json!({ "chat_template": template }));
    let template =
        |files: &[(&str, Value)]| read(files).map(|artifacts| artifacts.chat_template().map(str::to_owned));
    assert_eq!(template(&[config(json!("a"))]).unwrap().as_deref(), Some("a"));
    assert_eq!(
        template(&[config(json!("a")), ("chat_template.jinja", json!("b"))])
            .unwrap()
            .as_deref(),
        Some("b")
    );
    let list = json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
    assert_eq!(template(&[config(list)]).unwrap().as_deref(), Some("d"));
    let error = template(&[config(json!([{"name": "rag", "template": "t"}]))])
        .unwrap_err()
        .to_string();
    assert!(error.contains("should have an entry named default"), "{error}");
    let long = "x".repeat(MAX_TEMPLATE_BYTES as usize + 1);
    let error = template(&[("chat_template.jinja", json!(long))])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("chat_template.jinja has 1048577 bytes; the limit is 1048576"),
        "{error}"
    );
}

#[test]
fn damaged_files_are_named() {
    let error = read(&[("tokenizer_config.json", json!("{"))])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("tokenizer_config.json: the file should be a JSON object"),
        "{error}"
    );
    let error = read(&[("tokenizer_config.json", json!({"bos_token": "<absent>"}))])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("bos_token is \"<absent>\"; tokenizer.json has no such token"),
        "{error}"
    );
    let error = read(&[("tokenizer.json", json!("{}"))]).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json: "), "{error}");
}

#[test]
fn the_truncation_of_a_training_run_does_not_shorten_prompts() {
    let mut tokenizer: Value = serde_json::from_slice(ModelArtifacts::byte_level().tokenizer_json()).unwrap();
    tokenizer["truncation"] =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    let text = ModelText::load(&read(&[("tokenizer.json", tokenizer)]).unwrap()).unwrap();
    assert_eq!(text.encode_prompt(&"x".repeat(100)).unwrap().len(), 100);
}

#[derive(serde::Deserialize)]
struct Tokenized {
    text: String,
    ids: Vec<u32>,
}

/// Checks the tokens of a folder with the file `name` and `config` against those of the vocabulary's own library:
/// `oracle/vocabularies.py` wrote them. Tokens that the model adds around a prompt are left out.
fn check_against_oracle(name: &str, file: &[u8], config: Value, ids: &str) -> ModelText {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(name), file).unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let text = ModelText::load(&ModelArtifacts::from_hf_folder(folder.path()).unwrap()).unwrap();
    let mut compared = 0;
    for line in ids.lines() {
        let Tokenized { text: source, ids } = serde_json::from_str(line).unwrap();
        // The library does not find special tokens in a text; the tokenizer here does.
        if !source.contains("<s>") {
            let tokens = text.encode_prompt_with(&source, false).unwrap();
            assert_eq!(tokens, ids, "{name}: {source:?}");
            compared += 1;
        }
    }
    assert!(compared > 20);
    text
}

#[test]
fn a_sentence_piece_model_gives_its_own_tokens() {
    let file = include_bytes!("../../tests/oracle/sentencepiece/tokenizer.model");
    let ids = include_str!("../../tests/oracle/sentencepiece/ids.jsonl");
    let text = check_against_oracle("tokenizer.model", file, json!({}), ids);
    let special = text.special_tokens();
    let name = |token: &Option<SpecialToken>| token.as_ref().map(|token| token.content.clone());
    assert_eq!(name(&special.bos).as_deref(), Some("<s>"));
    assert_eq!(name(&special.eos).as_deref(), Some("</s>"));
    assert!(special.add_bos && !special.add_eos, "as Llama 2");
    assert_eq!(text.encode_prompt("<s>").unwrap(), [1, 1]);
    let tool = text.encode_prompt_with("<tool>", false).unwrap();
    assert_eq!(
        text.decode(&tool).unwrap().trim(),
        "<tool>",
        "a symbol of the user"
    );
}

#[test]
fn a_vocabulary_of_tiktoken_gives_its_own_tokens() {
    let file = include_bytes!("../../tests/oracle/tiktoken/tiktoken.model");
    let ids = include_str!("../../tests/oracle/tiktoken/ids.jsonl");
    let config = json!({
        "tokenizer_class": "TikTokenTokenizer", "bos_token": "[BOS]", "eos_token": "[EOS]",
        "added_tokens_decoder": {"420": {"content": "[BOS]"}, "421": {"content": "[EOS]"}, "426": {"content": "<|im_end|>"}},
    });
    let text = check_against_oracle("tiktoken.model", file, config, ids);
    assert_eq!(text.vocab_size(), 420 + 256);
    assert_eq!(text.eos_tokens(), [421, 426]);
    assert_eq!(
        text.encode_prompt("<|im_end|><|reserved_token_430|>").unwrap(),
        [426, 430]
    );
}

#[test]
fn a_vocabulary_of_tiktoken_with_unknown_words_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tiktoken.model"), "YQ== 0\n").unwrap();
    let error = ModelArtifacts::from_hf_folder(folder.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("TikTokenTokenizer (Kimi)"), "{error}");
}

#[test]
fn templates_come_from_several_files_and_tools_may_have_their_own() {
    let config = |template: Value| ("tokenizer_config.json", json!({ "chat_template": template }));
    let both = |files: &[(&str, Value)]| {
        let artifacts = read(files).unwrap();
        (
            artifacts.chat_template().map(str::to_owned),
            artifacts.tool_template().map(str::to_owned),
        )
    };
    let list = json!([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "{{ tools }}"}]);
    assert_eq!(
        both(&[config(list)]),
        (Some("a".to_owned()), Some("{{ tools }}".to_owned()))
    );
    let json = ("chat_template.json", json!({"chat_template": "c"}));
    assert_eq!(both(&[config(json!("a")), json]), (Some("c".to_owned()), None));
}

#[test]
fn chats_that_engines_render_in_code_are_recognised() {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let config = |kind: &str| ("config.json", json!({"model_type": kind, "architectures": []}));
    let template = ("chat_template.jinja", json!("{{ messages[0].content }}"));
    let render = |kind: &str, preparation: MessagePreparation| {
        let artifacts = read(&[config(kind), template.clone()]).unwrap();
        let text = ModelText::load(&artifacts.with_preparation(preparation)).unwrap();
        text.render_chat(&ChatPrompt::new(&messages))
    };
    for kind in ["gpt_oss", "deepseek_v32", "deepseek_v4"] {
        let error = render(kind, MessagePreparation::Vllm).unwrap_err();
        assert!(error.is_unrenderable(), "{error}");
        assert_eq!(render(kind, MessagePreparation::Signalbox).unwrap(), "hi");
    }
    assert_eq!(render("gpt_oss", MessagePreparation::Sglang).unwrap(), "hi");
    assert_eq!(render("qwen3", MessagePreparation::Vllm).unwrap(), "hi");
    let mistral = read(&[config("mistral"), ("tekken.json", json!({}))]).unwrap();
    assert_eq!(mistral.coded_chat(), Some(CodedChat::MistralCommon));
}
