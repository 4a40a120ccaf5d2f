//! Calls of a router's admin API, for commands.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE, HOST},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;
use tokio::time::timeout;

use crate::cli::AdminOptions;

/// Longest wait for an answer. An upload waits for earlier ones and is compiled.
const PATIENCE: Duration = Duration::from_secs(120);
/// Largest answer: the largest component, with room for what operators may allow.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// The admin API of one router.
#[derive(Debug)]
pub(crate) struct AdminClient {
    base: String,
    token: Option<String>,
    user: String,
    http: Client<HttpConnector, Full<Bytes>>,
}

impl AdminClient {
    /// A client of the API that the options name.
    pub(crate) fn new(options: &AdminOptions) -> anyhow::Result<Self> {
        let url = options.url.trim_end_matches('/');
        if url.starts_with("https://") {
            bail!("the admin API has no TLS; give http://host:port, or a tunnel to it");
        }
        let base = match url.starts_with("http://") {
            true => url.to_owned(),
            false => format!("http://{url}"),
        };
        let _: Uri = base
            .parse()
            .with_context(|| format!("{url} is no address of an admin API"))?;
        Ok(Self {
            base,
            token: options.token.clone(),
            user: options.user.clone(),
            http: Client::builder(TokioExecutor::new()).build(HttpConnector::new()),
        })
    }

    /// Sends a call and reads its answer as JSON.
    ///
    /// # Errors
    /// The router is not reachable, or refuses the call: then the error is its own sentence.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let answer = self.send(method, path, "application/json", body).await?;
        serde_json::from_slice(&answer).context("the answer of the admin API is no JSON")
    }

    /// Sends any call and reads its answer.
    ///
    /// # Errors
    /// As for [`AdminClient::call`].
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Bytes,
    ) -> anyhow::Result<Bytes> {
        let uri: Uri = format!("{}{path}", self.base).parse()?;
        let host = uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(HOST, host)
            .header(CONTENT_TYPE, content_type);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if !self.user.is_empty() {
            request = request.header("x-signalbox-user", &self.user);
        }
        let request = request.body(Full::new(body))?;
        let answered = async {
            let response = self.http.request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await;
            let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
            anyhow::Ok((status, body))
        };
        let (status, body) = timeout(PATIENCE, answered)
            .await
            .with_context(|| format!("{} does not answer", self.base))?
            .with_context(|| format!("no answer from the admin API at {}", self.base))?;
        if status.is_success() {
            return Ok(body);
        }
        let error: Value = serde_json::from_slice(&body).unwrap_or_default();
        match error["error"]["message"].as_str() {
            Some(message) => bail!("{message} ({status})"),
            None => bail!("the admin API answers {status}"),
        }
    }
}

/// Text as a segment of a path, or as a value of a query.
pub(crate) fn escaped(text: &str) -> String {
    let is_plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'@' | b':');
    text.bytes().fold(String::new(), |mut escaped, byte| {
        match is_plain(byte) {
            true => escaped.push(char::from(byte)),
            false => escaped.push_str(&format!("%{byte:02X}")),
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_in_a_path_is_escaped() {
        assert_eq!(escaped("mine@sha256:0a"), "mine@sha256:0a");
        assert_eq!(escaped("a b/ü?{\"x\":1}"), "a%20b%2F%C3%BC%3F%7B%22x%22:1%7D");
    }

    #[test]
    fn an_address_may_lack_its_scheme_and_has_no_tls() {
        let client = |url: &str| {
            AdminClient::new(&AdminOptions {
                url: url.into(),
                token: None,
                user: String::new(),
                json: false,
            })
        };
        assert_eq!(client("localhost:9090/").unwrap().base, "http://localhost:9090");
        assert!(client("https://a:1").unwrap_err().to_string().contains("no TLS"));
        assert!(client("a b").is_err());
    }
}
