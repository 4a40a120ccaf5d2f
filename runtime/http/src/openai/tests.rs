//! The parameters taken from a request body, their defaults, and the refusal of each wrong value.

use proptest::prelude::*;
use serde_json::{Value, json};
use signalbox_protocol::{ErrorKind, SamplingParams, WireError};

use super::{CHAT_NAMES, COMPLETION_NAMES, ChatRequest, CompletionRequest, Fields, Prompt, take_model};

fn parse_chat(body: &[u8]) -> Result<ChatRequest, WireError> {
    let mut fields = Fields::parse(body, &CHAT_NAMES)?;
    ChatRequest::take(take_model(&mut fields)?, &mut fields)
}

fn parse_completion(body: &[u8]) -> Result<CompletionRequest, WireError> {
    let mut fields = Fields::parse(body, &COMPLETION_NAMES)?;
    CompletionRequest::take(take_model(&mut fields)?, &mut fields)
}

fn chat(more: Value) -> Result<ChatRequest, WireError> {
    parse_chat(
        with(
            json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
            more,
        )
        .as_bytes(),
    )
}

fn completion(more: Value) -> Result<CompletionRequest, WireError> {
    parse_completion(with(json!({"model": "m", "prompt": "hi"}), more).as_bytes())
}

/// `body` with the members of `more` added or replaced.
fn with(mut body: Value, more: Value) -> String {
    let Value::Object(more) = more else {
        panic!("an object")
    };
    body.as_object_mut().unwrap().extend(more);
    body.to_string()
}

#[track_caller]
fn check_refused(result: Result<impl std::fmt::Debug, WireError>, param: &str, part: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidRequest);
    assert_eq!(error.param.as_deref(), Some(param), "{error}");
    assert!(error.message.contains(part), "{error} should contain {part:?}");
}

#[test]
fn a_bare_request_gets_openais_defaults() {
    let request = chat(json!({})).unwrap();
    assert_eq!(request.generation.sampling, SamplingParams::default());
    assert_eq!(request.generation.max_tokens, None);
    assert_eq!(
        (request.generation.stream, request.generation.keys.session),
        (false, 0)
    );
    let request = completion(json!({})).unwrap();
    assert_eq!(
        (request.prompts, request.echo),
        (vec![Prompt::Text("hi".into())], false)
    );
}

#[test]
fn every_parameter_of_generation_is_taken() {
    let generation = chat(json!({
        "temperature": 0, "top_p": 0.5, "top_k": -1, "seed": -1, "stop": ["a", "b"], "n": 2,
        "presence_penalty": -2, "frequency_penalty": 2, "logit_bias": {"5": -100, "7": 1.5}, "logprobs": true,
        "top_logprobs": 3, "ignore_eos": true, "max_tokens": 7, "max_completion_tokens": 9, "stream": true,
        "stream_options": {"include_usage": true}, "user": "u", "cache_salt": "tenant", "priority": -3,
        "min_tokens": 4, "stop_token_ids": [5, 6.0], "bad_words": ["no"], "min_p": 0.25, "repetition_penalty": 1.5,
        "return_token_ids": true, "x_unknown": {"kept": "in the body"}, "store": false,
    }))
    .unwrap()
    .generation;
    let sampling = generation.sampling;
    assert_eq!(
        (sampling.temperature, sampling.top_p, sampling.top_k),
        (0.0, 0.5, 0)
    );
    assert_eq!(
        (sampling.seed, sampling.n, sampling.logprobs),
        (Some(u64::MAX), 2, Some(3))
    );
    assert_eq!(sampling.stop, ["a", "b"]);
    assert_eq!(
        (sampling.presence_penalty, sampling.frequency_penalty),
        (-2.0, 2.0)
    );
    assert_eq!(
        sampling.logit_bias.into_iter().collect::<Vec<_>>(),
        [(5, -100.0), (7, 1.5)]
    );
    assert_eq!((sampling.min_tokens, sampling.stop_token_ids), (4, vec![5, 6]));
    assert_eq!((sampling.min_p, sampling.repetition_penalty), (0.25, 1.5));
    assert_eq!(sampling.bad_words, ["no"]);
    assert!(sampling.ignore_eos && generation.stream && generation.include_usage);
    assert!(generation.return_token_ids && !generation.continuous_usage);
    assert_eq!(generation.max_tokens, Some(9), "the newer name of the limit wins");
    assert_eq!(
        (generation.cache_salt.as_str(), generation.priority),
        ("tenant", 3),
        "a lower priority of a client is more urgent"
    );
    assert_ne!(generation.keys.session, 0);
}

#[test]
fn continuous_usage_is_for_streams_with_usage() {
    for (options, expected) in [
        (json!({"continuous_usage_stats": true}), (false, false)),
        (
            json!({"include_usage": true, "continuous_usage_stats": true}),
            (true, true),
        ),
        (
            json!({"include_usage": true, "continuous_usage_stats": null}),
            (true, false),
        ),
    ] {
        let generation = chat(json!({"stream": true, "stream_options": options}))
            .unwrap()
            .generation;
        assert_eq!((generation.include_usage, generation.continuous_usage), expected);
    }
}

#[test]
fn null_counts_as_absent_for_every_parameter() {
    let nulls: serde_json::Map<_, _> = super::sampling::NAMES
        .iter()
        .chain(&super::refused::NAMES)
        .chain(&[
            "max_completion_tokens",
            "top_logprobs",
            "echo",
            "suffix",
            "best_of",
        ])
        .filter(|name| **name != "model")
        .map(|name| ((*name).to_owned(), Value::Null))
        .collect();
    assert_eq!(
        chat(Value::Object(nulls.clone())).unwrap().generation,
        chat(json!({})).unwrap().generation
    );
    assert_eq!(
        completion(Value::Object(nulls)).unwrap(),
        completion(json!({})).unwrap()
    );
}

#[test]
fn wrong_values_of_shared_parameters_are_refused_by_name() {
    let long = "x".repeat(1_025);
    let many: Value = (0..1_025)
        .map(|id| (id.to_string(), json!(1)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    for (more, param, part) in [
        (
            json!({"min_tokens": -1}),
            "min_tokens",
            "an integer of at least 0",
        ),
        (json!({"stop_token_ids": 5}), "stop_token_ids", "an array"),
        (
            json!({"stop_token_ids": [5, "6"]}),
            "stop_token_ids[1]",
            "a token id",
        ),
        (
            json!({"stop_token_ids": vec![1; 257]}),
            "stop_token_ids",
            "at most 256",
        ),
        (json!({"bad_words": [" "]}), "bad_words[0]", "not of spaces alone"),
        (json!({"min_p": 1.5}), "min_p", "from 0 to 1"),
        (
            json!({"repetition_penalty": 0}),
            "repetition_penalty",
            "greater than 0",
        ),
        (
            json!({"return_token_ids": 1}),
            "return_token_ids",
            "true or false",
        ),
        (
            json!({"stream": true, "stream_options": {"continuous_usage_stats": 1}}),
            "stream_options.continuous_usage_stats",
            "true or false",
        ),
        (json!({"model": null}), "model", "missing"),
        (json!({"model": 3}), "model", "a string"),
        (json!({"model": ""}), "model", "0 bytes"),
        (
            json!({"max_tokens": -1}),
            "max_tokens",
            "max_tokens is -1; give an integer of at least 1",
        ),
        (json!({"max_tokens": 0}), "max_tokens", "at least 1"),
        (json!({"max_tokens": 1u64 << 32}), "max_tokens", "integer"),
        (json!({"max_tokens": "9"}), "max_tokens", "is \"9\""),
        (json!({"temperature": 2.1}), "temperature", "from 0 to 2"),
        (json!({"temperature": -0.1}), "temperature", "from 0 to 2"),
        (json!({"top_p": 0}), "top_p", "greater than 0"),
        (json!({"top_p": 1.01}), "top_p", "at most 1"),
        (json!({"top_k": -2}), "top_k", "at least -1"),
        (json!({"seed": 1.5}), "seed", "integer of 64 bits"),
        (json!({"n": 0}), "n", "from 1 to 128"),
        (json!({"n": 129}), "n", "from 1 to 128"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop", "at most 4"),
        (json!({"stop": ["a", ""]}), "stop[1]", "an empty string"),
        (json!({"stop": ""}), "stop", "an empty string"),
        (json!({"stop": long}), "stop", "1024 bytes"),
        (json!({"stop": 1}), "stop", "array of strings"),
        (json!({"presence_penalty": 3}), "presence_penalty", "-2 to 2"),
        (json!({"frequency_penalty": -3}), "frequency_penalty", "-2 to 2"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias", "token ids"),
        (json!({"logit_bias": {"-1": 1}}), "logit_bias", "token ids"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias.1", "-100 to 100"),
        (json!({"logit_bias": many}), "logit_bias", "at most 1024"),
        (json!({"stream": 1}), "stream", "true or false"),
        (
            json!({"stream_options": {}}),
            "stream_options",
            "only for streams",
        ),
        (
            json!({"stream": true, "stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
            "is 1",
        ),
        (json!({"ignore_eos": "yes"}), "ignore_eos", "true or false"),
        (json!({"user": 1}), "user", "a string"),
        (json!({"cache_salt": ""}), "cache_salt", "0 bytes"),
        (json!({"priority": 1u64 << 40}), "priority", "integer"),
        (json!({"guided_json": {}}), "guided_json", "leave it out"),
    ] {
        check_refused(chat(more.clone()), param, part);
        check_refused(completion(more), param, part);
    }
}

#[test]
fn wrong_values_of_chats_are_refused_by_name() {
    let part = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    for (more, param, message) in [
        (json!({"messages": null}), "messages", "missing"),
        (json!({"messages": "hi"}), "messages", "is \"hi\""),
        (json!({"messages": []}), "messages", "1 to 4096"),
        (
            json!({"messages": vec![json!({"role": "user", "content": ""}); 4_097]}),
            "messages",
            "4097",
        ),
        (json!({"messages": ["hi"]}), "messages[0]", "an object"),
        (
            json!({"messages": [{"content": "hi"}]}),
            "messages[0].role",
            "null",
        ),
        (
            json!({"messages": [{"role": "robot", "content": "hi"}]}),
            "messages[0].role",
            "is \"robot\"; give system, developer, user, assistant or tool",
        ),
        (
            json!({"chat_template_kwargs": ["enable_thinking"]}),
            "chat_template_kwargs",
            "an object",
        ),
        (
            json!({"continue_final_message": "yes"}),
            "continue_final_message",
            "is \"yes\"; give true or false",
        ),
        (
            json!({"messages": [{"role": "user"}]}),
            "messages[0].content",
            "null",
        ),
        (
            json!({"messages": [{"role": "user", "content": 1}]}),
            "messages[0].content",
            "is 1",
        ),
        (part(json!("hi")), "messages[0].content[0].type", "text"),
        (
            part(json!({"type": "text"})),
            "messages[0].content[0].text",
            "a string",
        ),
        (
            part(json!({"type": "image_url", "image_url": {}})),
            "messages[0].content[0].type",
            "image_url",
        ),
        (json!({"logprobs": 2}), "logprobs", "true or false"),
        (json!({"top_logprobs": 2}), "top_logprobs", "set logprobs"),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
            "from 0 to 20",
        ),
        (
            json!({"max_completion_tokens": 0}),
            "max_completion_tokens",
            "at least 1",
        ),
        (json!({"echo": true}), "echo", "leave it out"),
    ] {
        check_refused(chat(more), param, message);
    }
}

#[test]
fn an_assistants_message_needs_no_content() {
    let turn = json!({"role": "assistant", "content": null});
    let request =
        chat(json!({"messages": [turn, {"role": "user", "content": [{"type": "text", "text": "x"}]}]}));
    assert_eq!(request.unwrap().messages[0]["content"], "");
}

#[test]
fn a_refusal_in_the_history_is_what_the_assistant_said() {
    let user = json!({"role": "user", "content": "x"});
    let parts = json!([{"type": "refusal", "refusal": "No."}, {"type": "text", "text": "Sorry."}]);
    let request = chat(json!({"messages": [
        user, {"role": "assistant", "content": null, "refusal": "I will not."}, user,
        {"role": "assistant", "content": parts}, user,
    ]}))
    .unwrap();
    assert_eq!(request.messages[1]["content"], "I will not.");
    assert_eq!(
        request.messages[3]["content"][0],
        json!({"type": "text", "text": "No."})
    );
    let by_user = json!({"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "No."}]}]});
    check_refused(chat(by_user), "messages[0].content[0].type", "refusal");
}

#[test]
fn a_chat_is_rendered_as_the_client_asks() {
    let request = chat(json!({
        "chat_template_kwargs": {"enable_thinking": false}, "add_generation_prompt": false,
        "continue_final_message": true, "add_special_tokens": true,
    }))
    .unwrap();
    let prompt = request.rendering.prompt(&request.messages);
    assert_eq!(prompt.template_kwargs, Some(&json!({"enable_thinking": false})));
    assert!(!prompt.add_generation_prompt && prompt.continue_final_message && prompt.add_special_tokens);
    let request = chat(json!({})).unwrap();
    let prompt = request.rendering.prompt(&request.messages);
    assert!(prompt.add_generation_prompt && !prompt.continue_final_message && !prompt.add_special_tokens);
    assert!(completion(json!({})).unwrap().add_special_tokens);
    assert!(
        !completion(json!({"add_special_tokens": false}))
            .unwrap()
            .add_special_tokens
    );
}

#[test]
fn prompts_are_texts_or_arrays_of_token_ids() {
    let text = |text: &str| Prompt::Text(text.into());
    for (prompt, right) in [
        (json!("a"), vec![text("a")]),
        (json!(["a"]), vec![text("a")]),
        (json!(["a", "b"]), vec![text("a"), text("b")]),
        (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
        (json!([[1, 2]]), vec![Prompt::Tokens(vec![1, 2])]),
        (
            json!([[1], [2, 3]]),
            vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])],
        ),
    ] {
        assert_eq!(completion(json!({"prompt": prompt})).unwrap().prompts, right);
    }
    let many = |count: usize, n: u32| completion(json!({"prompt": vec!["a"; count], "n": n}));
    assert_eq!(many(2_048, 1).unwrap().prompts.len(), 2_048);
    assert_eq!(many(16, 128).unwrap().generation.sampling.n, 128);
    check_refused(many(2_049, 1), "prompt", "2049 prompts; give at most 2048");
    check_refused(many(17, 128), "n", "2176 choices; ask for at most 2048");
    for (more, param, message) in [
        (json!({"prompt": null}), "prompt", "missing"),
        (json!({"prompt": []}), "prompt", "an empty array"),
        (json!({"prompt": [[]]}), "prompt[0]", "an empty array"),
        (json!({"prompt": ["a", 1]}), "prompt[1]", "is 1; give a string"),
        (
            json!({"prompt": ["a", [1]]}),
            "prompt[1]",
            "an array; give a string",
        ),
        (
            json!({"prompt": [[1], "a"]}),
            "prompt[1]",
            "token ids, as the first",
        ),
        (json!({"prompt": [[1], []]}), "prompt[1]", "an empty array"),
        (json!({"prompt": [[1], [-2]]}), "prompt[1][0]", "is -2"),
        (json!({"prompt": [1, -2]}), "prompt[1]", "is -2"),
        (json!({"prompt": [1, "a"]}), "prompt[1]", "is \"a\""),
        (json!({"prompt": [[1, 1u64 << 32]]}), "prompt[0][1]", "4294967296"),
        (json!({"prompt": {}}), "prompt", "an object"),
        (json!({"logprobs": 21}), "logprobs", "from 0 to 20"),
        (json!({"logprobs": true}), "logprobs", "is true"),
        (
            json!({"echo": true, "max_tokens": -1}),
            "max_tokens",
            "at least 0",
        ),
        (json!({"suffix": "x"}), "suffix", "leave it out"),
        (json!({"best_of": 2}), "best_of", "n is 1"),
    ] {
        check_refused(completion(more), param, message);
    }
    assert!(completion(json!({"best_of": 2, "n": 2})).is_ok());
}

#[test]
fn a_prompt_that_is_repeated_may_be_all_that_is_asked_for() {
    let scored = completion(json!({"echo": true, "logprobs": 1, "max_tokens": 0})).unwrap();
    assert_eq!(scored.generation.max_tokens, Some(0));
    assert!(scored.echo && scored.generation.sampling.prompt_logprobs);
    let echoed = completion(json!({"echo": true})).unwrap();
    assert!(!echoed.generation.sampling.prompt_logprobs);
    let plain = completion(json!({"logprobs": 20})).unwrap();
    assert!(!plain.generation.sampling.prompt_logprobs);
}

proptest! {
    /// Parsing any bytes returns a request or an error.
    #[test]
    fn no_body_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_chat(&bytes);
        let _ = parse_completion(&bytes);
    }

    #[test]
    fn no_value_of_any_parameter_panics(value in any_json(), place in 0usize..40) {
        let names: Vec<_> = super::sampling::NAMES.iter()
            .chain(&["messages", "prompt", "echo", "suffix", "best_of", "top_logprobs", "max_completion_tokens"])
            .chain(&super::refused::NAMES)
            .collect();
        let name = names[place % names.len()];
        let more = json!({ *name: value });
        for error in [chat(more.clone()).err(), completion(more).err()].into_iter().flatten() {
            prop_assert!(error.param.is_some_and(|param| param.starts_with(*name)), "{}", error.message);
        }
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-z0-9]{0,4}|role|content|type|text|[0-9]{1,3}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}
