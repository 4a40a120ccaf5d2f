//! Turns errors into HTTP answers: the body of the route's API, and the status and `Retry-After` of the error. All errors
//! pass here.
//!
//! Some answers are made elsewhere, with an empty body and before any code here runs. The HTTP library answers a request
//! head that is malformed (400), too large (431) or, at the start of a connection, too slow (408). `connection` answers a
//! later head that is too slow (408) and one with bare line feeds (400), `listener` a connection too many (429).

use actix_web::{
    HttpRequest, HttpResponse, ResponseError,
    error::PathError,
    http::{
        StatusCode,
        header::{self, HeaderName},
    },
};
use signalbox_protocol::{Endpoint, ErrorKind, RequestId, WireError};
use signalbox_router::{
    PolicyChangeError, StoreError,
    policies::{AdmissionError, RegistryError},
};

use crate::dialect;

/// The header with the request's id, which both sides log.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// `Retry-After` of an engine's answer that has too much to do, in seconds: as for Signalbox's own.
const ENGINE_RETRY_S: u32 = 1;

/// An error on its way to a client.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct ApiError(#[from] pub(crate) WireError);

impl ApiError {
    /// An error that no single parameter caused.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(WireError::new(kind, message))
    }

    fn response(&self, body: String) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if let Some(seconds) = self.retry_after_s() {
            response.insert_header((header::RETRY_AFTER, seconds));
        }
        if self.0.kind == ErrorKind::Unauthorized {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        response.content_type("application/json").body(body)
    }

    /// Seconds after which a retry may succeed. An engine's status counts more than the kind, which says whether a router
    /// may try another worker.
    fn retry_after_s(&self) -> Option<u32> {
        match &self.0.engine {
            Some(engine) => matches!(engine.status, 429 | 503).then_some(ENGINE_RETRY_S),
            None => self.0.retry_after_s.or_else(|| self.0.kind.retry_after_s()),
        }
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.0.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        self.response(self.0.to_openai_json())
    }
}

/// The answer to a request that failed.
pub(crate) fn response(error: WireError, id: &RequestId) -> HttpResponse {
    with_id(ApiError(error).error_response(), id)
}

/// The answer to a request to `endpoint` that failed, in the shape of that route.
pub(crate) fn response_at(endpoint: Endpoint, error: WireError, id: &RequestId) -> HttpResponse {
    let body = dialect::body(endpoint, &error);
    with_id(ApiError(error).response(body), id)
}

fn with_id(mut response: HttpResponse, id: &RequestId) -> HttpResponse {
    if let Ok(value) = header::HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The client's id for the request if it is valid, else a random one.
pub(crate) fn request_id(request: &HttpRequest) -> RequestId {
    let own = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .and_then(RequestId::from_client);
    own.unwrap_or_else(|| RequestId::from_random(rand::random()))
}

/// An error for a path that cannot be decoded.
pub(crate) fn bad_path(error: &PathError) -> ApiError {
    ApiError::new(ErrorKind::NotFound, format!("the path cannot be read: {error}"))
}

/// The answer for an unknown path.
pub(crate) async fn not_found(request: HttpRequest) -> HttpResponse {
    let message = format!("{} {} does not exist", request.method(), shown(&request));
    response(
        WireError::new(ErrorKind::NotFound, message),
        &request_id(&request),
    )
}

/// The answer for a path that does not take this method; `allowed` is the `Allow` header.
pub(crate) fn method_not_allowed(request: &HttpRequest, allowed: &'static str) -> HttpResponse {
    let message = format!(
        "{} does not take {}; use {allowed}",
        shown(request),
        request.method()
    );
    let mut response = response(
        WireError::new(ErrorKind::MethodNotAllowed, message),
        &request_id(request),
    );
    response
        .headers_mut()
        .insert(header::ALLOW, header::HeaderValue::from_static(allowed));
    response
}

/// The request's path, shortened if it is long.
fn shown(request: &HttpRequest) -> String {
    /// Longest path repeated in an error.
    const SHOWN_CHARS: usize = 200;
    request.path().chars().take(SHOWN_CHARS).collect()
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        let message = error.to_string();
        Self::new(
            match error {
                RegistryError::Unknown { .. } => ErrorKind::NotFound,
                RegistryError::Admission(AdmissionError::TooLarge { .. }) => ErrorKind::TooLarge,
                RegistryError::Admission(_) => ErrorKind::Unprocessable,
                RegistryError::Conflict(_) => ErrorKind::Conflict,
            },
            message,
        )
    }
}

impl From<PolicyChangeError> for ApiError {
    fn from(error: PolicyChangeError) -> Self {
        let kind = match &error {
            PolicyChangeError::Registry(error) => return error.clone().into(),
            PolicyChangeError::Changed(_) | PolicyChangeError::Conflict(_) => ErrorKind::Conflict,
            PolicyChangeError::BrokeOff => ErrorKind::Internal,
            PolicyChangeError::Store(error) => match error {
                StoreError::Refused(_) => ErrorKind::Unprocessable,
                StoreError::Full(_) => ErrorKind::StorageFull,
                StoreError::Conflict { .. } | StoreError::Missing { .. } | StoreError::Damaged { .. } => {
                    ErrorKind::Conflict
                }
                StoreError::Unavailable(_) => ErrorKind::Unavailable,
                StoreError::Folder { .. } => ErrorKind::Internal,
            },
        };
        Self::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use actix_web::{body::MessageBody, test::TestRequest};
    use serde_json::Value;
    use signalbox_protocol::EngineError;

    use super::*;

    fn parts(response: HttpResponse) -> (u16, Value) {
        let status = response.status().as_u16();
        let Ok(body) = response.into_body().try_into_bytes() else {
            panic!("a body in one piece")
        };
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn an_error_has_the_status_of_its_kind_and_openais_body() {
        let id = RequestId::from_client("trace-1").unwrap();
        let answer = response(WireError::invalid_param("n", "n is 0"), &id);
        assert_eq!(answer.headers().get(REQUEST_ID).unwrap(), "trace-1");
        assert!(answer.headers().get(header::RETRY_AFTER).is_none());
        let (status, body) = parts(answer);
        assert_eq!((status, &body["error"]["param"]), (400, &"n".into()));
        let keys: Vec<_> = body["error"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(keys.len(), 4, "{keys:?}");
    }

    #[test]
    fn a_temporary_error_has_retry_after() {
        let answer = response(
            WireError::new(ErrorKind::Overloaded, "full"),
            &RequestId::from_random(1),
        );
        assert_eq!(answer.status(), 429);
        assert_eq!(answer.headers().get(header::RETRY_AFTER).unwrap(), "1");
    }

    #[test]
    fn an_engines_error_keeps_its_status_and_body_and_has_retry_after_if_the_status_asks_for_it() {
        for (status, retry_after) in [(400, false), (429, true), (500, false), (503, true)] {
            let error = WireError {
                engine: Some(Box::new(EngineError {
                    status,
                    body: r#"{"error": {"message":"as is"}}"#.into(),
                })),
                // The router may move the request to another worker.
                ..WireError::new(ErrorKind::Unavailable, "the engine failed")
            };
            let answer = response_at(Endpoint::Chat, error, &RequestId::from_random(1));
            let retries = answer.headers().get(header::RETRY_AFTER).is_some();
            assert_eq!((answer.status().as_u16(), retries), (status, retry_after));
            let body = answer.into_body().try_into_bytes().unwrap();
            assert_eq!(body, r#"{"error": {"message":"as is"}}"#);
        }
    }

    #[test]
    fn a_policy_change_that_may_succeed_later_has_retry_after() {
        let unavailable = PolicyChangeError::from(StoreError::Unavailable("NATS is not connected".into()));
        let answer = ApiError::from(unavailable).error_response();
        assert!(answer.headers().get(header::RETRY_AFTER).is_some());
        let (status, body) = parts(answer);
        assert_eq!(status, 503);
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("NATS is not connected"), "{message}");
        let conflict = PolicyChangeError::Conflict("another change came first".into());
        assert_eq!(ApiError::from(conflict).status_code(), 409);
    }

    #[test]
    fn a_clients_request_id_is_kept_only_if_it_is_safe_in_logs() {
        let own = TestRequest::default()
            .insert_header((REQUEST_ID, "abc"))
            .to_http_request();
        assert_eq!(request_id(&own).as_str(), "abc");
        let long = TestRequest::default()
            .insert_header((REQUEST_ID, "x".repeat(65)))
            .to_http_request();
        assert_eq!(request_id(&long).as_str().len(), 32);
        let spaced = TestRequest::default()
            .insert_header((REQUEST_ID, "a b"))
            .to_http_request();
        assert_eq!(request_id(&spaced).as_str().len(), 32);
    }

    #[test]
    fn a_wrong_method_is_answered_with_the_right_one() {
        let request = TestRequest::get().uri("/v1/completions").to_http_request();
        let answer = method_not_allowed(&request, "POST");
        assert_eq!(answer.headers().get(header::ALLOW).unwrap(), "POST");
        let (status, body) = parts(answer);
        assert_eq!(status, 405);
        assert!(body["error"]["message"].as_str().unwrap().contains("use POST"));
    }
}
