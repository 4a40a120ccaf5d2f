//! What clients receive, and what the worker receives.

use signalbox_protocol::{Endpoint, ErrorKind, WireError};

use super::*;

const SUMMARY: StreamSummary = StreamSummary {
    prompt_tokens: 7,
    cached_tokens: 4,
    completion_tokens: 2,
};

#[actix_rt::test]
async fn a_streamed_chat_is_the_workers_bytes_with_the_decision_in_its_headers() {
    let mut rig = Rig::serving("streamed").await;
    let body = r#"{"model":"streamed","stream":true,"x":"kept","messages":[{"role":"user","content":"hello"}],"max_tokens":9}"#;
    let raw = post("/v1/chat/completions", body).replace("Host:", "X-Request-Id: trace-7\r\nHost:");
    let client = actix_rt::spawn(exchange(rig.http.public_address(), raw.into_bytes().leak()));
    let (received, parts, responder) = rig.call().await;
    assert_eq!(
        (received.model.as_str(), received.id.as_str()),
        ("streamed", "trace-7")
    );
    assert!(
        received.format.stream
            && received.format.endpoint == Endpoint::Chat
            && received.format.created > 1_700_000_000
    );
    assert_eq!(
        (received.sampling.max_tokens, received.deadline_ms.div_ceil(1_000)),
        (9, 600)
    );
    assert_eq!(parts.body, body, "the body is forwarded unchanged");
    let text = rig.router.model("streamed").unwrap().text;
    let messages = serde_json::json!([{"role": "user", "content": "hello"}]);
    assert_eq!(
        parts.tokens,
        text.encode_chat(&signalbox_tokenize::ChatPrompt::new(&messages))
            .unwrap()
    );
    for event in ["data: {\"a\":1}\n\n", "data: {\"b\":2}\n\n", "data: [DONE]\n\n"] {
        responder.queue(1, event.as_bytes()).unwrap();
        responder.flush();
    }
    responder.end(SUMMARY);
    let reply = client.await.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.text(),
        "data: {\"a\":1}\n\ndata: {\"b\":2}\n\ndata: [DONE]\n\n"
    );
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
    assert_eq!(reply.header("x-request-id"), Some("trace-7"));
    assert_eq!(reply.header("x-signalbox-worker"), Some("worker-0"));
    assert_eq!(reply.header("x-signalbox-overlap-blocks"), Some("0"));
    assert_eq!(
        reply.header("x-signalbox-kv"),
        Some("fallback"),
        "the worker publishes no KV events"
    );
    assert!(
        reply
            .header("x-signalbox-policy")
            .unwrap()
            .starts_with("round-robin@"),
        "{}",
        reply.head
    );
    let metrics = rig.admin(get("/metrics").as_bytes()).await;
    let label = r#"{model="streamed",endpoint="chat_completions""#;
    for line in [
        format!(r#"signalbox_requests_total{label},status="200"}} 1"#),
        format!("signalbox_cached_tokens_total{label}}} 4"),
        format!("signalbox_ttft_seconds_count{label}}} 1"),
    ] {
        assert!(metrics.text().contains(&line), "{line} in {}", metrics.text());
    }
}

#[actix_rt::test]
async fn a_whole_completion_is_one_document_of_known_length() {
    let mut rig = Rig::serving("whole").await;
    let address = rig.http.public_address();
    let raw = post(
        "/v1/completions",
        r#"{"model":"whole","prompt":[5,6,7],"echo":true}"#,
    );
    let client = actix_rt::spawn(async move { exchange(address, raw.as_bytes()).await });
    let (received, parts, responder) = rig.call().await;
    assert_eq!(parts.tokens, [5, 6, 7]);
    assert_eq!(
        (
            received.sampling.max_tokens,
            received.format.stream,
            received.format.endpoint
        ),
        (16, false, Endpoint::Completions)
    );
    let text = rig.router.model("whole").unwrap().text;
    assert_eq!(received.format.echo, Some(text.decode(&[5, 6, 7]).unwrap()));
    responder.queue(1, br#"{"whole":"#).unwrap();
    responder.queue(1, b"true}").unwrap();
    responder.end(SUMMARY);
    let reply = client.await.unwrap();
    assert_eq!((reply.status, reply.text()), (200, r#"{"whole":true}"#));
    assert_eq!(reply.header("content-length"), Some("14"));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("x-signalbox-worker"), Some("worker-0"));
    assert_eq!(reply.header("x-signalbox-kv"), Some("fallback"));
}

#[actix_rt::test]
async fn an_error_after_the_first_bytes_is_the_last_event() {
    let mut rig = Rig::serving("failing").await;
    let address = rig.http.public_address();
    let client =
        actix_rt::spawn(
            async move { exchange(address, chat("failing", r#","stream":true"#).as_bytes()).await },
        );
    let (_, _, responder) = rig.call().await;
    responder.queue(1, b"data: {}\n\n").unwrap();
    responder.fail(WireError::new(ErrorKind::Internal, "out of memory"));
    let reply = client.await.unwrap();
    let (first, last) = reply.text().split_once("\n\n").unwrap();
    assert_eq!((reply.status, first), (200, "data: {}"));
    let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap().trim_end()).unwrap();
    assert_eq!(error["error"]["message"], "out of memory");
}

#[actix_rt::test]
async fn an_error_before_the_first_bytes_is_a_status() {
    let mut rig = Rig::serving("refusing").await;
    let address = rig.http.public_address();
    let client =
        actix_rt::spawn(
            async move { exchange(address, chat("refusing", r#","stream":true"#).as_bytes()).await },
        );
    let (_, _, responder) = rig.call().await;
    responder.fail(WireError::invalid_param("seed", "this engine takes no seed"));
    assert_eq!(
        client.await.unwrap().check_error(400, Some("seed")),
        "this engine takes no seed"
    );
}

#[actix_rt::test]
async fn requests_that_cannot_be_served_are_refused_with_what_would_be_right() {
    let rig = Rig::serving("strict").await;
    let long = "word ".repeat(600);
    let completion = |more: &str| {
        post(
            "/v1/completions",
            &format!(r#"{{"model":"strict","prompt":"x"{more}}}"#),
        )
    };
    for (request, status, param, part) in [
        (chat("other", ""), 404, Some("model"), "strict"),
        (
            chat("strict", r#","max_tokens":-1"#),
            400,
            Some("max_tokens"),
            "at least 1",
        ),
        (
            chat("strict", r#","max_tokens":513"#),
            400,
            Some("max_tokens"),
            "maximum context length is 512",
        ),
        (
            post("/v1/chat/completions", "{\"model\":"),
            400,
            None,
            "not valid JSON",
        ),
        (
            completion(&format!(r#","prompt":"{long}""#)),
            400,
            None,
            "given twice",
        ),
        (
            post(
                "/v1/completions",
                &format!(r#"{{"model":"strict","prompt":"{long}"}}"#),
            ),
            400,
            Some("prompt"),
            "shorten prompt",
        ),
        (
            post("/v1/completions", r#"{"model":"strict","prompt":[300]}"#),
            400,
            Some("prompt[0]"),
            "0 to 299",
        ),
        (
            completion(r#","logit_bias":{"300":1}"#),
            400,
            Some("logit_bias.300"),
            "0 to 299",
        ),
        (
            post("/v1/embeddings", r#"{"model":"strict","input":"x"}"#),
            400,
            Some("model"),
            "makes no embeddings",
        ),
        (post("/v1/nothing", ""), 404, None, "POST /v1/nothing"),
        (get("/v1/completions"), 405, None, "use POST"),
        (get("/v1/models/a%2Fb"), 404, Some("model"), "strict"),
    ] {
        let message = rig.public(&request).await.check_error(status, param);
        assert!(message.contains(part), "{message:?} should contain {part:?}");
    }
}

#[actix_rt::test]
async fn models_and_health_name_what_is_served() {
    let rig = Rig::serving("org/named").await;
    let models = rig.public(&get("/v1/models")).await.json();
    assert_eq!(
        (&models["object"], &models["data"][0]["id"]),
        (&"list".into(), &"org/named".into())
    );
    assert_eq!(models["data"][0]["max_model_len"], 512);
    assert_eq!(models["data"][0]["owned_by"], "signalbox");
    assert_eq!(
        rig.public(&get("/v1/models/org/named")).await.json()["id"],
        "org/named"
    );
    let health = rig.public(&get("/health")).await;
    assert_eq!(
        (health.status, &health.json()["instances"][0]["model"]),
        (200, &"org/named".into())
    );
    assert_eq!(rig.public(&get("/ready")).await.status, 200);
    assert_eq!(rig.public(&get("/live")).await.status, 200);
}

#[actix_rt::test]
async fn without_a_worker_requests_are_refused_as_unavailable() {
    let rig = Rig::start(None, |_| ()).await;
    let reply = rig.public(&chat("m", "")).await;
    reply.check_error(503, None);
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(rig.public(&get("/ready")).await.status, 503);
    assert_eq!(rig.public(&get("/health")).await.json()["status"], "unhealthy");
    assert_eq!(rig.public(&get("/live")).await.status, 200);
    assert_eq!(
        rig.public(&get("/v1/models")).await.json()["data"],
        serde_json::json!([])
    );
}
