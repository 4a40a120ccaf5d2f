//! Paths with slashes too many: clients join `http://host/v1/` and `/chat/completions`.

use actix_http::Request;
use actix_web::http::{Uri, uri::PathAndQuery};

/// Takes double and trailing slashes out of the request's path.
pub(crate) fn merge(request: &mut Request) {
    let Some(path) = merged(request.path()) else {
        return;
    };
    let uri = &request.head().uri;
    let path = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = PathAndQuery::try_from(path).ok();
    if let Ok(uri) = Uri::from_parts(parts) {
        request.head_mut().uri = uri;
    }
}

/// The path with single slashes and none at its end; `None` if it is so already, as nearly all are.
fn merged(path: &str) -> Option<String> {
    if !path.contains("//") && (path.len() < 2 || !path.ends_with('/')) {
        return None;
    }
    let mut merged = String::with_capacity(path.len());
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        merged.push('/');
        merged.push_str(segment);
    }
    if merged.is_empty() {
        merged.push('/');
    }
    Some(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_too_many_are_taken_out() {
        for (path, right) in [
            ("//v1//chat/completions/", "/v1/chat/completions"),
            ("/v1/models/", "/v1/models"),
            ("//", "/"),
        ] {
            assert_eq!(merged(path).as_deref(), Some(right));
        }
        for path in ["/", "/v1/models/org/model", "", "*"] {
            assert_eq!(merged(path), None);
        }
    }

    #[test]
    fn the_query_stays() {
        let mut request = Request::new();
        request.head_mut().uri = Uri::from_static("/v1//models/?a=//b/");
        merge(&mut request);
        assert_eq!(request.head().uri, Uri::from_static("/v1/models?a=//b/"));
    }
}
