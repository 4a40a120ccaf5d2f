//! Requests that web pages of other origins make (CORS), if the operator allows their origin.
//!
//! A browser asks before such a request (`OPTIONS`, the preflight), and hands an answer to the page only if the answer allows
//! the page's origin. No cookies are involved: keys are in headers that the page sets.

use actix_http::{HttpMessage, Request, Response, header::HeaderMap};
use actix_web::http::{
    Method, StatusCode,
    header::{self, HeaderValue},
};

/// Headers of answers that pages may read beside the usual ones.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-request-id, x-signalbox-worker, x-signalbox-policy, x-signalbox-overlap-blocks, x-signalbox-kv, retry-after",
);

/// How long a browser keeps the answer to a preflight: an hour, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("3600");

/// The origins whose pages may use the API.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cors {
    origins: Vec<String>,
}

impl Cors {
    /// `origins` are scheme, host and port, such as `https://chat.example`, or `*` for all.
    pub(crate) fn new(origins: Vec<String>) -> Self {
        Self { origins }
    }

    /// The origin that the answer to this request allows.
    pub(crate) fn allowed(&self, request: &Request) -> Option<HeaderValue> {
        if self.origins.is_empty() {
            return None;
        }
        let origin = request.headers().get(header::ORIGIN)?;
        let is_allowed = |allowed: &String| allowed == "*" || allowed.as_bytes() == origin.as_bytes();
        self.origins.iter().any(is_allowed).then(|| origin.clone())
    }
}

/// The answer to a preflight of a page of an allowed origin; `None` for other requests.
pub(crate) fn preflight(request: &Request) -> Option<Response<()>> {
    if request.method() != Method::OPTIONS {
        return None;
    }
    let asked = request.headers();
    asked.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    let mut response = Response::with_body(StatusCode::NO_CONTENT, ());
    let headers = response.headers_mut();
    let methods = HeaderValue::from_static("GET, HEAD, POST");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    if let Some(names) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    Some(response)
}

/// Allows `origin` to read an answer with these headers.
pub(crate) fn allow(origin: HeaderValue, headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    // A cache must not give one origin's answer to another.
    headers.append(header::VARY, HeaderValue::from_static("origin"));
}
