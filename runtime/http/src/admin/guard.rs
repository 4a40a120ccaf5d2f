//! Decides which requests the admin listener accepts.
//!
//! With a token, requests must carry it. Without a token the listener is on loopback, where programs of the same
//! machine are trusted. But a web page in the machine's browser can reach loopback too. Browsers always send a page's
//! `Origin` and the name in `Host`, so these two headers identify requests of foreign pages, which are refused.

use std::net::{IpAddr, SocketAddr};

use actix_web::http::{
    Uri,
    header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN},
};
use signalbox_protocol::{ErrorKind, WireError};

use super::token::same;

/// Whether a listener at this address is reachable from other machines.
pub(crate) fn is_exposed(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}

/// Accepts a request, or returns the reason why not.
pub(super) fn check(token: Option<&str>, headers: &HeaderMap) -> Result<(), WireError> {
    let refuse = |message: &str| Err(WireError::new(ErrorKind::Unauthorized, message));
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if let Some(token) = token {
        let given = text(AUTHORIZATION).and_then(|value| value.split_once(' '));
        return match given {
            Some((scheme, given)) if scheme.eq_ignore_ascii_case("bearer") && same(given.trim(), token) => {
                Ok(())
            }
            Some(_) => refuse("the admin token is wrong; send the configured token as Authorization: Bearer"),
            None => refuse("the admin API needs its token; send it as Authorization: Bearer"),
        };
    }
    let host = text(HOST).unwrap_or_default();
    if !names_loopback(host) {
        return refuse(
            "without an admin token the admin API takes only requests whose Host is an IP address or localhost",
        );
    }
    match text(ORIGIN) {
        Some(origin)
            if origin
                .split_once("://")
                .is_none_or(|(_, from)| !from.eq_ignore_ascii_case(host)) =>
        {
            refuse("without an admin token the admin API takes no requests from web pages of other origins")
        }
        _ => Ok(()),
    }
}

/// Whether this is a host that foreign DNS cannot point at this machine: an IP address or `localhost`.
fn names_loopback(host: &str) -> bool {
    let Ok(uri) = host.parse::<Uri>() else {
        return false;
    };
    let name = uri.host().unwrap_or_default();
    let bare = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(given: &[(HeaderName, &'static str)]) -> HeaderMap {
        given
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn with_a_token_only_requests_with_it_are_accepted() {
        let accepts = |value| check(Some("secret"), &headers(&[(AUTHORIZATION, value)])).is_ok();
        assert!(accepts("Bearer secret"));
        assert!(accepts("bearer secret"));
        for wrong in [
            "Bearer secrets",
            "Bearer secre",
            "Bearer ",
            "Basic secret",
            "secret",
            "",
        ] {
            assert!(!accepts(wrong), "{wrong:?}");
        }
        let error = check(Some("secret"), &headers(&[])).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unauthorized);
    }

    #[test]
    fn without_a_token_programs_are_accepted_and_foreign_pages_are_not() {
        let accepts = |given: &[_]| check(None, &headers(given)).is_ok();
        assert!(accepts(&[(HOST, "127.0.0.1:9090")]));
        assert!(accepts(&[(HOST, "localhost:9090")]));
        assert!(accepts(&[(HOST, "[::1]:9090")]));
        assert!(
            accepts(&[(HOST, "127.0.0.1:9090"), (ORIGIN, "http://127.0.0.1:9090")]),
            "a page of the same origin"
        );
        assert!(!accepts(&[
            (HOST, "127.0.0.1:9090"),
            (ORIGIN, "https://evil.example")
        ]));
        assert!(!accepts(&[(HOST, "127.0.0.1:9090"), (ORIGIN, "null")]));
        assert!(
            !accepts(&[(HOST, "evil.example:9090")]),
            "a name that foreign DNS points here"
        );
        assert!(!accepts(&[]));
    }

    #[test]
    fn only_loopback_needs_no_token() {
        for (address, exposed) in [
            ("127.0.0.1:1", false),
            ("127.8.8.8:1", false),
            ("[::1]:1", false),
            ("0.0.0.0:1", true),
            ("10.0.0.1:1", true),
        ] {
            assert_eq!(is_exposed(address.parse().unwrap()), exposed, "{address}");
        }
    }
}
