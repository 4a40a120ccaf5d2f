//! The only way an error becomes an HTTP answer: OpenAI's body, the status and `Retry-After` of its kind.
//!
//! Three answers are out of reach: a request head that is malformed (400), too large (431) or too slow (408) is
//! answered by the HTTP library, with an empty body, before any code here runs.

use actix_web::{
    HttpRequest, HttpResponse, ResponseError,
    error::PathError,
    http::{
        StatusCode,
        header::{self, HeaderName},
    },
};
use signalbox_protocol::{ErrorKind, RequestId, WireError};
use signalbox_router::{
    PolicyChangeError, StoreError,
    policies::{AdmissionError, RegistryError},
};

/// The header that names a request in both sides' logs.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// An error on its way to a client.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct ApiError(#[from] pub(crate) WireError);

impl ApiError {
    /// An error without a parameter at fault.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(WireError::new(kind, message))
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.0.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if let Some(seconds) = self.0.kind.retry_after_s() {
            response.insert_header((header::RETRY_AFTER, seconds));
        }
        if self.0.kind == ErrorKind::Unauthorized {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        response
            .content_type("application/json")
            .body(self.0.to_openai_json())
    }
}

/// The answer to a request that failed.
pub(crate) fn response(error: WireError, id: &RequestId) -> HttpResponse {
    let mut response = ApiError(error).error_response();
    if let Ok(value) = header::HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The client's own id where it can be one, else a random one.
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

/// Answers for a path that leads nowhere.
pub(crate) async fn not_found(request: HttpRequest) -> HttpResponse {
    let message = format!("nothing is at {} {}", request.method(), shown(&request));
    response(
        WireError::new(ErrorKind::NotFound, message),
        &request_id(&request),
    )
}

/// Answers for a path that takes other methods; `allowed` is the `Allow` header.
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

/// The request's path, cut where it is long.
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
            PolicyChangeError::Conflict(_) => ErrorKind::Conflict,
            PolicyChangeError::BrokeOff => ErrorKind::Internal,
            PolicyChangeError::Store(error) => match error {
                StoreError::Refused(_) => ErrorKind::Unprocessable,
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

    use super::*;

    fn parts(response: HttpResponse) -> (u16, Value) {
        let status = response.status().as_u16();
        let Ok(body) = response.into_body().try_into_bytes() else {
            panic!("a body in one piece")
        };
        (status, serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn an_error_has_its_kinds_status_and_openais_body() {
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
    fn an_error_that_passes_says_when_to_come_back() {
        let answer = response(
            WireError::new(ErrorKind::Overloaded, "full"),
            &RequestId::from_random(1),
        );
        assert_eq!(answer.status(), 429);
        assert_eq!(answer.headers().get(header::RETRY_AFTER).unwrap(), "1");
    }

    #[test]
    fn a_policy_change_that_may_succeed_later_says_so() {
        let away = PolicyChangeError::from(StoreError::Unavailable("NATS is not connected".into()));
        let answer = ApiError::from(away).error_response();
        assert!(answer.headers().get(header::RETRY_AFTER).is_some());
        let (status, body) = parts(answer);
        assert_eq!(status, 503);
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("NATS is not connected"), "{message}");
        let faster = PolicyChangeError::Conflict("somebody was faster".into());
        assert_eq!(ApiError::from(faster).status_code(), 409);
    }

    #[test]
    fn a_clients_id_is_kept_only_where_it_is_safe_in_logs() {
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
    fn a_method_that_is_not_taken_is_told_which_is() {
        let request = TestRequest::get().uri("/v1/completions").to_http_request();
        let answer = method_not_allowed(&request, "POST");
        assert_eq!(answer.headers().get(header::ALLOW).unwrap(), "POST");
        let (status, body) = parts(answer);
        assert_eq!(status, 405);
        assert!(body["error"]["message"].as_str().unwrap().contains("use POST"));
    }
}
