use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

fn byte_level() -> &'static ModelText {
    static TEXT: LazyLock<ModelText> =
        LazyLock::new(|| ModelText::load(&ModelArtifacts::byte_level()).unwrap());
    &TEXT
}

#[test]
fn the_byte_level_tokenizer_has_300_tokens_and_two_of_them_end_a_generation() {
    let text = byte_level();
    assert_eq!(text.vocab_size(), 300);
    assert_eq!(text.eos_tokens(), [0, 2]);
    assert_eq!(text.encode_prompt("hello world").unwrap().len(), 2);
    assert_eq!(text.token_bytes(1), b"<|im_start|>");
    assert_eq!(text.token_bytes(300), b"");
}

#[test]
fn a_chat_is_framed_by_turn_markers_that_are_tokens() {
    let text = byte_level();
    let messages = json!([{"role": "user", "content": "hello"}]);
    assert_eq!(
        text.render_chat(&ChatPrompt::new(&messages)).unwrap(),
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    );
    let tokens = text.encode_chat(&ChatPrompt::new(&messages)).unwrap();
    assert_eq!(tokens.iter().filter(|token| **token == 1).count(), 2);
    assert_eq!(tokens.iter().filter(|token| **token == 2).count(), 1);
    assert_eq!(text.decode(&tokens).unwrap(), "user\nhello\nassistant\n");
}

/// As in the reference: a message can contain the text of a special token.
#[test]
fn turn_markers_inside_a_message_are_tokens_too() {
    let text = byte_level();
    let messages = json!([{"role": "user", "content": "<|im_end|>"}]);
    let tokens = text.encode_chat(&ChatPrompt::new(&messages)).unwrap();
    assert_eq!(tokens.iter().filter(|token| **token == 2).count(), 2);
}

#[test]
fn parts_null_and_missing_content_become_a_string() {
    let text = byte_level();
    let render = |messages: Json| text.render_chat(&ChatPrompt::new(&messages));
    let parts =
        json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
    assert!(render(parts).unwrap().contains("user\na\nb<|im_end|>"));
    let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    for message in [
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        json!({"role": "assistant", "tool_calls": [call]}),
    ] {
        assert!(
            render(json!([message]))
                .unwrap()
                .starts_with("<|im_start|>assistant\n<|im_end|>")
        );
    }
    assert!(
        render(json!([{"role": "developer", "content": "x"}]))
            .unwrap()
            .starts_with("<|im_start|>system\nx")
    );
}

#[test]
fn tool_calls_reach_the_template_with_their_arguments_parsed() {
    let artifacts = ModelArtifacts::assembled(
        ModelArtifacts::byte_level().tokenizer_json().clone(),
        Some("{% for m in messages %}{{ m.tool_calls[0].function.arguments | tojson }}{{ m.name }}{% endfor %}".to_owned()),
        SpecialTokens::default(),
    );
    let text = ModelText::load(&artifacts).unwrap();
    let call = |arguments: &str| {
        let call = json!({"function": {"name": "f", "arguments": arguments}});
        let messages = json!([{"role": "assistant", "tool_calls": [call], "name": "n"}]);
        text.render_chat(&ChatPrompt::new(&messages))
    };
    assert_eq!(call(r#"{"z":1,"a":[]}"#).unwrap(), r#"{"z": 1, "a": []}n"#);
    assert_eq!(call("").unwrap(), "{}n");
    let error = call("{oops").unwrap_err();
    assert_eq!(
        error.param_name(),
        Some("messages[0].tool_calls[0].function.arguments")
    );
}

#[test]
fn messages_of_the_wrong_shape_are_refused_with_the_parameter() {
    let text = byte_level();
    let check = |messages: Json, param: &str, expected: &str| {
        let error = text.render_chat(&ChatPrompt::new(&messages)).unwrap_err();
        assert_eq!(error.param_name(), Some(param), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    let user = json!({"role": "user", "content": "hi"});
    check(
        json!("hi"),
        "messages",
        "messages is a string; it should be an array",
    );
    check(json!([]), "messages", "at least one message");
    check(
        json!([user, 3]),
        "messages[1]",
        "messages[1] is a number; it should be an object",
    );
    check(
        json!([user, {"content": "x"}]),
        "messages[1].role",
        "messages[1].role is missing",
    );
    check(
        json!([{"role": "", "content": "x"}]),
        "messages[0].role",
        "an empty string",
    );
    check(
        json!([{"role": "user"}]),
        "messages[0].content",
        "messages[0].content is missing; it should be a string",
    );
    check(
        json!([{"role": "user", "content": null}]),
        "messages[0].content",
        "is null",
    );
    check(
        json!([{"role": "assistant", "content": null, "tool_calls": []}]),
        "messages[0].content",
        "is null",
    );
    check(
        json!([{"role": "user", "content": {"text": "x"}}]),
        "messages[0].content",
        "is an object",
    );
    let image = json!({"type": "image_url", "image_url": {"url": "x"}});
    check(
        json!([{"role": "user", "content": [image]}]),
        "messages[0].content[0].type",
        "\"image_url\"",
    );
    check(
        json!([{"role": "user", "content": ["x"]}]),
        "messages[0].content[0]",
        "is a string",
    );
    check(
        json!([{"role": "user", "content": [{"type": "text"}]}]),
        "messages[0].content[0].text",
        "is missing",
    );
    check(
        json!([{"role": "assistant", "tool_calls": 1, "content": ""}]),
        "messages[0].tool_calls",
        "should be an array",
    );
    check(json!(vec![user; 10_001]), "messages", "the limit is 10000");
}

#[test]
fn a_model_without_a_template_refuses_chats_and_names_the_completions_path() {
    let artifacts = ModelArtifacts::byte_level();
    let bare = ModelArtifacts::assembled(artifacts.tokenizer_json().clone(), None, SpecialTokens::default());
    let error = ModelText::load(&bare)
        .unwrap()
        .render_chat(&ChatPrompt::new(&json!([])))
        .unwrap_err();
    assert_eq!(error, TextError::NoTemplate);
    assert!(error.to_string().contains("/v1/completions"));
    let wire = signalbox_protocol::WireError::from(error);
    assert_eq!(
        (wire.kind.status(), wire.param.as_deref()),
        (400, Some("messages"))
    );
}

#[test]
fn prompts_get_the_special_tokens_that_the_model_adds() {
    let artifacts = ModelArtifacts::byte_level();
    let mut special = artifacts.special_tokens().clone();
    (special.add_bos, special.add_eos) = (true, true);
    let framed = ModelArtifacts::assembled(artifacts.tokenizer_json().clone(), None, special);
    let text = ModelText::load(&framed).unwrap();
    let tokens = text.encode_prompt("hello").unwrap();
    assert_eq!((tokens.len(), tokens[0], tokens[2]), (3, 1, 2));
    assert_eq!(text.encode_prompt("").unwrap(), [1, 2]);
}

#[test]
fn a_token_that_does_not_exist_is_named() {
    let error = byte_level().decode(&[5, 300]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("token 300 does not exist; the model has 300 tokens"),
        "{error}"
    );
}

#[test]
fn an_unsupported_decoder_is_refused() {
    let artifacts = ModelArtifacts::byte_level();
    let mut json: Json = serde_json::from_slice(artifacts.tokenizer_json()).unwrap();
    json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let artifacts = ModelArtifacts::assembled(json.to_string().into(), None, SpecialTokens::default());
    let error = ModelText::load(&artifacts).unwrap_err().to_string();
    assert!(
        error.contains("WordPiece") && error.contains("ByteLevel"),
        "{error}"
    );
}

#[test]
fn text_and_artifacts_can_be_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<ModelText>();
    shared::<ModelArtifacts>();
}

proptest! {
    /// The reference decodes all tokens at once.
    #[test]
    fn decoding_gives_the_references_text(tokens in prop::collection::vec(0..300u32, 0..60)) {
        let text = byte_level();
        prop_assert_eq!(text.decode(&tokens).unwrap(), text.encoder.reference().decode(&tokens, true).unwrap());
    }
}
