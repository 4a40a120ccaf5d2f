//! HTTP as a client speaks it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::{Client, Method, Response, header::CONTENT_TYPE};
use serde_json::Value;

use crate::{DEADLINE, EventStream, Reply};

/// One listener. Clones share connections.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    http: Client,
}

impl Api {
    /// Speaks to the listener at `base`, `http://host:port`.
    pub fn new(base: &str) -> anyhow::Result<Self> {
        let http = Client::builder()
            .no_proxy()
            .connect_timeout(DEADLINE)
            // Longer than anything here takes, so that a test fails with a message and does not hang.
            .read_timeout(DEADLINE * 4)
            // A connection is not kept for long: a server that restarts should find no stale ones.
            .pool_idle_timeout(Duration::from_secs(5))
            .build()?;
        Ok(Self {
            base: base.to_owned(),
            http,
        })
    }

    /// Where it listens, `http://host:port`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// GET, answered whole.
    pub async fn get(&self, path: &str) -> anyhow::Result<Reply> {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    /// POST of JSON, answered whole.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Reply> {
        self.send(
            Method::POST,
            path,
            &[(CONTENT_TYPE.as_str(), "application/json")],
            body.to_string(),
        )
        .await
    }

    /// PUT of JSON, without saying that it is JSON.
    pub async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Reply> {
        self.send(Method::PUT, path, &[], body.to_string()).await
    }

    /// Any request at all, answered whole.
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

    /// POST of JSON, answered by events. Comes back with the answer's head.
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
