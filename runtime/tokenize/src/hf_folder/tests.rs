use serde_json::json;

use super::*;
use crate::{ChatPrompt, ModelText, TextError};

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
