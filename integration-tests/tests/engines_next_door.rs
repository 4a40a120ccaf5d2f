//! `runtime up --upstream` in front of fake engines: prompts return to the engine that holds them, requests and answers
//! pass unchanged, and the index follows the engines' KV caches.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context;
use serde_json::{Value, json};
use signalbox_integration_tests::{
    Api, NextDoor, Reply, eventually, fake_engine::EngineOptions, workload::Workload,
};
use tokio::task::JoinSet;

const CHAT: &str = "/v1/chat/completions";

/// A small vLLM whose prefill takes time, so that routing matters.
fn engine() -> EngineOptions {
    EngineOptions {
        prefill_per_token: Duration::from_micros(100),
        per_token: Duration::from_millis(1),
        ..EngineOptions::default()
    }
}

fn cached(reply: &Reply) -> anyhow::Result<u64> {
    let usage = reply.json()?["usage"].clone();
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
    cached.with_context(|| format!("no cached tokens in {usage}"))
}

#[tokio::test]
async fn a_long_prompt_returns_to_the_engine_that_holds_it() -> anyhow::Result<()> {
    let door = NextDoor::start(&[engine(), engine()]).await?;
    for number in 0..2 {
        door.reaches(number, "exact").await?;
    }
    let mut workload = Workload::new(1);
    for _ in 0..5 {
        let body = door.chat(&workload.text(300));
        let first = door.cluster.api.post(CHAT, &body).await?;
        assert_eq!(first.status, 200, "{}", first.text());
        let prompt = first.json()?["usage"]["prompt_tokens"].as_u64().unwrap();
        door.indexed().await?;
        let again = door.cluster.api.post(CHAT, &body).await?;
        assert_eq!(
            again.header("x-signalbox-worker"),
            first.header("x-signalbox-worker")
        );
        assert_eq!(again.header("x-signalbox-kv"), "exact");
        let whole = prompt / 16 * 16;
        assert!(
            cached(&again)? * 10 >= whole * 8,
            "{} of {whole}",
            cached(&again)?
        );
        let overlap: u64 = again.header("x-signalbox-overlap-blocks").parse()?;
        assert!(overlap.abs_diff(cached(&again)? / 16) <= 1, "{overlap}");
        assert_eq!(
            again.json()?["choices"][0]["message"],
            first.json()?["choices"][0]["message"]
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn different_prompts_are_spread_and_the_index_equals_the_engines_caches() -> anyhow::Result<()> {
    let door = NextDoor::start(&[engine(), engine()]).await?;
    let mut workload = Workload::new(2);
    let mut requests = JoinSet::new();
    for number in 0..60_u32 {
        let mut body = door.chat(&workload.text(if number < 5 { 300 } else { 20 + number as usize }));
        body["stream"] = json!(number % 3 == 0);
        if number % 7 == 0 {
            body["cache_salt"] = json!("tenant");
        }
        let api = door.cluster.api.clone();
        requests.spawn(async move { anyhow::Ok((number, api.post(CHAT, &body).await?)) });
    }
    let mut workers = BTreeSet::new();
    while let Some(answered) = requests.join_next().await {
        let (number, reply) = answered??;
        assert_eq!(reply.status, 200, "{}", reply.text());
        if number < 5 {
            workers.insert(reply.header("x-signalbox-worker").to_owned());
        }
    }
    assert_eq!(workers.len(), 2, "five long prompts at once");
    assert!(door.engines.iter().all(|engine| engine.held_blocks() > 20));
    door.indexed().await?;
    door.cluster.idle().await
}

#[tokio::test]
async fn a_body_reaches_the_engine_with_everything_the_client_sent() -> anyhow::Result<()> {
    let door = NextDoor::start(&[engine()]).await?;
    let mut body = door.chat("Hello");
    body["made_up"] = json!({"a": [1, 2.50, "ü"], "b": null});
    body["user"] = json!("someone");
    body["priority"] = json!(3);
    let reply = door.cluster.api.post(CHAT, &body).await?;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let seen = door.engines[0].seen();
    let sent = seen
        .iter()
        .rfind(|request| request.path == CHAT)
        .context("no chat arrived")?;
    let arrived: Value = serde_json::from_slice(&sent.body)?;
    for (name, value) in body.as_object().into_iter().flatten() {
        assert_eq!(&arrived[name], value, "{name}");
    }
    let start = body.to_string();
    let text = String::from_utf8_lossy(&sent.body);
    assert!(
        text.contains(start.trim_start_matches('{').trim_end_matches('}')),
        "the client's members as it wrote them: {text}"
    );
    assert!(sent.headers.iter().any(|(name, _)| name == "x-request-id"));
    Ok(())
}

/// Documents and events without what differs between two requests: ids and times, and tokens from the cache.
///
/// vLLM has its fingerprint in the event with the token counts, or without those in the last event of each answer.
/// Adapters ask for the counts, and give the fingerprint back in the last event of all: of `several` answers the others
/// lack it.
fn comparable(text: &str, several: bool) -> String {
    let clean = |text: &str| {
        let Ok(mut value) = serde_json::from_str::<Value>(text) else {
            return text.to_owned();
        };
        forget(&mut value);
        if let Some(document) = value.as_object_mut().filter(|_| several) {
            document.shift_remove("system_fingerprint");
        }
        value.to_string()
    };
    text.lines()
        .map(|line| match line.strip_prefix("data: ") {
            Some(data) => format!("data: {}", clean(data)),
            None => clean(line),
        })
        .collect::<Vec<_>>()
        .join("\n")
}

fn forget(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let is_volatile = ["id", "created", "created_at", "item_id"].contains(&name.as_str())
                    || name.starts_with("cached_")
                    || name.starts_with("created_cache")
                    || name.starts_with("cache_");
                if is_volatile && !value.is_array() {
                    *value = Value::Null;
                } else {
                    forget(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(forget),
        _ => {}
    }
}

#[tokio::test]
async fn answers_are_those_of_the_engine_asked_directly() -> anyhow::Result<()> {
    let door = NextDoor::start(&[engine()]).await?;
    let direct = Api::new(&door.engines[0].url())?;
    let tool = json!({"type": "function", "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }});
    let chat = door.chat("What is the weather in Paris?");
    let with = |members: Value| {
        let mut body = chat.clone();
        body["max_tokens"] = json!(100);
        for (name, value) in members.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        body
    };
    let model = &door.cluster.model;
    let requests = [
        (CHAT, with(json!({}))),
        (CHAT, with(json!({"tools": [tool], "tool_choice": "required"}))),
        (CHAT, with(json!({"tools": [tool]}))),
        (
            CHAT,
            with(json!({"response_format": {"type": "json_schema", "json_schema": {
                "name": "x", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}},
            }}})),
        ),
        (
            CHAT,
            with(json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 5})),
        ),
        (CHAT, with(json!({"n": 3, "temperature": 1, "max_tokens": 5}))),
        (CHAT, with(json!({"stop": ["e"], "return_token_ids": true}))),
        (
            "/v1/completions",
            json!({"model": model, "prompt": "The 8:15 to", "max_tokens": 6, "logprobs": 1}),
        ),
        (
            "/v1/completions",
            json!({"model": model, "prompt": ["a b c", "d e f"], "max_tokens": 6}),
        ),
        (
            "/v1/completions",
            json!({"model": model, "prompt": [100, 101, 102], "max_tokens": 6, "return_token_ids": true}),
        ),
        (
            "/v1/completions",
            json!({"model": model, "prompt": [[100, 101], [102]], "max_tokens": 6}),
        ),
        (
            "/v1/responses",
            json!({"model": model, "input": "Hello", "instructions": "Be brief.", "max_output_tokens": 6}),
        ),
        (
            "/v1/messages",
            json!({"model": model, "max_tokens": 6, "messages": [{"role": "user", "content": "Hello"}]}),
        ),
        (
            "/v1/embeddings",
            json!({"model": model, "input": ["Hello", "world"]}),
        ),
        (
            "/v1/rerank",
            json!({"model": model, "query": "a train", "documents": ["a bridge", "a tunnel"]}),
        ),
        (
            "/v1/score",
            json!({"model": model, "text_1": "a train", "text_2": ["a bridge", "a tunnel"]}),
        ),
        (
            "/tokenize",
            json!({"model": model, "prompt": "Hello world", "return_token_strs": true}),
        ),
        ("/detokenize", json!({"model": model, "tokens": [100, 101]})),
        // What the engine refuses, in its own words.
        (CHAT, with(json!({"temperature": -1}))),
        (CHAT, with(json!({"max_tokens": 1_000_000}))),
        (CHAT, with(json!({"messages": []}))),
        (CHAT, with(json!({"cache_salt": ""}))),
    ];
    for (path, body) in requests {
        let generates = ["max_tokens", "max_output_tokens"]
            .iter()
            .any(|name| body.get(*name).is_some());
        for options in [
            json!({}),
            json!({"stream": true}),
            json!({"stream": true, "stream_options": {"include_usage": true}}),
        ] {
            if !generates && options["stream"] == true {
                continue;
            }
            let mut body = body.clone();
            for (name, value) in options.as_object().into_iter().flatten() {
                body[name] = value.clone();
            }
            let expected = direct.post(path, &body).await?;
            let reply = door.cluster.api.post(path, &body).await?;
            assert_eq!(reply.status, expected.status, "{path} {body}: {}", reply.text());
            let several = body["n"].as_u64() > Some(1) || body["prompt"].is_array();
            assert_eq!(
                comparable(&reply.text(), several),
                comparable(&expected.text(), several),
                "{path} {body}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_at_the_engine() -> anyhow::Result<()> {
    let door = NextDoor::start(&[EngineOptions {
        prefill_per_token: Duration::from_millis(20),
        ..engine()
    }])
    .await?;
    let mut body = door.chat(&Workload::new(3).text(400));
    for streams in [true, false] {
        body["stream"] = json!(streams);
        let request = tokio::spawn({
            let (api, body) = (door.cluster.api.clone(), body.clone());
            async move { api.post(CHAT, &body).await }
        });
        let engine = &door.engines[0];
        eventually("it runs", || async { Ok((engine.requests() == 1).then_some(())) }).await?;
        request.abort();
        eventually("it ends", || async { Ok((engine.requests() == 0).then_some(())) }).await?;
    }
    door.cluster.idle().await
}

#[tokio::test]
async fn sglang_gets_the_routers_tokens_of_a_chat() -> anyhow::Result<()> {
    let door = NextDoor::start(&[EngineOptions {
        prefill_per_token: Duration::from_micros(100),
        ..EngineOptions::sglang()
    }])
    .await?;
    door.reaches(0, "exact").await?;
    let body = door.chat(&Workload::new(5).text(200));
    let first = door.cluster.api.post(CHAT, &body).await?;
    assert_eq!(first.status, 200, "{}", first.text());
    door.indexed().await?;
    let again = door.cluster.api.post(CHAT, &body).await?;
    assert!(cached(&again)? >= 160);
    assert_eq!(again.header("x-signalbox-kv"), "exact");
    let seen = door.engines[0].seen();
    assert!(
        seen.iter().all(|request| request.path != "/health"),
        "/health runs a generation"
    );
    let chat = seen
        .iter()
        .rfind(|request| request.path == CHAT)
        .context("no chat arrived")?;
    let ids = serde_json::from_slice::<Value>(&chat.body)?["input_ids"].clone();
    assert_eq!(
        ids.as_array().map(|ids| ids.len() as u64),
        again.json()?["usage"]["prompt_tokens"].as_u64()
    );
    Ok(())
}
