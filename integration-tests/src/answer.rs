//! Answers: whole ones, and streams of server-sent events with the time of each event.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reqwest::{Response, header::HeaderMap};
use serde_json::Value;

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// From the request's start to the body's end.
    pub took: Duration,
}

/// One server-sent event.
#[derive(Debug, Clone)]
pub struct Event {
    /// The text after `data: `.
    pub data: String,
    /// When the event was read.
    pub at: Instant,
}

/// An answer in events, under way. Dropping it closes the connection.
pub struct EventStream {
    /// Its HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// When the request was sent.
    pub sent: Instant,
    /// When the head was read.
    pub head_at: Instant,
    body: std::pin::Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    buffer: String,
}

/// An answer in events, read to its end.
#[derive(Debug, Clone)]
pub struct Streamed {
    /// Its HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// When the request was sent.
    pub sent: Instant,
    /// When the head was read; the first token follows it.
    pub head_at: Instant,
    /// The events in order, including `[DONE]`.
    pub events: Vec<Event>,
}

impl Reply {
    pub(crate) async fn read(response: Response, sent: Instant) -> anyhow::Result<Self> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await?;
        Ok(Self {
            status,
            headers,
            body,
            took: sent.elapsed(),
        })
    }

    /// A header's value; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        text_of(&self.headers, name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{}, not JSON: {:?}", self.status, self.text()))
    }

    /// OpenAI's error object.
    ///
    /// # Errors
    /// The body is not an error, or lacks a field that OpenAI's clients read.
    pub fn error(&self) -> anyhow::Result<Value> {
        error_of(&self.json()?)
    }
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream")
            .field("status", &self.status)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

impl EventStream {
    pub(crate) fn new(response: Response, sent: Instant) -> Self {
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            sent,
            head_at: Instant::now(),
            body: Box::pin(response.bytes_stream()),
            buffer: String::new(),
        }
    }

    /// A header's value; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        text_of(&self.headers, name)
    }

    /// The next event; `None` at the stream's end.
    ///
    /// # Errors
    /// The connection was lost, or the bytes are not events.
    pub async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        loop {
            if let Some(end) = self.buffer.find("\n\n") {
                let event: String = self.buffer.drain(..end + 2).collect();
                let data = event.trim_end().strip_prefix("data: ");
                let data = data
                    .with_context(|| format!("not an event: {event:?}"))?
                    .to_owned();
                return Ok(Some(Event {
                    data,
                    at: Instant::now(),
                }));
            }
            match self.body.next().await {
                Some(bytes) => self
                    .buffer
                    .push_str(std::str::from_utf8(&bytes?).context("an event cut in a character")?),
                None if self.buffer.is_empty() => return Ok(None),
                None => bail!("the stream ends within an event: {:?}", self.buffer),
            }
        }
    }

    /// Reads all remaining events.
    pub async fn rest(mut self) -> anyhow::Result<Streamed> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await? {
            events.push(event);
        }
        Ok(Streamed {
            status: self.status,
            headers: self.headers,
            sent: self.sent,
            head_at: self.head_at,
            events,
        })
    }
}

impl Event {
    /// Its JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.data).with_context(|| format!("not JSON: {:?}", self.data))
    }
}

impl Streamed {
    /// A header's value; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        text_of(&self.headers, name)
    }

    /// The JSON of every event but `[DONE]`.
    pub fn chunks(&self) -> anyhow::Result<Vec<Value>> {
        self.events
            .iter()
            .filter(|event| event.data != "[DONE]")
            .map(Event::json)
            .collect()
    }

    /// Whether the answer is complete: `[DONE]` is the last event.
    pub fn is_whole(&self) -> bool {
        self.events.last().is_some_and(|event| event.data == "[DONE]")
    }

    /// The error that the stream ended with, if any.
    pub fn error(&self) -> Option<Value> {
        let last: Value = serde_json::from_str(&self.events.last()?.data).ok()?;
        error_of(&last).ok()
    }

    /// The whole text of choice `index`.
    pub fn text(&self, index: u64) -> anyhow::Result<String> {
        let mut text = String::new();
        for chunk in self.chunks()? {
            for choice in chunk["choices"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|choice| choice["index"] == index)
            {
                let piece = choice["delta"]["content"]
                    .as_str()
                    .or_else(|| choice["text"].as_str());
                text.push_str(piece.unwrap_or_default());
            }
        }
        Ok(text)
    }

    /// The finish reason of choice `index`.
    pub fn finish_reason(&self, index: u64) -> anyhow::Result<Option<String>> {
        let chunks = self.chunks()?;
        let choices = chunks
            .iter()
            .flat_map(|chunk| chunk["choices"].as_array().into_iter().flatten());
        let mut reasons = choices
            .filter(|choice| choice["index"] == index)
            .filter_map(|c| c["finish_reason"].as_str());
        Ok(reasons.next_back().map(String::from))
    }

    /// The token counts, if the request asked for them.
    pub fn usage(&self) -> anyhow::Result<Value> {
        let chunks = self.chunks()?;
        let usage = chunks
            .iter()
            .rev()
            .map(|chunk| &chunk["usage"])
            .find(|usage| usage.is_object());
        Ok(usage.context("no usage in the stream")?.clone())
    }

    /// The time from sending the request to its first event.
    pub fn ttft(&self) -> anyhow::Result<Duration> {
        Ok(self.events.first().context("no event at all")?.at - self.sent)
    }
}

fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn error_of(body: &Value) -> anyhow::Result<Value> {
    let error = body["error"]
        .as_object()
        .with_context(|| format!("no error in {body}"))?;
    for field in ["message", "type", "param", "code"] {
        ensure!(error.contains_key(field), "{field} is not in {body}");
    }
    ensure!(
        error["message"]
            .as_str()
            .is_some_and(|message| !message.is_empty()),
        "no message in {body}"
    );
    Ok(Value::Object(error.clone()))
}
