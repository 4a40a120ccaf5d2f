//! Requests to an engine that reads bodies itself: what it receives, and what clients receive of its answers.

use serde_json::json;
use signalbox_protocol::{Endpoint, EngineError, ErrorKind, WireError};
use signalbox_tokenize::ChatPrompt;

use super::*;

/// Answers with one document.
fn document(text: &'static str) -> impl FnOnce(Responder) {
    move |responder| {
        responder.queue(1, text.as_bytes()).unwrap();
        responder.end(StreamSummary::default());
    }
}

/// An error as an engine answers it.
fn refusal(kind: ErrorKind, status: u16, body: &str) -> WireError {
    WireError {
        engine: Some(Box::new(EngineError {
            status,
            body: body.into(),
        })),
        ..WireError::new(kind, "the engine refused the request")
    }
}

#[actix_rt::test]
async fn a_body_reaches_the_engine_byte_for_byte() {
    let mut rig = Rig::forwarding("verbatim").await;
    // A member that is given twice, odd white space, escapes, and what engines of this repository refuse.
    let body = "{ \"model\":\"verbatim\",\t\"n\": 1e0, \"n\":2,\r\n \"tools\":[{\"type\":\"function\",\"function\":\
                {\"name\":\"f\",\"parameters\":{}}}],\"response_format\":{\"type\":\"json_object\"},\"logprobs\":true,\
                \"messages\":[{\"role\":\"user\",\"content\":\"h\\u00e9llo \\/\"}],\"x_own\":[1.50,{}] } ";
    let (reply, received, parts) = rig
        .answered(post("/v1/chat/completions", body), document("{}"))
        .await;
    assert_eq!((reply.status, reply.text()), (200, "{}"));
    assert_eq!(parts.body, body);
    assert_eq!(received.sampling.n, 2);
    let text = rig.router.model("verbatim").unwrap().text;
    let messages = json!([{"role": "user", "content": "h\u{e9}llo /"}]);
    assert_eq!(
        parts.tokens,
        text.encode_chat(&ChatPrompt::new(&messages)).unwrap()
    );
}

#[actix_rt::test]
async fn odd_values_are_the_engines_to_refuse() {
    let mut rig = Rig::forwarding("lenient").await;
    for more in [
        r#""temperature":"hot","n":0,"stop":{},"seed":1.5"#,
        r#""max_tokens":-1,"max_completion_tokens":"many""#,
        r#""max_tokens":1000000"#,
        r#""stream_options":{"include_usage":true},"logit_bias":{"999":1}"#,
        r#""user":7,"cache_salt":"","priority":"high","metadata":[]"#,
        r#""messages":"hi""#,
        r#""messages":[{"role":"tool"},7]"#,
    ] {
        let body = format!(r#"{{"model":"lenient",{more}}}"#);
        let error = r#"{"error":{"message":"no","type":"BadRequestError","param":null,"code":400}}"#;
        let refuse = |responder: Responder| responder.fail(refusal(ErrorKind::InvalidRequest, 400, error));
        let (reply, _, parts) = rig.answered(post("/v1/chat/completions", &body), refuse).await;
        assert_eq!(parts.body, body);
        assert_eq!((reply.status, reply.text()), (400, error));
    }
}

#[actix_rt::test]
async fn only_a_body_that_names_no_model_is_refused_here() {
    let rig = Rig::forwarding("named").await;
    for endpoint in Endpoint::ALL {
        for (body, status, param) in [
            ("{\"model\":", 400, None),
            (r#"{"input":"x"}"#, 400, Some("model")),
            (r#"{"model":7}"#, 400, Some("model")),
            (r#"{"model":"other"}"#, 404, Some("model")),
        ] {
            let reply = rig.public(&post(endpoint.path(), body)).await;
            if endpoint == Endpoint::Messages {
                assert_eq!(reply.status, status, "{body}");
                let error = reply.json();
                assert_eq!(error["type"], "error", "{error}");
                assert!(error["error"]["message"].is_string(), "{error}");
                assert!(error["error"]["param"].is_null(), "{error}");
            } else {
                reply.check_error(status, param);
            }
        }
    }
}

#[actix_rt::test]
async fn every_route_reaches_the_engine_and_its_document_the_client() {
    let mut rig = Rig::forwarding("routed").await;
    let paths = Endpoint::ALL.map(|endpoint| (endpoint.path(), endpoint));
    let short = [("/rerank", Endpoint::Rerank), ("/score", Endpoint::Score)];
    for (path, endpoint) in paths.into_iter().chain(short) {
        let request = post(path, r#"{"model":"routed","input":"x","prompt":"x"}"#);
        let (reply, received, _) = rig.answered(request, document(r#"{"data":[]}"#)).await;
        assert_eq!((reply.status, reply.text()), (200, r#"{"data":[]}"#), "{path}");
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.header("x-signalbox-overlap-blocks"), Some("0"));
        assert_eq!(received.format.endpoint, endpoint);
        assert!(!received.format.stream);
    }
    let metrics = rig.admin(get("/metrics").as_bytes()).await;
    for (endpoint, times) in [("embeddings", 1), ("rerank", 2), ("responses", 1)] {
        let line = format!(
            r#"signalbox_requests_total{{model="routed",endpoint="{endpoint}",status="200"}} {times}"#
        );
        assert!(metrics.text().contains(&line), "{line} in {}", metrics.text());
    }
}

#[actix_rt::test]
async fn an_answer_shows_the_parity_that_its_worker_reports() {
    let mut rig = Rig::forwarding("judged").await;
    while rig.router.instances()[0].kv.state != ParityState::Degraded {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for stream in [false, true] {
        let request = chat("judged", &format!(r#","stream":{stream}"#));
        let (reply, _, _) = rig.answered(request, document("{}")).await;
        assert_eq!(reply.header("x-signalbox-kv"), Some("degraded"));
    }
}

#[actix_rt::test]
async fn a_prompt_that_cannot_be_hashed_is_routed_and_counted() {
    let mut rig = Rig::forwarding("unhashed").await;
    let image = r#"[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA"}}]"#;
    for (path, prompt, tokens) in [
        (
            "/v1/chat/completions",
            format!(r#""messages":[{{"role":"user","content":{image}}}]"#),
            vec![],
        ),
        ("/v1/completions", r#""prompt":[[5,6],[7]]"#.into(), vec![5, 6]),
        ("/v1/completions", r#""prompt":[5,6]"#.into(), vec![5, 6]),
    ] {
        let body = format!(r#"{{"model":"unhashed",{prompt}}}"#);
        let (reply, _, parts) = rig.answered(post(path, &body), document("{}")).await;
        assert_eq!((reply.status, parts.tokens), (200, tokens));
    }
    let metrics = rig.admin(get("/metrics").as_bytes()).await;
    let counted: Vec<&str> = metrics
        .text()
        .lines()
        .filter(|line| line.starts_with(r#"signalbox_requests_unhashed_total{model="unhashed""#))
        .collect();
    let label = r#"signalbox_requests_unhashed_total{model="unhashed",endpoint="#;
    let mut expected = [
        format!(r#"{label}"chat_completions",reason="unrenderable"}} 1"#),
        format!(r#"{label}"completions",reason="later_prompts"}} 1"#),
    ];
    expected.sort();
    let mut counted: Vec<String> = counted.into_iter().map(str::to_owned).collect();
    counted.sort();
    assert_eq!(counted, expected);
}

#[actix_rt::test]
async fn an_engines_error_keeps_its_status_and_has_the_shape_of_the_route() {
    let mut rig = Rig::forwarding("refused").await;
    let engine = r#"{"error": {"message":"too many","type":"TooMany","param":null,"code":429}}"#;
    for (path, body) in [
        (
            "/v1/chat/completions",
            json!(serde_json::from_str::<Value>(engine).unwrap()),
        ),
        (
            "/v1/messages",
            json!({"type": "error", "error": {"type": "rate_limit_error", "message": "too many"}}),
        ),
    ] {
        let request = post(path, r#"{"model":"refused","messages":[],"stream":true}"#);
        let fail = |responder: Responder| responder.fail(refusal(ErrorKind::Overloaded, 429, engine));
        let (reply, _, _) = rig.answered(request, fail).await;
        assert_eq!((reply.status, reply.json()), (429, body));
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert!(reply.header("x-request-id").is_some());
    }
}

#[actix_rt::test]
async fn a_stream_passes_unchanged_and_its_error_has_the_shape_of_the_route() {
    let mut rig = Rig::forwarding("broken").await;
    let first = "event: some\ndata: {\"a\": 1}\n\n";
    for (endpoint, last) in [
        (
            Endpoint::Chat,
            r#"data: {"error":{"code":null,"message":"out of memory","param":null,"type":"server_error"}}"#,
        ),
        (
            Endpoint::Responses,
            "event: error\ndata: {\"code\":null,\"error\":",
        ),
        (
            Endpoint::Messages,
            "event: error\ndata: {\"error\":{\"message\":\"out of memory\",\"type\":\"api_error\"},\"type\":\"error\"}",
        ),
    ] {
        let request = post(
            endpoint.path(),
            r#"{"model":"broken","stream":"true","input":"x"}"#,
        );
        let answer = move |responder: Responder| {
            responder.queue(1, first.as_bytes()).unwrap();
            responder.fail(WireError::new(ErrorKind::Internal, "out of memory"));
        };
        let (reply, received, _) = rig.answered(request, answer).await;
        assert!(received.format.stream);
        assert_eq!(reply.header("content-type"), Some("text/event-stream"));
        let rest = reply.text().strip_prefix(first).unwrap();
        let (name, data) = rest.rsplit_once("data: ").unwrap();
        let (last_name, last_data) = last.rsplit_once("data: ").unwrap();
        assert_eq!(name, last_name, "{endpoint:?}");
        let data: Value = serde_json::from_str(data.trim_end()).unwrap();
        match serde_json::from_str::<Value>(last_data) {
            Ok(expected) => assert_eq!(data, expected),
            Err(_) => assert_eq!(data["message"], "out of memory"),
        }
    }
}

#[actix_rt::test]
async fn engines_of_this_repository_refuse_the_routes_that_they_lack() {
    let rig = Rig::serving("own").await;
    let answered = [
        Endpoint::Chat,
        Endpoint::Completions,
        Endpoint::Responses,
        Endpoint::Tokenize,
        Endpoint::Detokenize,
    ];
    for endpoint in Endpoint::ALL {
        if answered.contains(&endpoint) {
            continue;
        }
        let body = r#"{"model":"own","input":"x","messages":[]}"#;
        let reply = rig.public(&post(endpoint.path(), body)).await;
        let message = if endpoint == Endpoint::Messages {
            reply.json()["error"]["message"].as_str().unwrap().to_owned()
        } else {
            reply.check_error(400, Some("model"))
        };
        assert_eq!(reply.status, 400);
        assert!(message.contains("use /v1/chat/completions"), "{message}");
    }
}
