use serde_json::json;

use super::*;

fn renderer(template: &str, preparation: MessagePreparation) -> ChatRenderer {
    let artifacts = ModelArtifacts::byte_level()
        .with_chat_template(Some(template.to_owned()))
        .unwrap()
        .with_preparation(preparation);
    ChatRenderer::load(&artifacts).unwrap()
}

fn rendered(template: &str, preparation: MessagePreparation, chat: &ChatPrompt<'_>) -> String {
    renderer(template, preparation).render(chat).unwrap().prompt
}

const TURNS: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
const STRIPPED: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}";

/// The expected texts are those of `render_jinja_template` of transformers 5.
#[test]
fn a_continued_message_ends_the_prompt() {
    for (template, text, expected) in [
        (TURNS, "Hello, my", "<user>Hi</><assistant>Hello, my"),
        (TURNS, "Hello,  ", "<user>Hi</><assistant>Hello,  "),
        (STRIPPED, "Hello,  ", "<user>Hi</><assistant>Hello,"),
        (STRIPPED, "  Hello", "<user>Hi</><assistant>Hello"),
    ] {
        let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}]);
        let chat = ChatPrompt {
            continue_final_message: true,
            add_generation_prompt: false,
            ..ChatPrompt::new(&messages)
        };
        assert_eq!(rendered(template, MessagePreparation::Vllm, &chat), expected);
    }
}

#[test]
fn a_message_that_cannot_be_continued_is_refused_with_the_parameter() {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let check = |template: &str, chat: ChatPrompt<'_>, expected: &str| {
        let error = renderer(template, MessagePreparation::Vllm)
            .render(&chat)
            .unwrap_err();
        assert_eq!(error.param_name(), Some("continue_final_message"), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    let both = ChatPrompt {
        continue_final_message: true,
        ..ChatPrompt::new(&messages)
    };
    check(TURNS, both, "both true");
    let one = ChatPrompt {
        add_generation_prompt: false,
        ..both
    };
    check("{{ messages[0].role }}", one, "no text to continue");
    check("{{ messages[0].content[:1] }}", one, "leaves out a part");
}

#[test]
fn sglang_renders_the_prompt_for_an_answer_before_a_continued_message() {
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]);
    let mut chat = ChatPrompt::new(&messages);
    chat.continue_final_message = true;
    chat.add_generation_prompt = false;
    assert_eq!(
        renderer(TURNS, MessagePreparation::Sglang).render(&chat).unwrap(),
        Rendered {
            prompt: "<user>Hi</><assistant>".to_owned(),
            prefix_of_answer: Some("Hello".to_owned()),
        }
    );
    let question = json!([{"role": "user", "content": "Hi"}]);
    chat.messages = &question;
    let rendered = renderer(TURNS, MessagePreparation::Sglang).render(&chat).unwrap();
    assert_eq!(
        rendered.prefix_of_answer, None,
        "only an assistant's message is continued"
    );
}

#[test]
fn variables_of_the_request_win_as_in_each_engine() {
    let template =
        "{{ add_generation_prompt }} {{ reasoning_effort }} {{ enable_thinking }} {{ documents }} {{ x }}";
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let kwargs = json!({"add_generation_prompt": false, "documents": [1], "x": null});
    let chat = ChatPrompt {
        template_kwargs: Some(&kwargs),
        reasoning_effort: Some("none"),
        ..ChatPrompt::new(&messages)
    };
    assert_eq!(
        rendered(template, MessagePreparation::Signalbox, &chat),
        "True none  [1] None"
    );
    assert_eq!(
        rendered(template, MessagePreparation::Vllm, &chat),
        "True none False [1] ",
        "vLLM sets enable_thinking, and leaves out variables that are null"
    );
    let kwargs = json!({"enable_thinking": true, "reasoning_effort": "low", "x": "auto"});
    let documents = json!([2]);
    let chat = ChatPrompt {
        template_kwargs: Some(&kwargs),
        documents: Some(&documents),
        reasoning_effort: Some("high"),
        ..chat
    };
    assert_eq!(
        rendered(template, MessagePreparation::Vllm, &chat),
        "True high True [2] "
    );
    let wrong = json!([1]);
    let chat = ChatPrompt {
        template_kwargs: Some(&wrong),
        ..chat
    };
    let error = renderer(template, MessagePreparation::Vllm)
        .render(&chat)
        .unwrap_err();
    assert_eq!(error.param_name(), Some("chat_template_kwargs"));
}

#[test]
fn requests_with_tools_get_the_template_for_tools() {
    let artifacts = ModelArtifacts::byte_level()
        .with_chat_template(Some("chat".to_owned()))
        .unwrap()
        .with_tool_template(Some("{{ tools | tojson }}".to_owned()))
        .unwrap();
    let renderer = ChatRenderer::load(&artifacts).unwrap();
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let mut chat = ChatPrompt::new(&messages);
    assert_eq!(renderer.render(&chat).unwrap().prompt, "chat");
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    chat.tools = Some(&tools);
    assert_eq!(
        renderer.render(&chat).unwrap().prompt,
        r#"[{"type": "function", "function": {"name": "f"}}]"#
    );
}

#[test]
fn a_template_that_does_not_compile_stops_only_the_engines_of_this_repository() {
    let artifacts = ModelArtifacts::byte_level()
        .with_chat_template(Some("{% if %}".to_owned()))
        .unwrap();
    assert!(ChatRenderer::load(&artifacts).is_err());
    let renderer = ChatRenderer::load(&artifacts.with_preparation(MessagePreparation::Vllm)).unwrap();
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let error = renderer.render(&ChatPrompt::new(&messages)).unwrap_err();
    assert!(error.is_unrenderable(), "{error}");
}
