use proptest::prelude::*;
use serde_json::json;

use super::*;

/// The messages in an engine's way, as JSON.
fn with(
    preparation: MessagePreparation,
    content: ContentFormat,
    developer: bool,
    messages: &Json,
) -> Result<Json, TextError> {
    let rules = Rules {
        preparation,
        content,
        has_developer_role: developer,
    };
    let messages: Value = prepared(messages, &rules)?
        .into_iter()
        .map(Message::into_value)
        .collect();
    Ok(serde_json::to_value(&messages).unwrap())
}

fn vllm(messages: Json) -> Json {
    with(MessagePreparation::Vllm, ContentFormat::Text, false, &messages).unwrap()
}

fn vllm_parts(messages: Json) -> Json {
    with(MessagePreparation::Vllm, ContentFormat::Parts, false, &messages).unwrap()
}

fn text(text: &str) -> Json {
    json!({"type": "text", "text": text})
}

#[test]
fn vllm_joins_texts_that_are_not_empty_with_line_breaks() {
    let parts = json!([text(""), text("a"), "b", {"type": "refusal", "refusal": "c"}, {"type": "text", "text": null}]);
    assert_eq!(
        vllm(json!([{"role": "user", "content": parts}])),
        json!([{"role": "user", "content": "a\nb\nc"}])
    );
    for content in [json!(null), json!([]), json!("")] {
        assert_eq!(
            vllm(json!([{"role": "assistant", "content": content}])),
            json!([{"role": "assistant", "content": ""}])
        );
    }
    assert_eq!(
        vllm(json!([{"role": "user"}])),
        json!([{"role": "user", "content": ""}])
    );
}

#[test]
fn vllm_passes_lists_to_templates_that_loop_over_content() {
    let parts = json!([text(""), {"type": "input_text", "text": "a", "cache_control": {}}]);
    assert_eq!(
        vllm_parts(json!([
            {"role": "user", "content": parts}, {"role": "user", "content": "b"}, {"role": "assistant", "content": null},
            {"role": "tool", "content": [text("x"), text(""), text("y")], "tool_call_id": "1"},
        ])),
        json!([
            {"role": "user", "content": [text(""), text("a")]}, {"role": "user", "content": [text("b")]},
            {"role": "assistant", "content": []}, {"role": "tool", "content": "x\n\ny", "tool_call_id": "1"},
        ])
    );
    let reference = json!({"type": "tool_reference", "name": "f"});
    assert_eq!(
        vllm_parts(json!([{"role": "tool", "content": [text("x"), reference]}]))[0]["content"],
        json!([text("x"), reference])
    );
}

#[test]
fn vllm_merges_system_messages_only_if_it_mapped_a_developer() {
    let system = |text: &str| json!({"role": "system", "content": text});
    let developer = |text: &str| json!({"role": "developer", "content": text});
    let user = json!({"role": "user", "content": "u"});
    assert_eq!(
        vllm(json!([system("a"), user, system("b")])),
        json!([system("a"), user, system("b")])
    );
    assert_eq!(
        vllm(json!([system("a"), user, developer("b")])),
        json!([system("a\n\nb"), user])
    );
    assert_eq!(vllm(json!([user, developer("b")])), json!([system("b"), user]));
    assert_eq!(vllm(json!([developer("b"), user])), json!([system("b"), user]));
    assert_eq!(
        vllm(json!([system(""), developer("b"), user])),
        json!([system("b"), user])
    );
    assert_eq!(
        vllm_parts(json!([user, {"role": "developer", "content": [text("a"), text("b")]}]))[0],
        system("a\nb"),
        "merged content is a string"
    );
    assert_eq!(
        vllm_parts(json!([developer("b")])),
        json!([{"role": "system", "content": [text("b")]}])
    );
    let kept = json!([{"role": "developer", "content": "b", "tools": null}]);
    assert_eq!(
        with(MessagePreparation::Vllm, ContentFormat::Text, true, &kept).unwrap(),
        kept
    );
}

#[test]
fn vllm_passes_on_known_members_only_and_the_reasoning_under_both_names() {
    let reasoning = json!([{"role": "assistant", "content": "4", "reasoning": "r", "foo": 1, "name": "n", "refusal": null}]);
    let expected = json!([{"role": "assistant", "content": "4", "reasoning": "r", "reasoning_content": "r", "name": "n"}]);
    assert_eq!(vllm(reasoning), expected);
    let older = json!([{"role": "assistant", "content": "4", "reasoning": null, "reasoning_content": "r", "name": "n"}]);
    assert_eq!(vllm(older), expected);
    assert_eq!(
        vllm(json!([{"role": "user", "content": "x", "reasoning": "r", "name": 1}])),
        json!([{"role": "user", "content": "x"}])
    );
}

#[test]
fn vllm_makes_an_empty_object_of_arguments_that_are_none() {
    let arguments = |arguments: Json| {
        let call = json!({"type": "function", "function": {"name": "f", "arguments": arguments}, "id": "1", "index": 0});
        vllm(json!([{"role": "assistant", "tool_calls": [call]}]))[0]["tool_calls"][0].clone()
    };
    assert_eq!(
        arguments(json!(r#"{"b": 1, "a": 2}"#)).to_string(),
        r#"{"id":"1","function":{"arguments":{"b":1,"a":2},"name":"f"},"type":"function"}"#,
        "in the order of the schema"
    );
    for odd in [
        json!("[1,2]"),
        json!("\"x\""),
        json!("{\"city\": "),
        json!(""),
        json!("42"),
        json!(null),
        json!([]),
        json!(0),
    ] {
        assert_eq!(arguments(odd)["function"]["arguments"], json!({}));
    }
    assert_eq!(
        arguments(json!({"a": 1}))["function"]["arguments"],
        json!({"a": 1})
    );
    assert_eq!(
        vllm(json!([{"role": "assistant", "content": "x", "tool_calls": []}])),
        json!([{"role": "assistant", "content": "x"}])
    );
    let custom = json!([{"role": "assistant", "tool_calls": [{"type": "custom", "custom": {}}]}]);
    let error = with(MessagePreparation::Vllm, ContentFormat::Text, false, &custom).unwrap_err();
    assert_eq!(error.param_name(), Some("messages[0].tool_calls[0]"));
}

#[test]
fn vllm_removes_a_billing_header_from_system_messages() {
    let header = "x-anthropic-billing-header: cch=1;";
    for (content, expected) in [
        (json!(format!("{header}\nBe brief.")), "Be brief."),
        (json!([text(header), text("Be brief.")]), "Be brief."),
        (json!(header), ""),
        (
            json!(format!("Be brief.\n{header}")),
            &*format!("Be brief.\n{header}"),
        ),
    ] {
        assert_eq!(
            vllm(json!([{"role": "system", "content": content}]))[0]["content"],
            expected
        );
    }
    let user = json!([{"role": "user", "content": header}]);
    assert_eq!(vllm(user.clone()), user);
}

#[test]
fn parts_that_are_no_text_can_be_rendered_by_the_engine_only() {
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    for preparation in [MessagePreparation::Vllm, MessagePreparation::Sglang] {
        let error = with(preparation, ContentFormat::Parts, false, &image).unwrap_err();
        assert!(error.is_unrenderable(), "{error}");
        assert_eq!(error.param_name(), Some("messages[0].content[0]"));
    }
    let error = with(MessagePreparation::Signalbox, ContentFormat::Parts, false, &image).unwrap_err();
    assert!(
        !error.is_unrenderable(),
        "an engine of this repository has no use for images"
    );
}

#[test]
fn sglang_joins_texts_with_spaces_and_leaves_out_null_members() {
    let sglang = |format: ContentFormat, messages: Json| {
        with(MessagePreparation::Sglang, format, false, &messages).unwrap()
    };
    let messages = json!([
        {"role": "user", "content": [text("a"), text(""), text("b")], "name": null, "foo": 1},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
    ]);
    let call =
        json!({"id": "1", "index": null, "type": "function", "function": {"name": "f", "arguments": {}}});
    assert_eq!(
        sglang(ContentFormat::Text, messages.clone()),
        json!([
            {"role": "user", "content": "a  b"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ])
    );
    let parts = sglang(ContentFormat::Parts, messages);
    assert_eq!(parts[0]["content"], json!([text("a"), text(""), text("b")]));
    assert_eq!(parts[1]["content"], "");
    let developer = json!([{"role": "developer", "content": "d"}]);
    assert_eq!(sglang(ContentFormat::Text, developer.clone()), developer);
}

#[test]
fn own_engines_get_members_as_sent_and_the_reasoning_under_both_names() {
    let own = |format: ContentFormat, messages: Json| {
        with(MessagePreparation::Signalbox, format, false, &messages).unwrap()
    };
    assert_eq!(
        own(
            ContentFormat::Text,
            json!([{"role": "assistant", "content": "4", "reasoning": "r", "foo": {"a": 1e-5}, "tool_calls": []}])
        ),
        json!([{"role": "assistant", "content": "4", "reasoning": "r", "foo": {"a": "1e-05"}, "reasoning_content": "r"}])
    );
    let messages =
        json!([{"role": "user", "content": [text("a"), text("b")]}, {"role": "user", "content": "c"}]);
    assert_eq!(
        own(ContentFormat::Parts, messages.clone()),
        messages,
        "a string stays a string"
    );
    assert_eq!(own(ContentFormat::Text, messages)[0]["content"], "a\nb");
}

proptest! {
    #[test]
    fn no_messages_make_a_preparation_panic(
        roles in prop::collection::vec(prop::sample::select(vec!["system", "developer", "user", "assistant", "tool", ""]), 0..5),
        contents in prop::collection::vec(prop::sample::select(vec![
            "null", "\"\"", "\"x-anthropic-billing-header\"", "[]", "[\"a\", {}]", "[{\"type\": \"text\"}]", "{}", "1",
            "[{\"type\": \"text\", \"text\": \"x\"}]", "[{\"type\": \"tool_reference\", \"name\": \"n\"}]",
        ]), 5),
        calls in prop::sample::select(vec!["null", "[]", "[1]", "[{}]", "[{\"function\": {\"arguments\": \"{\"}}]", "{}"]),
        developer in any::<bool>(),
    ) {
        let messages: Vec<Json> = roles.iter().zip(&contents).map(|(role, content)| {
            let content: Json = serde_json::from_str(content).unwrap();
            let calls: Json = serde_json::from_str(calls).unwrap();
            json!({"role": role, "content": content, "tool_calls": calls})
        }).collect();
        let messages = Json::Array(messages);
        for preparation in [MessagePreparation::Signalbox, MessagePreparation::Vllm, MessagePreparation::Sglang] {
            for format in [ContentFormat::Text, ContentFormat::Parts] {
                let _ = with(preparation, format, developer, &messages);
            }
        }
    }
}
