//! `/v1/responses` at an engine of this repository: it answers a chat, and the client gets a response.

use serde_json::json;
use signalbox_protocol::{Endpoint, ErrorKind, WireError};

use super::*;

fn chunk(more: Value) -> String {
    let mut chunk =
        json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "m"});
    let members = chunk.as_object_mut().unwrap();
    members.extend(more.as_object().unwrap().clone());
    format!("data: {chunk}\n\n")
}

#[actix_rt::test]
async fn a_response_is_answered_as_a_chat() {
    let mut rig = Rig::serving("responding").await;
    let messages = json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]);
    let text = rig.router.model("responding").unwrap().text;
    let tokens = text
        .encode_chat(&signalbox_tokenize::ChatPrompt::new(&messages))
        .unwrap();
    let usage = json!({"prompt_tokens": 4, "completion_tokens": 1, "total_tokens": 5});
    let document = json!({"id": "chatcmpl-1", "created": 5, "model": "m", "usage": usage, "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]});
    for stream in [false, true] {
        let body = json!({"model": "responding", "instructions": "be brief", "input": "hi", "max_output_tokens": 3,
            "stream": stream});
        let whole = document.to_string();
        let usage = usage.clone();
        let answer = move |responder: Responder| {
            let choice = |delta: Value, finish: Value| {
                chunk(json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}))
            };
            let pieces = if stream {
                vec![
                    choice(json!({"role": "assistant", "content": ""}), Value::Null),
                    choice(json!({"content": "Hello"}), Value::Null),
                    choice(json!({}), json!("stop")),
                    chunk(json!({"choices": [], "usage": usage})),
                    "data: [DONE]\n\n".to_owned(),
                ]
            } else {
                vec![whole]
            };
            for piece in pieces {
                responder.queue(1, piece.as_bytes()).unwrap();
            }
            responder.end(StreamSummary::default());
        };
        let (reply, received, parts) = rig
            .answered(post("/v1/responses", &body.to_string()), answer)
            .await;
        assert_eq!(
            (received.format.endpoint, received.format.include_usage),
            (Endpoint::Chat, stream)
        );
        assert_eq!((received.sampling.max_tokens, &parts.tokens), (3, &tokens));
        let response = if stream {
            assert_eq!(reply.header("content-type"), Some("text/event-stream"));
            let (_, last) = reply.text().rsplit_once("data: ").unwrap();
            serde_json::from_str::<Value>(last).unwrap()["response"].clone()
        } else {
            reply.json()
        };
        assert_eq!(
            (&response["object"], &response["status"]),
            (&json!("response"), &json!("completed"))
        );
        assert_eq!(response["output"][0]["content"][0]["text"], "Hello");
        assert_eq!(response["usage"]["input_tokens"], 4);
        assert_eq!(response["max_output_tokens"], 3);
    }
    let metrics = rig.admin(get("/metrics").as_bytes()).await;
    let line = r#"signalbox_requests_total{model="responding",endpoint="responses",status="200"} 2"#;
    assert!(metrics.text().contains(line), "{}", metrics.text());
}

#[actix_rt::test]
async fn a_response_that_fails_ends_with_its_own_error_event() {
    let mut rig = Rig::serving("failing").await;
    let body = r#"{"model":"failing","input":"hi","stream":true}"#;
    let begin = chunk(json!({"choices": [{"index": 0, "delta": {"content": "He"}, "finish_reason": null}]}));
    let answer = move |responder: Responder| {
        responder.queue(1, begin.as_bytes()).unwrap();
        responder.fail(WireError::new(ErrorKind::Internal, "out of memory"));
    };
    let (reply, _, _) = rig.answered(post("/v1/responses", body), answer).await;
    assert!(
        reply.text().starts_with("event: response.created\n"),
        "{}",
        reply.text()
    );
    let (_, last) = reply.text().rsplit_once("event: error\ndata: ").unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["message"], "out of memory");
    let stored = r#"{"model":"failing","input":"hi","previous_response_id":"resp_1"}"#;
    let reply = rig.public(&post("/v1/responses", stored)).await;
    reply.check_error(400, Some("previous_response_id"));
}
