//! What routing reads of requests to engines that check them: the prompt's tokens, or why they are unknown.

use std::sync::{Arc, OnceLock};

use proptest::prelude::*;
use serde_json::{Value, json};
use signalbox_protocol::name_hash;
use signalbox_router::PromptForm;
use signalbox_tokenize::{ChatPrompt, MessagePreparation, ModelArtifacts, ModelText};

use super::*;
use crate::prepared::Unhashed;

const CONTEXT_LENGTH: u32 = 512;

fn text() -> &'static Arc<ModelText> {
    static TEXT: OnceLock<Arc<ModelText>> = OnceLock::new();
    let artifacts = || ModelArtifacts::byte_level().with_preparation(MessagePreparation::Vllm);
    TEXT.get_or_init(|| Arc::new(ModelText::load(&artifacts()).unwrap()))
}

fn fields(endpoint: Endpoint, body: &Value) -> Fields {
    Fields::parse(body.to_string().as_bytes(), &names(endpoint)).unwrap()
}

fn prepared(endpoint: Endpoint, body: Value) -> Prepared {
    let model = ModelView {
        name: "m".into(),
        adapter: None,
        created: 0,
        form: PromptForm::new("", true),
        context_length: CONTEXT_LENGTH,
        reads_body: true,
        text: text().clone(),
        other_forms: Vec::new(),
    };
    let bytes = body.to_string().len();
    prepare(endpoint, "m".into(), &mut fields(endpoint, &body), &model, bytes)
}

fn chat_tokens(messages: &Value) -> Vec<u32> {
    text().encode_chat(&ChatPrompt::new(messages)).unwrap()
}

#[track_caller]
fn check_unhashed(endpoint: Endpoint, body: Value, reason: Unhashed) -> Prepared {
    let prepared = prepared(endpoint, body.clone());
    assert_eq!(prepared.unhashed, Some(reason), "{body}");
    prepared
}

#[test]
fn a_chat_has_the_tokens_of_its_messages() {
    let messages = json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]);
    let chat = prepared(Endpoint::Chat, json!({"messages": messages}));
    assert_eq!((chat.tokens, chat.unhashed), (chat_tokens(&messages), None));
    assert_eq!((chat.unhashed_tokens, chat.generation.keys.session), (0, 0));
    let silent = json!({"messages": messages, "add_generation_prompt": false});
    let silent = prepared(Endpoint::Chat, silent).tokens;
    assert!(chat_tokens(&messages).starts_with(&silent) && silent.len() < chat_tokens(&messages).len());
    let continued =
        json!({"messages": messages, "add_generation_prompt": false, "continue_final_message": true});
    let expected = ChatPrompt {
        add_generation_prompt: false,
        continue_final_message: true,
        ..ChatPrompt::new(&messages)
    };
    assert_eq!(
        prepared(Endpoint::Chat, continued).tokens,
        text().encode_chat(&expected).unwrap()
    );
}

#[test]
fn every_variable_of_a_template_reaches_it_from_every_route() {
    const TEMPLATE: &str = "{{ messages[0].content }} {{ tools[0].function.name }} {{ reasoning_effort }} {{ mood }} \
                            {{ documents | length if documents else 0 }}";
    let artifacts = ModelArtifacts::byte_level().with_preparation(MessagePreparation::Vllm);
    let artifacts = artifacts.with_chat_template(Some(TEMPLATE.into())).unwrap();
    let text = ModelText::load(&artifacts).unwrap();
    let rendered = |prompt: Prompt| {
        assert_eq!(prompt.unhashed, None);
        text.decode(&prompt.tokens).unwrap()
    };
    let user = json!([{"role": "user", "content": "hi"}]);
    let function = json!({"name": "f", "parameters": {"type": "object"}});
    let mood = json!({"mood": "calm"});
    let chat = json!({
        "messages": user, "tools": [{"type": "function", "function": function}], "reasoning_effort": "low",
        "chat_template_kwargs": mood, "documents": [{"title": "t", "text": "x"}],
    });
    let chat = conversation::chat(&mut fields(Endpoint::Chat, &chat));
    assert_eq!(rendered(chat.into_prompt(&text, u32::MAX)), "hi f low calm 1");
    let responses = json!({
        "input": user, "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
        "reasoning": {"effort": "low"}, "chat_template_kwargs": mood,
    });
    let responses = responses::conversation(&mut fields(Endpoint::Responses, &responses));
    assert_eq!(
        rendered(responses.into_prompt(&text, u32::MAX)),
        "hi f low calm 0"
    );
    let messages = json!({
        "messages": user, "tools": [{"name": "f", "input_schema": {}}], "output_config": {"effort": "low"},
        "chat_template_kwargs": mood,
    });
    let messages = anthropic::conversation(&mut fields(Endpoint::Messages, &messages));
    assert_eq!(rendered(messages.into_prompt(&text, u32::MAX)), "hi f low calm 0");
}

#[test]
fn the_parameters_that_say_how_much_is_generated_are_read() {
    let messages = json!([{"role": "user", "content": "hello"}]);
    let chat = |more: Value| {
        let mut body = json!({"messages": messages});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        prepared(Endpoint::Chat, body)
    };
    let rest = CONTEXT_LENGTH - u32::try_from(chat_tokens(&messages).len()).unwrap();
    for (more, expected) in [
        (json!({}), (rest, 1)),
        (json!({"max_tokens": 7, "n": 3}), (7, 3)),
        (json!({"max_tokens": 7, "max_completion_tokens": 9}), (9, 1)),
        (json!({"max_tokens": 1_000_000}), (rest, 1)),
        (json!({"max_tokens": -1, "n": "two"}), (rest, 1)),
    ] {
        let chat = chat(more.clone());
        assert_eq!((chat.max_tokens, chat.generation.sampling.n), expected, "{more}");
    }
    let generation = chat(json!({
        "stream": 1, "stream_options": {"include_usage": true}, "cache_salt": "tenant", "priority": -3,
    }))
    .generation;
    assert!(generation.stream && generation.include_usage);
    assert_eq!(
        (generation.cache_salt.as_str(), generation.priority),
        ("tenant", 3),
        "a lower priority of a client is more urgent"
    );
    let odd = chat(json!({"stream": "maybe", "stream_options": 7, "cache_salt": 1, "priority": "high"}));
    assert_eq!(
        (
            odd.generation.stream,
            odd.generation.cache_salt.as_str(),
            odd.generation.priority
        ),
        (false, "", 0)
    );
}

#[test]
fn a_completion_is_routed_by_its_first_prompt() {
    let encode = |prompt: &str| text().encode_prompt(prompt).unwrap();
    for (prompt, tokens) in [
        (json!("a text"), encode("a text")),
        (json!(["a text"]), encode("a text")),
        (json!([5, 6, 7]), vec![5, 6, 7]),
        (json!([[5, 6, 7]]), vec![5, 6, 7]),
    ] {
        let completion = prepared(Endpoint::Completions, json!({"prompt": prompt}));
        assert_eq!(
            (completion.tokens, completion.unhashed),
            (tokens, None),
            "{prompt}"
        );
        assert_eq!((completion.max_tokens, completion.generation.sampling.n), (16, 1));
    }
    for (prompt, tokens, later) in [
        (json!(["a text", "12345678", "1234"]), encode("a text"), 3),
        (json!([[5, 6], [7, 8, 9]]), vec![5, 6], 3),
    ] {
        let body = json!({"prompt": prompt, "n": 2});
        let several = check_unhashed(Endpoint::Completions, body, Unhashed::LaterPrompts);
        assert_eq!((several.tokens, several.unhashed_tokens), (tokens, later));
        let prompts = u32::try_from(prompt.as_array().unwrap().len()).unwrap();
        assert_eq!(several.generation.sampling.n, 2 * prompts);
    }
}

#[test]
fn a_prompt_with_unknown_tokens_is_routed_with_the_reason() {
    let messages = json!([{"role": "user", "content": "hello"}]);
    let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}});
    let long: Vec<u32> = (0..=CONTEXT_LENGTH).map(|token| token % 300).collect();
    for (endpoint, body, reason) in [
        (Endpoint::Chat, json!({}), Unhashed::Unreadable),
        (Endpoint::Chat, json!({"messages": "hi"}), Unhashed::Unreadable),
        (Endpoint::Chat, json!({"messages": [7]}), Unhashed::Refused),
        (
            Endpoint::Chat,
            json!({"messages": [{"role": "user", "content": [image]}]}),
            Unhashed::Unrenderable,
        ),
        (
            Endpoint::Chat,
            json!({"messages": messages, "chat_template": "{{ messages }}"}),
            Unhashed::ClientTemplate,
        ),
        (
            Endpoint::Chat,
            json!({"messages": messages, "chat_template_kwargs": [1]}),
            Unhashed::Refused,
        ),
        (
            Endpoint::Chat,
            json!({"messages": messages, "truncate_prompt_tokens": 2}),
            Unhashed::Truncated,
        ),
        (Endpoint::Completions, json!({}), Unhashed::Unreadable),
        (Endpoint::Completions, json!({"prompt": []}), Unhashed::Unreadable),
        (
            Endpoint::Completions,
            json!({"prompt": [1, -2]}),
            Unhashed::Unreadable,
        ),
        (
            Endpoint::Completions,
            json!({"prompt": "a", "prompt_embeds": "AAAA"}),
            Unhashed::PromptEmbeds,
        ),
        (Endpoint::Completions, json!({"prompt": long}), Unhashed::TooLong),
        (
            Endpoint::Completions,
            json!({"prompt": long, "truncate_prompt_tokens": -1}),
            Unhashed::Truncated,
        ),
        (
            Endpoint::Responses,
            json!({"input": "hi", "previous_response_id": "resp_1"}),
            Unhashed::StoredTurns,
        ),
        (Endpoint::Responses, json!({"input": 7}), Unhashed::Unreadable),
        (
            Endpoint::Messages,
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}),
            Unhashed::InlineSystem,
        ),
    ] {
        let prepared = check_unhashed(endpoint, body, reason);
        assert_eq!(prepared.tokens, Vec::<u32>::new());
    }
    let short = json!({"messages": messages, "truncate_prompt_tokens": -1});
    assert_eq!(prepared(Endpoint::Chat, short).unhashed, None);
}

#[test]
fn a_parameter_too_large_to_keep_is_a_reason_and_no_error() {
    let zeros = format!("[{}0]", "0,".repeat(1 << 16));
    let body = format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],"tools":{zeros}}}"#);
    let mut fields = Fields::parse(body.as_bytes(), &names(Endpoint::Chat)).unwrap();
    let prompt = conversation::chat(&mut fields).into_prompt(text(), u32::MAX);
    assert_eq!(prompt.unhashed, Some(Unhashed::TooLarge));
    assert_ne!(prompt.opening, 0);
}

#[test]
fn a_request_without_a_prompt_counts_as_load_only() {
    let input = "word ".repeat(100);
    for endpoint in [Endpoint::Embeddings, Endpoint::Rerank, Endpoint::Score] {
        let prepared = prepared(endpoint, json!({"input": input, "stream": true}));
        assert_eq!((prepared.unhashed, prepared.tokens.len()), (None, 0));
        assert!((125..150).contains(&prepared.unhashed_tokens), "{prepared:?}");
        assert_eq!(prepared.max_tokens, 0);
        assert!(!prepared.generation.stream, "no token is generated");
    }
    let prepared = prepared(Endpoint::Tokenize, json!({"prompt": input}));
    assert_eq!((prepared.unhashed, prepared.unhashed_tokens), (None, 0));
}

#[test]
fn an_unhashed_conversation_keeps_its_session_over_its_turns() {
    let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}});
    let user = |text: &str| json!({"role": "user", "content": [{"type": "text", "text": text}, image]});
    let session = |body: Value| prepared(Endpoint::Chat, body).generation.keys.session;
    let system = json!({"role": "system", "content": "be brief"});
    let first = session(json!({"messages": [system, user("what is this?")]}));
    let answer = json!({"role": "assistant", "content": "a cat"});
    let second = session(json!({"messages": [system, user("what is this?"), answer, user("and this?")]}));
    assert_ne!(first, 0);
    assert_eq!(first, second);
    assert_ne!(
        first,
        session(json!({"messages": [system, user("who is this?")]}))
    );
    let named = json!({"messages": [user("what is this?")], "user": "u", "prompt_cache_key": "k"});
    assert_eq!(session(named), name_hash("k"));
    let hashed = json!({"messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(session(hashed), 0);
    let metadata = json!({"messages": [], "metadata": {"user_id": "u"}});
    let session = prepared(Endpoint::Messages, metadata).generation.keys.session;
    assert_eq!(session, name_hash("u"));
}

#[test]
fn the_same_conversation_has_the_same_tokens_on_every_route() {
    let chat = json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]);
    let tokens = chat_tokens(&chat);
    let user = json!([{"role": "user", "content": "hello"}]);
    for (endpoint, body) in [
        (Endpoint::Chat, json!({"messages": chat})),
        (
            Endpoint::Responses,
            json!({"instructions": "be brief", "input": user}),
        ),
        (
            Endpoint::Messages,
            json!({"system": "be brief", "messages": user}),
        ),
    ] {
        assert_eq!(prepared(endpoint, body).tokens, tokens, "{endpoint:?}");
    }
}

proptest! {
    /// Whatever the client sends, the request is routed.
    #[test]
    fn no_value_of_any_parameter_is_an_error(
        values in proptest::collection::vec((any::<prop::sample::Index>(), any_json()), 1..6),
        endpoint in prop::sample::select(Endpoint::ALL.to_vec()),
    ) {
        let names: Vec<_> = names(endpoint).concat();
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "input": "hi", "prompt": "hi"});
        for (name, value) in values {
            body[*name.get(&names)] = value;
        }
        let prepared = prepared(endpoint, body);
        prop_assert!(prepared.tokens.len() <= CONTEXT_LENGTH as usize);
        prop_assert!(prepared.generation.sampling.n >= 1);
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        "user|assistant|system|text|tool_use|tool_result|function_call|reasoning|message"
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(
                "role|content|type|text|input|name|call_id|tool_calls|[a-z]{0,4}",
                inner,
                0..5
            )
            .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}
