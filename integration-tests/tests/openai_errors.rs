//! Errors of OpenAI's API: the status, and an error in OpenAI's shape that names what is wrong.

use futures_util::{StreamExt, stream::FuturesUnordered};
use reqwest::Method;
use serde_json::{Value, json};
use signalbox_integration_tests::{Cluster, Reply, workload::Workload};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

async fn cluster() -> anyhow::Result<Cluster> {
    Cluster::sim(&["--workers=1", "--speedup=0"]).await
}

/// Checks the status and type of an error; returns the error.
fn error(reply: &Reply, status: u16) -> anyhow::Result<Value> {
    anyhow::ensure!(
        reply.status == status,
        "{} instead of {status}: {}",
        reply.status,
        reply.text()
    );
    anyhow::ensure!(reply.header("content-type") == "application/json");
    anyhow::ensure!(!reply.header("x-request-id").is_empty());
    let error = reply.error()?;
    anyhow::ensure!(error["type"] == "invalid_request_error", "{error}");
    Ok(error)
}

#[tokio::test]
async fn a_body_of_20_mib_is_refused() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let body =
        json!({"model": cluster.model, "messages": [{"role": "user", "content": "x".repeat(20 << 20)}]});
    let reply = cluster
        .api
        .send(Method::POST, CHAT, &[JSON], body.to_string())
        .await?;
    let error = error(&reply, 413)?;
    assert!(
        error["message"].as_str().unwrap().contains("16777216"),
        "names the limit: {error}"
    );
    // The next request is served.
    let body = json!({"model": cluster.model, "messages": Workload::new(1).chat(5), "max_tokens": 1});
    assert_eq!(cluster.api.post(CHAT, &body).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_body_that_is_no_request_is_refused() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    for body in [
        "",
        "{",
        "{\"model\": \"x\",}",
        "[]",
        "null",
        "\"text\"",
        "{\"model\": 1e999}",
        "\u{feff}{}",
    ] {
        let reply = cluster
            .api
            .send(Method::POST, CHAT, &[JSON], body.to_owned())
            .await?;
        let error = error(&reply, 400)?;
        assert!(error["message"].as_str().unwrap().len() > 15, "{body:?}: {error}");
    }
    let not_text = cluster
        .api
        .send(Method::POST, CHAT, &[JSON], vec![b'{', 0xff, 0xfe, b'}'])
        .await?;
    error(&not_text, 400)?;
    let deep = format!("{{\"model\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    error(&cluster.api.send(Method::POST, CHAT, &[JSON], deep).await?, 400)?;
    let twice = format!(
        "{{\"model\":\"{0}\",\"model\":\"{0}\",\"messages\":[]}}",
        cluster.model
    );
    assert!(
        error(&cluster.api.send(Method::POST, CHAT, &[JSON], twice).await?, 400)?["message"]
            .as_str()
            .unwrap()
            .contains("model")
    );
    Ok(())
}

#[tokio::test]
async fn an_unknown_model_is_not_found_and_the_served_one_is_named() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let body = json!({"model": "gpt-99", "messages": Workload::new(1).chat(5)});
    let error = error(&cluster.api.post(CHAT, &body).await?, 404)?;
    assert_eq!(error["param"], "model");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("gpt-99") && message.contains(&cluster.model),
        "{message}"
    );
    assert_eq!(cluster.api.get("/v1/models/gpt-99").await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn a_wrong_parameter_is_named() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let cases = [
        ("max_tokens", json!(-1), "max_tokens"),
        ("max_tokens", json!(0), "max_tokens"),
        ("max_tokens", json!(1.5), "max_tokens"),
        ("max_tokens", json!("10"), "max_tokens"),
        ("max_completion_tokens", json!(-5), "max_completion_tokens"),
        ("temperature", json!("warm"), "temperature"),
        ("temperature", json!(2.5), "temperature"),
        ("top_p", json!(0), "top_p"),
        ("top_k", json!(-2), "top_k"),
        ("n", json!(0), "n"),
        ("n", json!(1_000_000), "n"),
        ("seed", json!("x"), "seed"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "stop"),
        ("stop", json!({}), "stop"),
        ("presence_penalty", json!(3), "presence_penalty"),
        ("frequency_penalty", json!(-3), "frequency_penalty"),
        ("logit_bias", json!({"x": 1}), "logit_bias"),
        ("logprobs", json!("yes"), "logprobs"),
        ("stream", json!("true"), "stream"),
        ("stream_options", json!({"include_usage": true}), "stream_options"),
        ("user", json!(7), "user"),
        ("model", json!(5), "model"),
        ("model", json!(null), "model"),
        ("messages", json!(null), "messages"),
        ("messages", json!("hello"), "messages"),
        ("messages", json!([]), "messages"),
        ("messages", json!([{"content": "no role"}]), "messages[0].role"),
        (
            "messages",
            json!([{"role": "user", "content": 7}]),
            "messages[0].content",
        ),
        ("stop_token_ids", json!([9_999_999]), "stop_token_ids[0]"),
        ("min_tokens", json!(9_999_999), "min_tokens"),
        ("response_format", json!({"type": "xml"}), "response_format.type"),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "strin"}}}),
            "response_format.json_schema.schema",
        ),
        (
            "structured_outputs",
            json!({"regex": "a("}),
            "structured_outputs.regex",
        ),
        ("tools", json!([{"type": "function"}]), "tools[0].function"),
        ("tool_choice", json!("required"), "tool_choice"),
    ];
    for (name, value, param) in cases {
        let mut body = json!({"model": cluster.model, "messages": [{"role": "user", "content": "x"}]});
        body[name] = value.clone();
        let error = error(&cluster.api.post(CHAT, &body).await?, 400)?;
        assert_eq!(error["param"], param, "{name} = {value}: {error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(param), "{name} = {value}: {message}");
    }
    Ok(())
}

#[tokio::test]
async fn unsupported_parameters_are_refused_by_name() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    for (name, value) in [
        ("functions", json!([{"name": "f", "parameters": {}}])),
        ("modalities", json!(["text", "audio"])),
        ("length_penalty", json!(1.2)),
        ("guided_regex", json!("a+")),
        ("chat_template", json!("{{ messages }}")),
    ] {
        let mut body = json!({"model": cluster.model, "messages": Workload::new(1).chat(5)});
        body[name] = value;
        let error = error(&cluster.api.post(CHAT, &body).await?, 400)?;
        assert_eq!(error["param"], name, "{error}");
    }
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]);
    let error = error(
        &cluster
            .api
            .post(CHAT, &json!({"model": cluster.model, "messages": image}))
            .await?,
        400,
    )?;
    assert_eq!(error["param"], "messages[0].content[0].type");
    Ok(())
}

#[tokio::test]
async fn more_tokens_than_the_context_has_are_refused_with_the_numbers() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    let models = cluster.api.get("/v1/models").await?.json()?;
    let context = models["data"][0]["max_model_len"].as_u64().unwrap();
    let too_long = vec![100; usize::try_from(context)?];
    let body = json!({"model": cluster.model, "prompt": too_long, "max_tokens": 1});
    let prompt = error(&cluster.api.post(COMPLETIONS, &body).await?, 400)?;
    let body = json!({"model": cluster.model, "prompt": [100], "max_tokens": context + 1});
    let answer = error(&cluster.api.post(COMPLETIONS, &body).await?, 400)?;
    for error in [prompt, answer] {
        assert_eq!(error["code"], "context_length_exceeded");
        assert!(
            error["message"].as_str().unwrap().contains(&context.to_string()),
            "{error}"
        );
    }
    let beyond = json!({"model": cluster.model, "prompt": [4_000_000_000_u32]});
    assert_eq!(
        error(&cluster.api.post(COMPLETIONS, &beyond).await?, 400)?["param"],
        "prompt[0]"
    );
    Ok(())
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_404_and_405() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    for api in [&cluster.api, &cluster.admin] {
        for path in [
            "/",
            "/v2/chat",
            "/v1/chat/completion",
            "/admin/v1/nothing",
            "/%ff",
        ] {
            assert_eq!(error(&api.get(path).await?, 404)?["code"], "not_found", "{path}");
        }
    }
    let reply = cluster.api.get(CHAT).await?;
    assert!(error(&reply, 405)?["message"].as_str().unwrap().contains("POST"));
    assert_eq!(reply.header("allow"), "POST");
    assert_eq!(cluster.api.post("/v1/models", &json!({})).await?.status, 405);
    assert_eq!(cluster.admin.post("/metrics", &json!({})).await?.status, 405);
    Ok(())
}

#[tokio::test]
async fn an_encoded_body_is_refused_and_never_decompressed() -> anyhow::Result<()> {
    let cluster = cluster().await?;
    for encoding in ["gzip", "br", "zstd", "deflate"] {
        let headers = [JSON, ("content-encoding", encoding)];
        let reply = cluster
            .api
            .send(Method::POST, CHAT, &headers, vec![0x1f, 0x8b, 8, 0])
            .await?;
        let error = error(&reply, 415)?;
        assert!(error["message"].as_str().unwrap().contains(encoding), "{error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_worker_refuses_requests_until_it_has_room() -> anyhow::Result<()> {
    // One sequence at a time, and it is in use: later requests wait, until no more may wait.
    let cluster = Cluster::sim(&["--workers=1", "--max-sequences=1", "--speedup=20"]).await?;
    let mut body = json!({"model": cluster.model, "messages": Workload::new(1).chat(5), "max_tokens": 30_000, "stream": true});
    let mut first = cluster.api.stream(CHAT, &body).await?;
    first.next().await?.unwrap();
    body = json!({"model": cluster.model, "messages": Workload::new(2).chat(5), "max_tokens": 1, "n": 16});
    let mut replies: FuturesUnordered<_> = (0..100).map(|_| cluster.api.post(CHAT, &body)).collect();
    let mut first = Some(first);
    let (mut served, mut refused) = (0, 0);
    while let Some(reply) = replies.next().await {
        let reply = reply?;
        match reply.status {
            200 => {
                assert!(first.is_none(), "answered while the only sequence was in use");
                served += 1;
            }
            429 => {
                assert_eq!(reply.error()?["type"], "rate_limit_error");
                assert!(!reply.header("retry-after").is_empty());
                refused += 1;
                // The sequence becomes free: all waiting requests are served.
                first = None;
            }
            other => anyhow::bail!("{other}: {}", reply.text()),
        }
    }
    println!("{served} served, {refused} refused");
    assert!(served > 0 && refused > 0);
    cluster.idle().await
}
