//! Asks the hub for single files.
//!
//! Large files are redirected to a store of the hub with another name, by an address that is signed. So redirects are
//! followed, but the token goes to the hub alone, and never is a secure connection followed by one that is not.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::{Body, Incoming},
    header::{AUTHORIZATION, HeaderName, HeaderValue, LOCATION, USER_AGENT},
    http::uri::PathAndQuery,
};
use rustls::RootCertStore;

use super::{HubConfig, HubError, HubName, is_file_name};
use crate::http_client::{self, HttpClient};

/// Most bytes of a file. The largest published `tokenizer.json` have some 40 MB.
pub(super) const MAX_FILE_BYTES: usize = 64 << 20;

/// Most redirects of a file. The hub makes one to its store, and one where a model was renamed.
const MAX_REDIRECTS: usize = 5;

const USER: &str = concat!("signalbox/", env!("CARGO_PKG_VERSION"));

/// The checked form of a [`HubConfig`].
pub(super) struct Access {
    endpoint: Uri,
    /// The endpoint's text, without a `/` at its end.
    base: String,
    token: Option<HeaderValue>,
}

impl Access {
    pub(super) fn new(config: &HubConfig) -> Result<Self, HubError> {
        let wrong = || HubError::Endpoint(config.endpoint.clone());
        let endpoint: Uri = config.endpoint.parse().map_err(|_| wrong())?;
        let authority = endpoint.authority().ok_or_else(wrong)?;
        let is_right = matches!(endpoint.scheme_str(), Some("http" | "https"))
            && !authority.host().is_empty()
            && !authority.as_str().contains('@')
            && endpoint.query().is_none();
        if !is_right {
            return Err(wrong());
        }
        let token = config.token.as_deref().map(http_client::bearer);
        let token = token.transpose().map_err(HubError::Token)?;
        Ok(Self {
            base: config.endpoint.trim_end_matches('/').into(),
            endpoint,
            token,
        })
    }

    fn is_tls(&self) -> bool {
        self.endpoint.scheme_str() == Some("https")
    }

    /// Whether an address is one of the hub itself, which may have the token.
    pub(super) fn owns(&self, url: &Uri) -> bool {
        let place = |url: &Uri| {
            let default = if url.scheme_str() == Some("https") {
                443
            } else {
                80
            };
            let host = url.host().map(str::to_ascii_lowercase);
            (
                url.scheme_str().map(str::to_owned),
                host,
                url.port_u16().unwrap_or(default),
            )
        };
        place(url) == place(&self.endpoint)
    }

    /// The address that a redirect of `url` names.
    pub(super) fn follow(&self, url: &Uri, location: Option<&HeaderValue>) -> Result<Uri, HubError> {
        let text = location.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let refused = |reason| HubError::Redirect {
            url: shown(url),
            location: text.split('?').next().unwrap_or_default().into(),
            reason,
        };
        let target = match text.starts_with('/') && !text.starts_with("//") {
            true => {
                let mut parts = url.clone().into_parts();
                let path = text.parse::<PathAndQuery>();
                parts.path_and_query = Some(path.map_err(|_| refused("it is no address"))?);
                Uri::from_parts(parts).map_err(|_| refused("it is no address"))?
            }
            false => text.parse().map_err(|_| refused("it is no address"))?,
        };
        if target.host().is_none() || target.scheme_str().is_none() {
            return Err(refused("it is no address"));
        }
        let stays_secure = self.is_tls() && target.scheme_str() == Some("https");
        if !self.owns(&target) && !stays_secure {
            return Err(refused(
                "only the hub itself is followed, and from https:// another https://",
            ));
        }
        Ok(target)
    }
}

/// A file of a model.
#[derive(Debug)]
pub(super) struct HubFile {
    pub(super) bytes: Bytes,
    /// The revision that it is from, if the hub names it.
    pub(super) revision: Option<String>,
}

/// Sends requests to one hub.
pub(super) struct HubClient {
    access: Access,
    http: HttpClient,
}

impl HubClient {
    pub(super) fn new(config: &HubConfig) -> Result<Self, HubError> {
        let access = Access::new(config)?;
        let authorities = match access.is_tls() {
            true => http_client::authorities(None).map_err(HubError::Authorities)?,
            false => RootCertStore::empty(),
        };
        let http = http_client::client(authorities).map_err(HubError::TlsSettings)?;
        Ok(Self { access, http })
    }

    /// The file `file` of a revision of the model; `None` if the model does not have it.
    pub(super) async fn file(
        &self,
        name: &HubName,
        revision: &str,
        file: &str,
    ) -> Result<Option<HubFile>, HubError> {
        let base = &self.access.base;
        let text = format!("{base}/{name}/resolve/{revision}/{file}");
        let mut url: Uri = text.parse().map_err(|_| HubError::Endpoint(base.clone()))?;
        let mut revision = None;
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.get(&url).await?;
            // The store that a redirect leads to knows no revisions.
            revision = revision.or_else(|| revision_of(&answer));
            match answer.status() {
                StatusCode::OK => {
                    let bytes = read(&url, answer).await?;
                    return Ok(Some(HubFile { bytes, revision }));
                }
                StatusCode::NOT_FOUND => return Ok(None),
                status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) if self.access.owns(&url) => {
                    return Err(HubError::Refused {
                        name: name.clone(),
                        status,
                        has_token: self.access.token.is_some(),
                    });
                }
                status if status.is_redirection() => {
                    url = self.access.follow(&url, answer.headers().get(LOCATION))?;
                }
                status => {
                    let url = shown(&url);
                    return Err(HubError::Status { url, status });
                }
            }
        }
        Err(HubError::Redirect {
            url: text,
            location: shown(&url),
            reason: "there were too many before it",
        })
    }

    async fn get(&self, url: &Uri) -> Result<Response<Incoming>, HubError> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = url.clone();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(USER));
        if let Some(token) = self.access.token.as_ref().filter(|_| self.access.owns(url)) {
            headers.insert(AUTHORIZATION, token.clone());
        }
        let answer = self.http.request(request).await;
        answer.map_err(|error| {
            let host = url.authority().map_or("", |authority| authority.as_str());
            HubError::of_connection(host, error)
        })
    }
}

fn revision_of(answer: &Response<Incoming>) -> Option<String> {
    let header = HeaderName::from_static("x-repo-commit");
    let revision = answer.headers().get(header)?.to_str().ok()?;
    is_file_name(revision).then(|| revision.to_owned())
}

async fn read(url: &Uri, answer: Response<Incoming>) -> Result<Bytes, HubError> {
    let too_large = || HubError::TooLarge {
        url: shown(url),
        limit: MAX_FILE_BYTES,
    };
    let body = answer.into_body();
    if body.size_hint().lower() > MAX_FILE_BYTES as u64 {
        return Err(too_large());
    }
    match Limited::new(body, MAX_FILE_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(match error.downcast::<hyper::Error>() {
            Ok(error) => HubError::Lost(url.host().unwrap_or_default().into(), *error),
            Err(error) => {
                debug_assert!(error.is::<LengthLimitError>(), "the body has no other error");
                too_large()
            }
        }),
    }
}

/// An address without its query, which may be a signature.
fn shown(url: &Uri) -> String {
    let text = url.to_string();
    text.split('?').next().unwrap_or_default().into()
}
