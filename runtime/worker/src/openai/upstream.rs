//! The HTTP connection to an engine next door, with or without TLS.

use std::{fmt, path::Path, str::FromStr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderMap, HeaderValue},
};
use rustls::RootCertStore;
use tokio::time::timeout;

use crate::http_client::{self, AuthoritiesError, HttpClient, TlsFault};

/// Longest time for a whole answer about the engine itself.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer about the engine itself. vLLM's metrics are some 60 KiB per model.
const MAX_FACTS_BYTES: usize = 8 << 20;

/// The address of an engine: `http://host:port` or `https://host:port`, and a path before all of its routes, if any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamUrl {
    is_tls: bool,
    /// `host:port`.
    authority: String,
    host: String,
    port: u16,
    /// Empty, or a path that begins with `/` and does not end with it.
    prefix: String,
}

/// A text is not the address of an engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address of an engine; give http://host:port or https://host:port")]
pub struct UpstreamUrlError(String);

impl FromStr for UpstreamUrl {
    type Err = UpstreamUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || UpstreamUrlError(text.into());
        let uri: Uri = text.parse().map_err(|_| invalid())?;
        let is_tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(invalid()),
        };
        let authority = uri.authority().ok_or_else(invalid)?;
        if authority.host().is_empty() || authority.as_str().contains('@') || uri.query().is_some() {
            return Err(invalid());
        }
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let path = uri.path().trim_end_matches('/');
        Ok(Self {
            is_tls,
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
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.prefix)
    }
}

impl UpstreamUrl {
    /// Whether the engine speaks TLS.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

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

/// Why requests to the engine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamSetupError {
    /// The key fits no header.
    #[error("--upstream-key has characters that no header can have")]
    Key(#[source] header::InvalidHeaderValue),
    /// There is nobody to vouch for the engine.
    #[error("the certificate of the engine at {0} cannot be checked")]
    Authorities(Arc<str>, #[source] AuthoritiesError),
    /// rustls refuses its settings.
    #[error("TLS cannot be used")]
    Tls(#[source] rustls::Error),
}

/// Why the engine gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection: the engine does not run, or is not reachable.
    #[error("cannot connect to the engine at {0}")]
    Connect(Arc<str>, #[source] hyper_util::client::legacy::Error),
    /// The engine's certificate is from an authority that is not trusted.
    #[error(
        "the certificate of the engine at {0} is from an authority that is not trusted here; give the authority's \
         certificate (PEM) with --upstream-ca"
    )]
    UnknownIssuer(Arc<str>),
    /// The engine answers without TLS.
    #[error("the engine at {0} does not speak TLS; give its address with http://")]
    NoTls(Arc<str>),
    /// There is no secure connection for another reason.
    #[error("TLS with the engine at {0} failed: {1}")]
    Tls(Arc<str>, String),
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
    client: HttpClient,
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
    /// Connections are made when they are needed. `key` is what the engine was started with as its API key. `ca` is a file
    /// of certificate authorities (PEM) to trust beside the machine's.
    ///
    /// # Errors
    /// The key has characters that no header can have, or there are no authorities for an engine with TLS.
    pub fn new(url: UpstreamUrl, key: Option<&str>, ca: Option<&Path>) -> Result<Self, UpstreamSetupError> {
        let key = key
            .map(http_client::bearer)
            .transpose()
            .map_err(UpstreamSetupError::Key)?;
        let base: Arc<str> = url.to_string().into();
        let authorities = match url.is_tls {
            true => http_client::authorities(ca)
                .map_err(|error| UpstreamSetupError::Authorities(base.clone(), error))?,
            false => RootCertStore::empty(),
        };
        let client = http_client::client(authorities).map_err(UpstreamSetupError::Tls)?;
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
            .map_err(|error| match (error.is_connect(), TlsFault::of(&error)) {
                (true, None) => UpstreamError::Connect(base.clone(), error),
                (true, Some(TlsFault::UnknownIssuer)) => UpstreamError::UnknownIssuer(base.clone()),
                (true, Some(TlsFault::NoTls)) => UpstreamError::NoTls(base.clone()),
                (true, Some(TlsFault::Other(reason))) => UpstreamError::Tls(base.clone(), reason),
                (false, _) => UpstreamError::NoAnswer(base.clone(), error),
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
            ("https://gpu-1/v1", "https://gpu-1:443", "gpu-1", "gpu-1-443"),
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
    }

    #[test]
    fn a_long_name_keeps_the_part_that_tells_engines_apart() {
        let url: UpstreamUrl = format!("http://{}.example.com:8001", "a".repeat(63))
            .parse()
            .unwrap();
        assert!(url.as_name().len() <= 56 && url.as_name().ends_with("-example-com-8001"));
    }
}
