//! An HTTP client.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::{Client, Method, Response, header::CONTENT_TYPE};
use serde_json::Value;

use crate::{DEADLINE, EventStream, Reply};

/// A client of one listener. Clones share connections.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    http: Client,
}

impl Api {
    /// A client of the listener at `base`, `http://host:port`.
    pub fn new(base: &str) -> anyhow::Result<Self> {
        let http = Client::builder()
            .no_proxy()
            .connect_timeout(DEADLINE)
            // Longer than any answer takes, so that a test fails with an error instead of hanging.
            .read_timeout(DEADLINE * 4)
            // Short, so that no stale connection is used after a server restarts.
            .pool_idle_timeout(Duration::from_secs(5))
            .build()?;
        Ok(Self {
            base: base.to_owned(),
            http,
        })
    }

    /// The listener's address, `http://host:port`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Sends a GET and reads the whole answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<Reply> {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    /// Sends a POST of JSON and reads the whole answer.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Reply> {
        self.send(
            Method::POST,
            path,
            &[(CONTENT_TYPE.as_str(), "application/json")],
            body.to_string(),
        )
        .await
    }

    /// Sends a PUT of JSON without a content type.
    pub async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Reply> {
        self.send(Method::PUT, path, &[], body.to_string()).await
    }

    /// Sends any request and reads the whole answer.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Reply> {
        let (response, sent) = self.open(method, path, headers, body.into()).await?;
        Reply::read(response, sent).await
    }

    /// Sends a POST of JSON that is answered by events. Returns once the answer's head is read.
    pub async fn stream(&self, path: &str, body: &Value) -> anyhow::Result<EventStream> {
        let headers = [(CONTENT_TYPE.as_str(), "application/json")];
        let (response, sent) = self
            .open(Method::POST, path, &headers, body.to_string().into())
            .await?;
        Ok(EventStream::new(response, sent))
    }

    async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> anyhow::Result<(Response, Instant)> {
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.base))
            .body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sent = Instant::now();
        Ok((request.send().await?, sent))
    }
}
