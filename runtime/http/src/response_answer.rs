//! The answer of a chat as the response of `/v1/responses`, where an engine of this repository answers a chat.
//!
//! A whole answer becomes one document. A stream becomes OpenAI's events: `response.created` and `response.in_progress`, the
//! items with their parts as they come, and `response.completed`, or `response.incomplete` at the limit of tokens. Each has the
//! next `sequence_number`. The last one has the whole response, so the texts of an answer are kept until its end, within
//! [`MAX_DOCUMENT_BYTES`].

use std::{
    fmt::Write,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};
use signalbox_protocol::{ErrorKind, StreamSummary, WireError};

use crate::{answer::Answer, document::MAX_DOCUMENT_BYTES, prepared::ResponseSettings};

/// The response that is made of a chat's answer.
#[derive(Debug)]
pub(crate) struct ResponseAnswer<A> {
    chat: A,
    is_stream: bool,
    response: Response,
    /// What has arrived of the next event, or of the document.
    received: BytesMut,
    bytes: u64,
    is_ended: bool,
}

impl<A: Answer> ResponseAnswer<A> {
    pub(crate) fn new(chat: A, is_stream: bool, settings: Arc<ResponseSettings>) -> Self {
        Self {
            chat,
            is_stream,
            response: Response::new(settings),
            received: BytesMut::new(),
            bytes: 0,
            is_ended: false,
        }
    }

    /// Takes bytes of the chat's answer. Returns what the client gets of them.
    fn push(&mut self, piece: &[u8]) -> Result<String, WireError> {
        self.bytes += piece.len() as u64;
        if self.bytes > MAX_DOCUMENT_BYTES {
            let message =
                format!("the answer is larger than {MAX_DOCUMENT_BYTES} bytes; ask for fewer tokens");
            return Err(WireError::new(ErrorKind::Internal, message));
        }
        self.received.extend_from_slice(piece);
        let mut out = String::new();
        while self.is_stream
            && let Some(end) = self.received.windows(2).position(|two| two == b"\n\n")
        {
            let event = self.received.split_to(end + 2);
            let Some(data) = event.strip_prefix(b"data: ") else {
                continue;
            };
            if data.starts_with(b"[DONE]") {
                self.response.finish(&mut out);
                continue;
            }
            self.response.push(&parsed(data)?, &mut out);
        }
        Ok(out)
    }
}

fn parsed(json: &[u8]) -> Result<Value, WireError> {
    serde_json::from_slice(json)
        .map_err(|_| WireError::new(ErrorKind::Internal, "the worker's answer is not a chat"))
}

impl<A: Answer> Stream for ResponseAnswer<A> {
    type Item = Result<Bytes, WireError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if this.is_ended {
                return Poll::Ready(None);
            }
            let written = match this.chat.poll_next_unpin(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(piece)) => piece.and_then(|piece| this.push(&piece)),
                Poll::Ready(None) => {
                    this.is_ended = true;
                    if this.is_stream {
                        return Poll::Ready(None);
                    }
                    parsed(&this.received).map(|chat| this.response.of_document(&chat).to_string())
                }
            };
            match written {
                Ok(text) if text.is_empty() => {}
                Ok(text) => return Poll::Ready(Some(Ok(text.into()))),
                Err(error) => {
                    this.is_ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

impl<A: Answer> Answer for ResponseAnswer<A> {
    fn summary(&self) -> Option<StreamSummary> {
        self.chat.summary()
    }

    fn tokens(&self) -> u32 {
        self.chat.tokens()
    }
}

/// A response as far as its chat has arrived.
#[derive(Debug)]
struct Response {
    settings: Arc<ResponseSettings>,
    /// The part of the chat's id that all ids have.
    key: String,
    created: Value,
    model: Value,
    events: u64,
    done: Vec<Value>,
    open: Option<OpenItem>,
    is_cut: bool,
    usage: Value,
}

/// The item that the answer is writing.
#[derive(Debug)]
enum OpenItem {
    Message(String),
    Call {
        id: String,
        name: String,
        arguments: String,
    },
}

impl Response {
    fn new(settings: Arc<ResponseSettings>) -> Self {
        Self {
            settings,
            key: String::new(),
            created: Value::Null,
            model: Value::Null,
            events: 0,
            done: Vec::new(),
            open: None,
            is_cut: false,
            usage: Value::Null,
        }
    }

    /// Takes what every event and the document of a chat begin with.
    fn begin(&mut self, chat: &Value) {
        let id = chat["id"].as_str().unwrap_or_default();
        self.key = id.rsplit_once('-').map_or(id, |(_, key)| key).to_owned();
        self.created = chat["created"].clone();
        self.model = chat["model"].clone();
    }

    /// Takes an event of the chat, and writes the events of the response.
    fn push(&mut self, chunk: &Value, out: &mut String) {
        if self.events == 0 {
            self.begin(chunk);
            for kind in ["response.created", "response.in_progress"] {
                let response = self.document("in_progress");
                self.write(kind, json!({"response": response}), out);
            }
        }
        if chunk["usage"].is_object() {
            self.usage = usage(&chunk["usage"]);
        }
        let choice = &chunk["choices"][0];
        if let Some(text) = choice["delta"]["content"]
            .as_str()
            .filter(|text| !text.is_empty())
        {
            self.push_text(text, out);
        }
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let arguments = call["function"]["arguments"].as_str().unwrap_or_default();
            if let Some(id) = call["id"].as_str() {
                self.close(out);
                let name = call["function"]["name"].as_str().unwrap_or_default().to_owned();
                self.start(
                    OpenItem::Call {
                        id: id.to_owned(),
                        name,
                        arguments: String::new(),
                    },
                    out,
                );
            }
            self.push_arguments(arguments, out);
        }
        if choice["finish_reason"].is_string() {
            self.is_cut = choice["finish_reason"] == "length";
            if self.open.is_none() && self.done.is_empty() {
                self.start(OpenItem::Message(String::new()), out);
            }
            self.close(out);
        }
    }

    fn push_text(&mut self, text: &str, out: &mut String) {
        if !matches!(self.open, Some(OpenItem::Message(_))) {
            self.close(out);
            self.start(OpenItem::Message(String::new()), out);
        }
        if let Some(OpenItem::Message(whole)) = &mut self.open {
            whole.push_str(text);
        }
        let delta = json!({"item_id": self.item_id(), "content_index": 0, "delta": text, "logprobs": []});
        self.write_of_item("response.output_text.delta", delta, out);
    }

    fn push_arguments(&mut self, text: &str, out: &mut String) {
        if text.is_empty() {
            return;
        }
        if let Some(OpenItem::Call { arguments, .. }) = &mut self.open {
            arguments.push_str(text);
        }
        let delta = json!({"item_id": self.item_id(), "delta": text});
        self.write_of_item("response.function_call_arguments.delta", delta, out);
    }

    fn start(&mut self, item: OpenItem, out: &mut String) {
        let is_message = matches!(item, OpenItem::Message(_));
        let mut shown = self.shown(&item, "in_progress");
        if is_message {
            shown["content"] = json!([]);
        }
        self.open = Some(item);
        self.write_of_item("response.output_item.added", json!({"item": shown}), out);
        if is_message {
            let part = json!({"item_id": self.item_id(), "content_index": 0, "part": text_part("")});
            self.write_of_item("response.content_part.added", part, out);
        }
    }

    /// Ends the open item.
    fn close(&mut self, out: &mut String) {
        let Some(item) = self.open.take() else {
            return;
        };
        let id = self.item_id();
        match &item {
            OpenItem::Message(text) => {
                let done = json!({"item_id": id, "content_index": 0, "text": text, "logprobs": []});
                self.write_of_item("response.output_text.done", done, out);
                let part = json!({"item_id": id, "content_index": 0, "part": text_part(text)});
                self.write_of_item("response.content_part.done", part, out);
            }
            OpenItem::Call { name, arguments, .. } => {
                let done = json!({"item_id": id, "name": name, "arguments": arguments});
                self.write_of_item("response.function_call_arguments.done", done, out);
            }
        }
        let shown = self.shown(&item, self.status());
        self.write_of_item("response.output_item.done", json!({"item": shown}), out);
        self.done.push(shown);
    }

    /// Writes the last event.
    fn finish(&mut self, out: &mut String) {
        let status = self.status();
        let response = self.document(status);
        self.write(&format!("response.{status}"), json!({"response": response}), out);
    }

    /// The response of a whole chat.
    fn of_document(&mut self, chat: &Value) -> Value {
        self.begin(chat);
        self.usage = usage(&chat["usage"]);
        let choice = &chat["choices"][0];
        self.is_cut = choice["finish_reason"] == "length";
        let status = self.status();
        let text = choice["message"]["content"].as_str().unwrap_or_default();
        let calls: Vec<_> = choice["message"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
            .collect();
        let mut items = Vec::new();
        if !text.is_empty() || calls.is_empty() {
            items.push(OpenItem::Message(text.to_owned()));
        }
        items.extend(calls.into_iter().map(|call| {
            let function = |member| call["function"][member].as_str().unwrap_or_default().to_owned();
            OpenItem::Call {
                id: call["id"].as_str().unwrap_or_default().to_owned(),
                name: function("name"),
                arguments: function("arguments"),
            }
        }));
        let last = items.len() - 1;
        for (number, item) in items.iter().enumerate() {
            // The limit cuts the last item.
            let shown = self.shown(item, if number == last { status } else { "completed" });
            self.done.push(shown);
        }
        self.document(status)
    }

    fn status(&self) -> &'static str {
        if self.is_cut { "incomplete" } else { "completed" }
    }

    /// The id of the open item, or of the one that was open last.
    fn item_id(&self) -> String {
        format!("item_{}_{}", self.key, self.done.len())
    }

    fn shown(&self, item: &OpenItem, status: &str) -> Value {
        match item {
            OpenItem::Message(text) => json!({
                "id": self.item_id(), "type": "message", "role": "assistant", "status": status, "content": [text_part(text)],
            }),
            OpenItem::Call { id, name, arguments } => json!({
                "id": self.item_id(), "type": "function_call", "status": status, "call_id": id, "name": name,
                "arguments": arguments,
            }),
        }
    }

    /// The response as it is now.
    fn document(&self, status: &str) -> Value {
        let mut response = json!({
            "id": format!("resp_{}", self.key),
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": null,
            "incomplete_details": (status == "incomplete").then(|| json!({"reason": "max_output_tokens"})),
            "model": self.model,
            "output": self.done,
            "usage": self.usage,
            // What a request may leave out.
            "instructions": null,
            "max_output_tokens": null,
            "metadata": {},
            "parallel_tool_calls": true,
            "temperature": 1.0,
            "top_p": 1.0,
            // What is the same in every response.
            "background": false,
            "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null},
            "service_tier": "default",
            "store": false,
            "truncation": "disabled",
            "user": null,
        });
        for (name, value) in &self.settings.0 {
            response[name] = value.clone();
        }
        response
    }

    /// Writes an event about the open item, or the one that was open last.
    fn write_of_item(&mut self, kind: &str, mut members: Value, out: &mut String) {
        members["output_index"] = self.done.len().into();
        self.write(kind, members, out);
    }

    fn write(&mut self, kind: &str, mut members: Value, out: &mut String) {
        members["type"] = kind.into();
        members["sequence_number"] = self.events.into();
        self.events += 1;
        // Writing to a string cannot fail.
        let _ = write!(out, "event: {kind}\ndata: {members}\n\n");
    }
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// The token counts with a response's names.
fn usage(chat: &Value) -> Value {
    let cached = chat["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap_or(0);
    json!({
        "input_tokens": chat["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": chat["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": chat["total_tokens"],
    })
}

#[cfg(test)]
mod tests;
