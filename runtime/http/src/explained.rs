//! Whether a client asks why its request went where it went, and may know.
//!
//! The reason names workers and costs of the whole cluster, so it is for those only who send the admin token. The header
//! `Authorization` is the engines' on the OpenAI API, so the token has a header of its own. Without the right token the
//! question is ignored: the answer does not show whether there is a token.

use actix_web::http::header::{HeaderMap, HeaderName};

use crate::admin::AdminToken;

/// Asks for the reason, with the value `1` or `true`.
const EXPLAIN: HeaderName = HeaderName::from_static("x-signalbox-explain");
/// The admin token of a request to the OpenAI API.
const TOKEN: HeaderName = HeaderName::from_static("x-signalbox-admin-token");
/// The reason, in the answer.
pub(crate) const EXPLANATION: HeaderName = HeaderName::from_static("x-signalbox-explanation");

/// Whether the answer is to have the reason.
pub(crate) fn is_asked(headers: &HeaderMap, token: &AdminToken) -> bool {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    matches!(text(&EXPLAIN), Some("1" | "true")) && text(&TOKEN).is_some_and(|given| token.matches(given))
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    #[test]
    fn only_who_sends_the_admin_token_is_told() {
        let token = AdminToken::new(Some("secret".into()));
        let asked = |explain: &'static str, given: Option<&'static str>, token: &AdminToken| {
            let mut headers = HeaderMap::new();
            headers.insert(EXPLAIN, HeaderValue::from_static(explain));
            if let Some(given) = given {
                headers.insert(TOKEN, HeaderValue::from_static(given));
            }
            is_asked(&headers, token)
        };
        assert!(asked("1", Some("secret"), &token) && asked("true", Some("secret"), &token));
        assert!(!asked("0", Some("secret"), &token));
        assert!(
            !asked("1", Some("secre"), &token) && !asked("1", Some(""), &token) && !asked("1", None, &token)
        );
        let none = AdminToken::new(None);
        assert!(
            !asked("1", Some(""), &none) && !asked("1", None, &none),
            "a router without a token"
        );
        assert!(!is_asked(&HeaderMap::new(), &token));
    }
}
