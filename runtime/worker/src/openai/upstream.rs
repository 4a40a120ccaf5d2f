//! The HTTP connection to an engine next door.
//!
//! uvicorn, under vLLM and SGLang, closes a connection that was idle for 5 s (measured on vLLM 0.32). A request that is
//! sent at that moment fails without an answer, so connections are dropped well before.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderMap, HeaderValue},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout;

/// Longest time that a connection is kept without a request.
const IDLE_LIMIT: Duration = Duration::from_millis(3_500);

/// Connections kept without a request. A stream has a connection of its own, so bursts need many.
const MAX_IDLE: usize = 256;

/// Longest time to connect: an engine on the same network answers in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest head of an answer. Engines send less than 1 KiB.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Longest time for a whole answer about the engine itself.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer about the engine itself. vLLM's metrics are some 60 KiB per model.
const MAX_FACTS_BYTES: usize = 8 << 20;

/// The address of an engine: `http://host:port`, and a path before all of its routes, if any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// `host:port`.
    authority: String,
    host: String,
    port: u16,
    /// Empty, or a path that begins with `/` and does not end with it.
    prefix: String,
}

/// Why a text is not the address of an engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamUrlError {
    /// TLS to engines is not supported.
    #[error(
        "{0} is https; only http:// is supported to engines, so use the engine's plain port or a TLS proxy beside it"
    )]
    Https(String),
    /// Not an URL of this form.
    #[error("{0:?} is no address of an engine; give http://host:port")]
    Invalid(String),
}

impl FromStr for UpstreamUrl {
    type Err = UpstreamUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || UpstreamUrlError::Invalid(text.into());
        let uri: Uri = text.parse().map_err(|_| invalid())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(UpstreamUrlError::Https(text.into())),
            _ => return Err(invalid()),
        }
        let authority = uri.authority().ok_or_else(invalid)?;
        if authority.host().is_empty() || authority.as_str().contains('@') || uri.query().is_some() {
            return Err(invalid());
        }
        let port = authority.port_u16().unwrap_or(80);
        let path = uri.path().trim_end_matches('/');
        Ok(Self {
            authority: format!("{}:{port}", authority.host()),
            host: authority.host().trim_matches(['[', ']']).into(),
            port,
            // Clients write the address of OpenAI's API with `/v1`, which every route here has itself.
            prefix: path.strip_suffix("/v1").unwrap_or(path).into(),
        })
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.prefix)
    }
}

impl UpstreamUrl {
    /// The host, without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and port as a name of a worker: letters, digits and `-`.
    pub fn as_name(&self) -> String {
        let mut name: String = format!("{}-{}", self.host, self.port)
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        // A worker's name has at most 64 bytes, of which a data-parallel rank may need some. The port tells engines apart.
        if name.len() > MAX_NAME_BYTES {
            name.drain(..name.len() - MAX_NAME_BYTES);
        }
        name
    }
}

/// Longest name made from an address.
const MAX_NAME_BYTES: usize = 56;

/// Why the engine gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection: the engine does not run, or is not reachable.
    #[error("cannot connect to the engine at {0}")]
    Connect(Arc<str>, #[source] hyper_util::client::legacy::Error),
    /// The connection ended without an answer.
    #[error("the engine at {0} closed the connection without an answer")]
    NoAnswer(Arc<str>, #[source] hyper_util::client::legacy::Error),
    /// The connection ended within the answer.
    #[error("the connection to the engine at {0} was lost within the answer")]
    Lost(Arc<str>, #[source] hyper::Error),
    /// No answer in time.
    #[error("the engine at {0} did not answer within {1:?}")]
    TimedOut(Arc<str>, Duration),
    /// The answer is too large.
    #[error("the answer of the engine at {0} is larger than {1} bytes")]
    TooLarge(Arc<str>, usize),
    /// The request cannot be sent, such as one with a control character in a header.
    #[error("the request cannot be sent to the engine")]
    Request(#[source] hyper::http::Error),
}

/// Sends requests to one engine. Clone = handle; the clones share their connections.
#[derive(Debug, Clone)]
pub struct Upstream {
    url: UpstreamUrl,
    /// The address as text, before every path.
    base: Arc<str>,
    client: Client<HttpConnector, Full<Bytes>>,
    /// `Authorization`, for engines that require a key.
    key: Option<HeaderValue>,
}

/// An answer in whole.
#[derive(Debug)]
pub(crate) struct WholeAnswer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

impl Upstream {
    /// Connections are made when they are needed. `key` is what the engine was started with as its API key.
    ///
    /// # Errors
    /// The key has characters that no header can have.
    pub fn new(url: UpstreamUrl, key: Option<&str>) -> Result<Self, header::InvalidHeaderValue> {
        let key = match key {
            Some(key) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {key}"))?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let mut connector = HttpConnector::new();
        // A request is one write, and must not wait for the acknowledgement of an earlier one.
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        // A machine that disappears sends nothing; the probes end its connections.
        connector.set_keepalive(Some(Duration::from_secs(15)));
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_LIMIT)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_buf_size(MAX_HEAD_BYTES)
            .build(connector);
        let base = url.to_string().into();
        Ok(Self {
            url,
            base,
            client,
            key,
        })
    }

    /// The engine's address.
    pub fn url(&self) -> &UpstreamUrl {
        &self.url
    }

    /// Sends a request, and returns when the head of the answer is there.
    ///
    /// # Errors
    /// There is no answer. A request that fails as [`UpstreamError::NoAnswer`] may have reached the engine.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let Self {
            base, client, key, ..
        } = self;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{base}{path}"))
            .body(Full::new(body))
            .map_err(UpstreamError::Request)?;
        *request.headers_mut() = headers;
        if let Some(key) = key {
            request.headers_mut().insert(header::AUTHORIZATION, key.clone());
        }
        client
            .request(request)
            .await
            .map_err(|error| match error.is_connect() {
                true => UpstreamError::Connect(base.clone(), error),
                false => UpstreamError::NoAnswer(base.clone(), error),
            })
    }

    /// Reads an answer's body of at most `limit` bytes.
    pub(crate) async fn read_whole(
        &self,
        answer: Response<Incoming>,
        limit: usize,
    ) -> Result<WholeAnswer, UpstreamError> {
        let status = answer.status();
        match Limited::new(answer.into_body(), limit).collect().await {
            Ok(body) => Ok(WholeAnswer {
                status,
                body: body.to_bytes(),
            }),
            Err(error) => Err(match error.downcast::<hyper::Error>() {
                Ok(error) => UpstreamError::Lost(self.base.clone(), *error),
                Err(error) => {
                    debug_assert!(error.is::<LengthLimitError>(), "the body has no other error");
                    UpstreamError::TooLarge(self.base.clone(), limit)
                }
            }),
        }
    }

    /// Reads what the engine states about itself.
    ///
    /// # Errors
    /// There is no whole answer within 5 s.
    pub(crate) async fn get(&self, path: &str) -> Result<WholeAnswer, UpstreamError> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    /// Asks the engine something that costs it no generation, in JSON.
    ///
    /// # Errors
    /// There is no whole answer within 5 s.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        json: Bytes,
    ) -> Result<WholeAnswer, UpstreamError> {
        self.exchange(method, path, json, QUESTION_TIMEOUT).await
    }

    /// Sends JSON, and reads the whole answer within `limit`: status and body.
    ///
    /// # Errors
    /// There is no whole answer in time.
    pub async fn post(
        &self,
        path: &str,
        json: String,
        limit: Duration,
    ) -> Result<(u16, Bytes), UpstreamError> {
        let answer = self.exchange(Method::POST, path, json.into(), limit).await?;
        Ok((answer.status.as_u16(), answer.body))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        json: Bytes,
        limit: Duration,
    ) -> Result<WholeAnswer, UpstreamError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let answer = async {
            let answer = self.send(method, path, headers, json).await?;
            self.read_whole(answer, MAX_FACTS_BYTES).await
        };
        match timeout(limit, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(UpstreamError::TimedOut(self.base.clone(), limit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_host_and_port() {
        for (text, shown, host, name) in [
            ("http://gpu-1:8000", "http://gpu-1:8000", "gpu-1", "gpu-1-8000"),
            (
                "http://gpu-1:8000/v1/",
                "http://gpu-1:8000",
                "gpu-1",
                "gpu-1-8000",
            ),
            (
                "http://10.0.0.1/a/b",
                "http://10.0.0.1:80/a/b",
                "10.0.0.1",
                "10-0-0-1-80",
            ),
            ("http://[::1]:9", "http://[::1]:9", "::1", "--1-9"),
        ] {
            let url: UpstreamUrl = text.parse().unwrap();
            assert_eq!(
                (url.to_string().as_str(), url.host(), url.as_name().as_str()),
                (shown, host, name)
            );
        }
    }

    #[test]
    fn an_address_that_cannot_work_is_refused_with_what_would_be_right() {
        for text in [
            "",
            "gpu-1:8000",
            "ftp://a",
            "http://",
            "http://u:p@h:1",
            "http://h:1?x=1",
            "/v1",
        ] {
            let error = text.parse::<UpstreamUrl>().unwrap_err().to_string();
            assert!(error.contains("http://host:port"), "{text}: {error}");
        }
        let error = "https://h".parse::<UpstreamUrl>().unwrap_err();
        assert!(error.to_string().contains("only http://"), "{error}");
    }

    #[test]
    fn a_long_name_keeps_the_part_that_tells_engines_apart() {
        let url: UpstreamUrl = format!("http://{}.example.com:8001", "a".repeat(63))
            .parse()
            .unwrap();
        assert!(url.as_name().len() <= 56 && url.as_name().ends_with("-example-com-8001"));
    }
}
