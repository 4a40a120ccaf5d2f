//! Several prompts in one request, and streams whose first bytes are late.

use serde_json::json;
use signalbox_protocol::{AnswerPart, ErrorKind, WireError};

use super::*;

fn summary(prompt_tokens: u32) -> StreamSummary {
    StreamSummary {
        prompt_tokens,
        cached_tokens: 0,
        completion_tokens: 2,
    }
}

#[actix_rt::test]
async fn each_prompt_is_routed_by_itself_and_the_answer_is_one() {
    let mut rig = Rig::serving("several").await;
    let body = r#"{"model":"several","prompt":["ab","ABC"],"n":2,"max_tokens":1}"#;
    let request = post("/v1/completions", body);
    let address = rig.http.public_address();
    let client = actix_rt::spawn(async move { exchange(address, request.as_bytes()).await });
    for (prompt, first_choice) in [("ab", 0), ("ABC", 2)] {
        let (received, parts, responder) = rig.call().await;
        assert_eq!(received.format.part, Some(AnswerPart { first_choice }));
        let text = rig.router.model("several").unwrap().text;
        assert_eq!(parts.tokens, text.encode_prompt(prompt).unwrap());
        assert_eq!(parts.body, "", "the worker needs none of the other prompts");
        let choices = [first_choice, first_choice + 1].map(|index| format!(r#"{{"index":{index}}}"#));
        let piece = format!(r#"{{"id":"cmpl","choices":[{}"#, choices.join(","));
        responder.queue(2, piece.as_bytes()).unwrap();
        responder.end(summary(parts.tokens.len() as u32));
    }
    let reply = client.await.unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("x-signalbox-worker"), Some("worker-0"));
    let indexes = json!([{"index": 0}, {"index": 1}, {"index": 2}, {"index": 3}]);
    assert_eq!(reply.json()["choices"], indexes);
    assert_eq!(reply.json()["usage"]["completion_tokens"], 4);
    let metrics = rig.admin(get("/metrics").as_bytes()).await;
    let line = r#"signalbox_requests_total{model="several",endpoint="completions",status="200"} 1"#;
    assert!(metrics.text().contains(line), "{}", metrics.text());
}

#[actix_rt::test]
async fn the_refusal_of_one_prompt_names_it() {
    let rig = Rig::serving("one-wrong").await;
    let long = "x".repeat(600);
    for (prompt, part) in [
        (json!(["a", ""]), "prompt[1] has no tokens"),
        (json!([[1], [300_000]]), "prompt[1][0] is 300000"),
        (json!(["a", long]), "prompt[1] has"),
    ] {
        let body = json!({"model": "one-wrong", "prompt": prompt}).to_string();
        let reply = rig.public(&post("/v1/completions", &body)).await;
        let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(reply.status == 400 && message.contains(part), "{message}");
    }
}

/// Reads from the socket until the text has come `count` times.
async fn read_until(socket: &mut TcpStream, bytes: &mut Vec<u8>, text: &str, count: usize) {
    while String::from_utf8_lossy(bytes).matches(text).count() < count {
        let mut more = [0; 4096];
        let read = timeout(PATIENCE, socket.read(&mut more))
            .await
            .expect("bytes")
            .unwrap();
        assert_ne!(read, 0, "the connection was closed");
        bytes.extend_from_slice(&more[..read]);
    }
}

#[actix_rt::test]
async fn a_late_stream_gets_its_head_and_pings_before_its_first_bytes() {
    let configure = |config: &mut HttpConfig| config.ping_after = Some(Duration::from_millis(20));
    let mut rig = Rig::start(Some("late"), configure).await;
    for fails in [false, true] {
        let mut socket = TcpStream::connect(rig.http.public_address()).await.unwrap();
        let request = chat("late", r#","stream":true"#);
        socket.write_all(request.as_bytes()).await.unwrap();
        let (_, _, responder) = rig.call().await;
        let mut bytes = Vec::new();
        read_until(&mut socket, &mut bytes, ": ping\n\n", 2).await;
        if fails {
            responder.fail(WireError::new(ErrorKind::InvalidRequest, "no such thing"));
        } else {
            responder.queue(1, b"data: {\"a\":1}\n\n").unwrap();
            responder.end(summary(7));
        }
        timeout(PATIENCE, socket.read_to_end(&mut bytes))
            .await
            .expect("an end")
            .unwrap();
        let reply = Reply::parse(&bytes);
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("content-type"), Some("text/event-stream"));
        assert!(reply.header("x-request-id").is_some() && reply.header("x-signalbox-worker").is_none());
        let events = reply.text().replace(": ping\n\n", "");
        if fails {
            let error: Value = serde_json::from_str(events.trim().strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(error["error"]["message"], "no such thing");
        } else {
            assert_eq!(events, "data: {\"a\":1}\n\n");
        }
    }
    let metrics = rig.admin(get("/metrics").as_bytes()).await;
    for line in [
        r#"signalbox_requests_total{model="late",endpoint="chat_completions",status="200"} 1"#,
        r#"signalbox_requests_total{model="late",endpoint="chat_completions",status="400"} 1"#,
        r#"signalbox_ttft_seconds_count{model="late",endpoint="chat_completions"} 1"#,
    ] {
        assert!(metrics.text().contains(line), "{line}: {}", metrics.text());
    }
}

#[actix_rt::test]
async fn a_client_that_leaves_a_late_stream_cancels_it() {
    let configure = |config: &mut HttpConfig| config.ping_after = Some(Duration::from_millis(5));
    let mut rig = Rig::start(Some("left"), configure).await;
    let mut socket = TcpStream::connect(rig.http.public_address()).await.unwrap();
    let request = chat("left", r#","stream":true"#);
    socket.write_all(request.as_bytes()).await.unwrap();
    let (_, _, responder) = rig.call().await;
    read_until(&mut socket, &mut Vec::new(), ": ping\n\n", 1).await;
    drop(socket);
    timeout(PATIENCE, responder.cancelled())
        .await
        .expect("the work is cancelled");
}
