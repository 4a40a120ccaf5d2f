use futures_util::stream;
use serde_json::Map;

use super::*;

#[derive(Debug)]
struct Chat<S>(S);

impl<S: Stream<Item = Result<Bytes, WireError>> + Unpin> Stream for Chat<S> {
    type Item = Result<Bytes, WireError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

impl<S: Stream<Item = Result<Bytes, WireError>> + Unpin + std::fmt::Debug> Answer for Chat<S> {
    fn summary(&self) -> Option<StreamSummary> {
        None
    }

    fn tokens(&self) -> u32 {
        0
    }
}

fn settings() -> Arc<ResponseSettings> {
    let mut settings = Map::new();
    settings.insert("instructions".into(), "be brief".into());
    Arc::new(ResponseSettings(settings))
}

/// What the client gets of a chat that arrives in pieces of `size` bytes.
async fn answered(chat: &str, is_stream: bool, size: usize) -> String {
    let pieces: Vec<_> = chat
        .as_bytes()
        .chunks(size)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    let mut answer = ResponseAnswer::new(Chat(stream::iter(pieces)), is_stream, settings());
    let mut bytes = Vec::new();
    while let Some(piece) = answer.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    String::from_utf8(bytes).unwrap()
}

fn stream_of(choices: &[Value]) -> String {
    let head = json!({"id": "chatcmpl-k", "object": "chat.completion.chunk", "created": 7, "model": "m"});
    let event = |more: Value| {
        let mut event = head.clone();
        event
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        format!("data: {event}\n\n")
    };
    let mut text: String = choices
        .iter()
        .map(|choice| event(json!({"choices": [choice], "usage": null})))
        .collect();
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}});
    text += &event(json!({"choices": [], "usage": usage}));
    text + "data: [DONE]\n\n"
}

fn delta(delta: Value, finish: Option<&str>) -> Value {
    json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish})
}

/// The events, each with its kind checked against its data, and numbered from 0.
fn events(text: &str) -> Vec<Value> {
    let events: Vec<Value> = text
        .split_terminator("\n\n")
        .map(|event| {
            let (kind, data) = event.split_once("\ndata: ").unwrap();
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!(kind, format!("event: {}", data["type"].as_str().unwrap()));
            data
        })
        .collect();
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    events
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["type"].as_str().unwrap().trim_start_matches("response."))
        .collect()
}

#[actix_rt::test]
async fn a_streamed_chat_becomes_the_events_of_a_response_however_its_bytes_arrive() {
    let chat = stream_of(&[
        delta(json!({"role": "assistant", "content": ""}), None),
        delta(json!({"content": "Grö"}), None),
        delta(json!({"content": "ße"}), None),
        delta(json!({}), Some("stop")),
    ]);
    for size in [1, 7, 64, 10_000] {
        let events = events(&answered(&chat, true, size).await);
        let expected = [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "completed",
        ];
        assert_eq!(kinds(&events), expected);
        assert_eq!(events[0]["response"]["status"], "in_progress");
        assert_eq!(events[0]["response"]["instructions"], "be brief");
        assert_eq!(
            (&events[4]["delta"], &events[6]["text"]),
            (&json!("Grö"), &json!("Größe"))
        );
        let response = &events[9]["response"];
        assert_eq!(
            (&response["id"], &response["created_at"], &response["model"]),
            (&json!("resp_k"), &json!(7), &json!("m"))
        );
        assert_eq!(response["output"], json!([events[8]["item"]]));
        assert_eq!(response["output"][0]["content"][0]["text"], "Größe");
        assert_eq!(response["usage"]["input_tokens_details"]["cached_tokens"], 1);
        assert_eq!(
            (&response["status"], &response["usage"]["total_tokens"]),
            (&json!("completed"), &json!(5))
        );
        for event in &events[2..9] {
            assert_eq!(event["output_index"], 0);
            let id = event.get("item_id").unwrap_or_else(|| &event["item"]["id"]);
            assert_eq!(*id, response["output"][0]["id"]);
        }
    }
}

#[actix_rt::test]
async fn calls_are_items_of_their_own_behind_the_text() {
    let call = |index: u32, id: &str| {
        json!({"tool_calls": [{"index": index, "id": id, "type": "function",
        "function": {"name": "f", "arguments": ""}}]})
    };
    let arguments =
        |index: u32, text: &str| json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]});
    let chat = stream_of(&[
        delta(json!({"role": "assistant", "content": ""}), None),
        delta(json!({"content": "Wait."}), None),
        delta(call(0, "a"), None),
        delta(arguments(0, "{\"x\":"), None),
        delta(arguments(0, "1}"), None),
        delta(call(1, "b"), None),
        delta(arguments(1, "{}"), None),
        delta(json!({}), Some("tool_calls")),
    ]);
    let events = events(&answered(&chat, true, 50).await);
    let items: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == "response.output_item.done")
        .collect();
    assert_eq!(items.len(), 3);
    for (at, (id, arguments)) in [(1, ("a", "{\"x\":1}")), (2, ("b", "{}"))] {
        let item = &items[at]["item"];
        assert_eq!(items[at]["output_index"], at);
        assert_eq!(
            (&item["type"], &item["call_id"], &item["arguments"]),
            (&json!("function_call"), &json!(id), &json!(arguments))
        );
    }
    let output = &events.last().unwrap()["response"]["output"];
    let from_items: Vec<_> = items.iter().map(|event| event["item"].clone()).collect();
    assert_eq!(*output, json!(from_items));
    // The whole answer of the same chat has the same items.
    let calls = [("a", "{\"x\":1}"), ("b", "{}")].map(|(id, arguments)| {
        json!({"id": id, "type": "function",
        "function": {"name": "f", "arguments": arguments}})
    });
    let message = json!({"role": "assistant", "content": "Wait.", "tool_calls": calls});
    let document = json!({"id": "chatcmpl-k", "created": 7, "model": "m", "usage": {"prompt_tokens": 3},
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]});
    let response: Value = serde_json::from_str(&answered(&document.to_string(), false, 9).await).unwrap();
    assert_eq!(response["output"], *output);
}

#[actix_rt::test]
async fn an_answer_at_its_limit_is_incomplete_and_an_empty_one_has_a_message() {
    let events = events(&answered(&stream_of(&[delta(json!({}), Some("length"))]), true, 100).await);
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(
        last["response"]["incomplete_details"]["reason"],
        "max_output_tokens"
    );
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], "");
    assert_eq!(last["response"]["output"][0]["status"], "incomplete");
}

#[actix_rt::test]
async fn what_is_no_chat_is_an_error_and_ends_the_answer() {
    let pieces = [Ok(Bytes::from_static(b"{"))];
    let mut answer = ResponseAnswer::new(Chat(stream::iter(pieces)), false, settings());
    assert_eq!(
        answer.next().await.unwrap().unwrap_err().kind,
        ErrorKind::Internal
    );
    assert!(answer.next().await.is_none());
}
