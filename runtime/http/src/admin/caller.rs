//! Who makes an admin call, and on which condition.

use actix_web::{
    HttpRequest,
    http::{
        Method,
        header::{HeaderName, IF_MATCH},
    },
};
use signalbox_protocol::{ErrorKind, WireError};

/// The name that a caller gives itself. Everybody with the admin token can give any name: it tells colleagues apart, and
/// proves nothing.
pub(super) const USER: HeaderName = HeaderName::from_static("x-signalbox-user");

/// Longest name that is kept, in characters.
const MAX_USER_CHARS: usize = 64;

/// The paths under `/admin/v1/` whose handlers read a query, with the method.
const WITH_QUERY: [(Method, &str); 2] = [
    (Method::POST, "/admin/v1/policies"),
    (Method::GET, "/admin/v1/decisions"),
];

/// The caller for the history and the audit log: `alice at 127.0.0.1`, or the address alone.
pub(super) fn name(request: &HttpRequest) -> String {
    let address = request
        .peer_addr()
        .map_or_else(String::new, |address| address.ip().to_canonical().to_string());
    let user = request.headers().get(USER).and_then(|user| user.to_str().ok());
    let user: String = user
        .unwrap_or_default()
        .trim()
        .chars()
        .take(MAX_USER_CHARS)
        .collect();
    match user.is_empty() {
        true => address,
        false => format!("{user} at {address}"),
    }
}

/// The revision that `If-Match` names, as `ETag` of an answer has it. `None` without the header, and for `*`.
pub(super) fn if_match(request: &HttpRequest) -> Result<Option<u64>, WireError> {
    let Some(value) = request.headers().get(IF_MATCH) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let revision = text.trim_matches('"').parse();
    revision.map(Some).map_err(|_| {
        let message = format!("If-Match is {text}; give a revision as ETag has it, such as \"7\"");
        WireError::new(ErrorKind::InvalidRequest, message)
    })
}

/// Refuses a query where none is read: a member that nobody reads is a mistake of the caller.
pub(super) fn check_query(method: &Method, path: &str, query: &str) -> Result<(), WireError> {
    let reads_query = || WITH_QUERY.iter().any(|(with, at)| with == method && *at == path);
    if query.is_empty() || !path.starts_with("/admin/v1/") || reads_query() {
        return Ok(());
    }
    let query: String = query.chars().take(100).collect();
    let message = format!("this call takes no query, and has ?{query}; its parameters go into the body");
    Err(WireError::new(ErrorKind::InvalidRequest, message))
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn a_caller_is_named_by_its_header_and_address() {
        let request = || TestRequest::get().peer_addr("10.0.0.7:1234".parse().unwrap());
        assert_eq!(name(&request().to_http_request()), "10.0.0.7");
        let named = request().insert_header((USER, " alice ")).to_http_request();
        assert_eq!(name(&named), "alice at 10.0.0.7");
        let long = request().insert_header((USER, "x".repeat(500))).to_http_request();
        assert_eq!(name(&long).len(), MAX_USER_CHARS + " at 10.0.0.7".len());
    }

    #[test]
    fn if_match_names_a_revision() {
        let read = |value: &str| {
            if_match(
                &TestRequest::get()
                    .insert_header((IF_MATCH, value))
                    .to_http_request(),
            )
            .ok()
        };
        assert_eq!(read("\"7\""), Some(Some(7)));
        assert_eq!(read("7"), Some(Some(7)));
        assert_eq!(read("*"), Some(None));
        assert_eq!(read("\"seven\""), None);
        assert_eq!(if_match(&TestRequest::get().to_http_request()).ok(), Some(None));
    }

    #[test]
    fn a_query_is_refused_where_nobody_reads_it() {
        let check = |method: Method, path: &str| check_query(&method, path, "setings=%7B%7D").is_ok();
        assert!(!check(Method::PUT, "/admin/v1/models/m/policy"));
        assert!(!check(Method::GET, "/admin/v1/policies"));
        assert!(check(Method::POST, "/admin/v1/policies"));
        assert!(check(Method::GET, "/admin/v1/decisions"));
        assert!(check(Method::GET, "/metrics"));
        assert!(check_query(&Method::PUT, "/admin/v1/models/m/policy", "").is_ok());
    }
}
