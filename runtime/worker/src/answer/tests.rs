use serde_json::{Value, json};
use signalbox_protocol::{Endpoint, RequestId, SamplingParams};

use super::*;

fn answer(format: AnswerFormat) -> Answer {
    let request = GenerateRequest {
        id: RequestId::from_client("r1").unwrap(),
        model: "smol \"lm\"".into(),
        deadline_ms: 1_000,
        lora: String::new(),
        cache_salt: String::new(),
        priority: 0,
        overlap_blocks: 0,
        wants_token_ids: false,
        continuation: None,
        constraint: None,
        sampling: SamplingParams::default(),
        format,
    };
    Answer::new(&request, "fp_test", &[11, 12])
}

fn format(chat: bool, stream: bool) -> AnswerFormat {
    AnswerFormat {
        endpoint: if chat {
            Endpoint::Chat
        } else {
            Endpoint::Completions
        },
        stream,
        include_usage: false,
        echo: None,
        return_token_ids: false,
        continuous_usage: false,
        tools: None,
        created: 1_700_000_000,
        part: None,
    }
}

const USAGE: StreamSummary = StreamSummary {
    prompt_tokens: 20,
    cached_tokens: 16,
    completion_tokens: 3,
};

fn usage_json() -> Value {
    json!({
        "prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23,
        "prompt_tokens_details": {"cached_tokens": 16},
    })
}

/// The events of a stream, without `[DONE]`, which is checked here.
fn events(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).unwrap();
    let mut events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert!(text.ends_with("\n\n"));
    assert_eq!(events.pop(), Some("data: [DONE]"));
    events
        .iter()
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect()
}

fn entry(bytes: &[u8], logprob: f32, top: &[(&[u8], f32)]) -> TokenEntry {
    let top = top
        .iter()
        .map(|(bytes, logprob)| (bytes.to_vec(), *logprob))
        .collect();
    TokenEntry {
        bytes: bytes.to_vec(),
        logprob: Some(logprob),
        top,
    }
}

#[test]
fn a_chat_stream_has_openais_shape() {
    let answer = answer(AnswerFormat {
        include_usage: true,
        ..format(true, true)
    });
    let mut choice = answer.choice(2, false);
    let mut out = Vec::new();
    choice.start(&mut out);
    choice.push("Hé\n\"\\\u{1}", &mut vec![], &mut out);
    choice.push("", &mut vec![], &mut out);
    choice.finish(ChoiceEnd::Eos, &mut out);
    answer.write_stream_end(USAGE, &mut out);

    let chunk = |choices: Value, usage: Value| {
        json!({
            "id": "chatcmpl-r1", "object": "chat.completion.chunk", "created": 1_700_000_000,
            "model": "smol \"lm\"", "system_fingerprint": "fp_test", "choices": choices, "usage": usage,
        })
    };
    let delta = |delta: Value, finish_reason: Value| {
        let choice = json!({"index": 2, "delta": delta, "logprobs": null, "finish_reason": finish_reason});
        chunk(json!([choice]), Value::Null)
    };
    let expected = [
        delta(json!({"role": "assistant", "content": ""}), Value::Null),
        delta(json!({"content": "Hé\n\"\\\u{1}"}), Value::Null),
        delta(json!({}), json!("stop")),
        chunk(json!([]), usage_json()),
    ];
    assert_eq!(events(&out), expected);
}

#[test]
fn a_stream_without_usage_has_no_usage_field() {
    let answer = answer(format(true, true));
    let mut out = Vec::new();
    answer.choice(0, false).push("a", &mut vec![], &mut out);
    answer.write_stream_end(USAGE, &mut out);
    let events = events(&out);
    assert_eq!(events.len(), 2, "an event with the role and one with the text");
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}

#[test]
fn a_completion_stream_with_echo_begins_with_the_prompt() {
    let answer = answer(AnswerFormat {
        echo: Some("Prompt: ".into()),
        ..format(false, true)
    });
    let mut choice = answer.choice(0, false);
    let mut out = Vec::new();
    choice.push("one", &mut vec![], &mut out);
    choice.push(" two", &mut vec![], &mut out);
    choice.finish(ChoiceEnd::Engine(FinishReason::Length), &mut out);
    answer.write_stream_end(USAGE, &mut out);
    let events = events(&out);
    let texts: Vec<&str> = events
        .iter()
        .map(|event| event["choices"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(texts, ["Prompt: one", " two", ""]);
    assert_eq!(events[0]["object"], "text_completion");
    assert_eq!(events[0]["id"], "cmpl-r1");
    assert_eq!(events[2]["choices"][0]["finish_reason"], "length");
}

#[test]
fn a_whole_answer_is_one_document_with_every_choice() {
    let answer = answer(format(true, false));
    let mut choices = [answer.choice(0, false), answer.choice(1, false)];
    let mut out = Vec::new();
    for choice in &mut choices {
        choice.push("Hello", &mut vec![], &mut out);
        choice.push(" you", &mut vec![], &mut out);
        choice.finish(ChoiceEnd::Eos, &mut out);
    }
    assert!(
        out.is_empty(),
        "nothing is written before the end: until then the router may retry the request on another worker"
    );
    answer.write_document(choices.iter(), USAGE, &mut out);
    let choice = |index: u32| {
        json!({
            "index": index, "logprobs": null, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Hello you", "refusal": null},
        })
    };
    let expected = json!({
        "id": "chatcmpl-r1", "object": "chat.completion", "created": 1_700_000_000, "model": "smol \"lm\"",
        "system_fingerprint": "fp_test", "choices": [choice(0), choice(1)], "usage": usage_json(),
    });
    assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), expected);
}

#[test]
fn token_ids_are_where_vllm_has_them_and_each_is_written_once() {
    for (chat, stream) in [(true, true), (true, false), (false, true), (false, false)] {
        let answer = answer(AnswerFormat {
            return_token_ids: true,
            ..format(chat, stream)
        });
        let mut choice = answer.choice(0, false);
        let mut out = Vec::new();
        choice.start(&mut out);
        for (token, text) in [(5, "a"), (6, ""), (7, "bc")] {
            choice.count_token(token);
            choice.push(text, &mut vec![], &mut out);
        }
        choice.count_token(2);
        choice.finish(ChoiceEnd::Eos, &mut out);
        let documents = if stream {
            answer.write_stream_end(USAGE, &mut out);
            events(&out)
        } else {
            answer.write_document([&choice].into_iter(), USAGE, &mut out);
            vec![serde_json::from_slice(&out).unwrap()]
        };
        let prompt_ids: Vec<&Value> = documents
            .iter()
            .filter_map(|document| {
                let place = if chat { document } else { &document["choices"][0] };
                place.get("prompt_token_ids")
            })
            .collect();
        assert_eq!(prompt_ids, [&json!([11, 12])], "{chat} {stream}");
        assert!(
            documents[0].to_string().contains("prompt_token_ids"),
            "in the first event"
        );
        let ids: Vec<&Value> = documents
            .iter()
            .filter_map(|document| document["choices"][0]["token_ids"].as_array())
            .flatten()
            .collect();
        assert_eq!(ids, [5, 6, 7, 2], "{chat} {stream}");
    }
}

#[test]
fn continuous_usage_counts_the_tokens_so_far() {
    let answer = answer(AnswerFormat {
        include_usage: true,
        continuous_usage: true,
        tools: None,
        ..format(true, true)
    });
    let mut choice = answer.choice(0, false);
    let mut out = Vec::new();
    choice.start(&mut out);
    for (token, text) in [(5, "a"), (6, ""), (7, "bc")] {
        choice.count_token(token);
        choice.push(text, &mut vec![], &mut out);
    }
    choice.finish(ChoiceEnd::Engine(FinishReason::Length), &mut out);
    answer.write_stream_end(USAGE, &mut out);
    let mut usages: Vec<Value> = events(&out).iter().map(|event| event["usage"].clone()).collect();
    assert_eq!(
        usages.pop(),
        Some(usage_json()),
        "the last event has that of the request"
    );
    let so_far =
        |tokens: u32| json!({"prompt_tokens": 2, "completion_tokens": tokens, "total_tokens": 2 + tokens});
    assert_eq!(usages, [0, 1, 3, 3].map(so_far));
}

#[test]
fn the_end_names_the_stop_text_or_token() {
    for (end, expected) in [
        (ChoiceEnd::Eos, None),
        (ChoiceEnd::Engine(FinishReason::Length), None),
        (ChoiceEnd::StopToken(7), Some(json!(7))),
        (ChoiceEnd::StopText("\"stop\""), Some(json!("\"stop\""))),
    ] {
        for stream in [true, false] {
            let answer = answer(format(true, stream));
            let mut choice = answer.choice(0, false);
            let mut out = Vec::new();
            choice.finish(end, &mut out);
            let last = if stream {
                answer.write_stream_end(USAGE, &mut out);
                events(&out).pop().unwrap()
            } else {
                answer.write_document([&choice].into_iter(), USAGE, &mut out);
                serde_json::from_slice(&out).unwrap()
            };
            assert_eq!(
                last["choices"][0].get("stop_reason"),
                expected.as_ref(),
                "{end:?}"
            );
        }
    }
}

#[test]
fn chat_log_probabilities_carry_bytes_and_alternatives() {
    let answer = answer(format(true, true));
    let mut choice = answer.choice(0, true);
    let mut out = Vec::new();
    let mut entries = vec![
        entry(b"\xc3", -0.5, &[]),
        entry(b"\xa9", f32::NEG_INFINITY, &[(b"a", -0.25), (b"b", -2.0)]),
    ];
    choice.push("é", &mut entries, &mut out);
    assert!(entries.is_empty());
    answer.write_stream_end(USAGE, &mut out);
    let expected = json!({"refusal": null, "content": [
        {"token": "\\xc3", "logprob": -0.5, "bytes": [0xc3], "top_logprobs": []},
        {"token": "\\xa9", "logprob": -9999.0, "bytes": [0xa9], "top_logprobs": [
            {"token": "a", "logprob": -0.25, "bytes": [97]},
            {"token": "b", "logprob": -2.0, "bytes": [98]},
        ]},
    ]});
    let logprobs = &events(&out)[1]["choices"][0]["logprobs"];
    assert_eq!(*logprobs, expected);
}

#[test]
fn completion_log_probabilities_carry_offsets_that_continue_over_pieces() {
    for stream in [true, false] {
        let answer = answer(AnswerFormat {
            echo: Some("né".into()),
            ..format(false, stream)
        });
        let mut choice = answer.choice(0, true);
        let mut out = Vec::new();
        choice.push(
            "éa",
            &mut vec![entry(b"\xc3", -0.5, &[]), entry(b"\xa9a", -1.5, &[(b"x", -0.25)])],
            &mut out,
        );
        choice.push("b", &mut vec![entry(b"b", -0.5, &[(b"b", -0.5)])], &mut out);
        choice.finish(ChoiceEnd::Engine(FinishReason::Length), &mut out);
        let logprobs: Vec<Value> = if stream {
            answer.write_stream_end(USAGE, &mut out);
            events(&out)
                .iter()
                .map(|event| event["choices"][0]["logprobs"].clone())
                .collect()
        } else {
            answer.write_document([&choice].into_iter(), USAGE, &mut out);
            vec![serde_json::from_slice::<Value>(&out).unwrap()["choices"][0]["logprobs"].clone()]
        };
        let joined = |field: &str| -> Vec<Value> {
            logprobs
                .iter()
                .filter_map(|piece| piece[field].as_array())
                .flatten()
                .cloned()
                .collect()
        };
        assert_eq!(
            joined("tokens"),
            ["bytes:\\xc3", "bytes:\\xa9\\x61", "b"].map(Value::from)
        );
        assert_eq!(joined("token_logprobs"), [-0.5, -1.5, -0.5].map(Value::from));
        assert_eq!(joined("text_offset"), [2, 3, 4].map(Value::from));
        let top = [
            json!({"bytes:\\xc3": -0.5}),
            json!({"x": -0.25, "bytes:\\xa9\\x61": -1.5}),
            json!({"b": -0.5}),
        ];
        assert_eq!(joined("top_logprobs"), top);
    }
}
