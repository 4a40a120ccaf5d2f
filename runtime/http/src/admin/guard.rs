//! Who may use the admin listener.
//!
//! With a token, whoever has it. Without one the listener is on loopback, where the machine's own programs are
//! trusted; but a web page in the machine's browser can reach loopback too, so a request that a page sent from
//! elsewhere is refused by what browsers cannot help telling: its `Origin`, and the name in `Host`.

use std::net::{IpAddr, SocketAddr};

use actix_web::http::{
    Uri,
    header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN},
};
use signalbox_protocol::{ErrorKind, WireError};

/// Whether a listener there is reachable from other machines.
pub(crate) fn is_exposed(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}

/// Lets a request in or says why not.
pub(super) fn check(token: Option<&str>, headers: &HeaderMap) -> Result<(), WireError> {
    let refuse = |message: &str| Err(WireError::new(ErrorKind::Unauthorized, message));
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if let Some(token) = token {
        let given = text(AUTHORIZATION).and_then(|value| value.split_once(' '));
        return match given {
            Some((scheme, given)) if scheme.eq_ignore_ascii_case("bearer") && same(given.trim(), token) => {
                Ok(())
            }
            Some(_) => refuse("the admin token is wrong; send the configured one as Authorization: Bearer"),
            None => refuse("the admin API needs its token; send it as Authorization: Bearer"),
        };
    }
    let host = text(HOST).unwrap_or_default();
    if !names_loopback(host) {
        return refuse(
            "without an admin token the admin API answers only to an IP address or localhost as its host",
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

/// Takes as long for a wrong token as for the right one of the same length.
fn same(given: &str, token: &str) -> bool {
    let differing = given
        .bytes()
        .zip(token.bytes())
        .fold(0, |differing, (a, b)| differing | (a ^ b));
    given.len() == token.len() && differing == 0
}

/// A name that no stranger's DNS can lead here.
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
    fn with_a_token_only_its_bearer_comes_in() {
        let verdict = |value| check(Some("secret"), &headers(&[(AUTHORIZATION, value)])).is_ok();
        assert!(verdict("Bearer secret"));
        assert!(verdict("bearer secret"));
        for wrong in [
            "Bearer secrets",
            "Bearer secre",
            "Bearer ",
            "Basic secret",
            "secret",
            "",
        ] {
            assert!(!verdict(wrong), "{wrong:?}");
        }
        let error = check(Some("secret"), &headers(&[])).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unauthorized);
    }

    #[test]
    fn without_a_token_programs_come_in_and_foreign_pages_do_not() {
        let verdict = |given: &[_]| check(None, &headers(given)).is_ok();
        assert!(verdict(&[(HOST, "127.0.0.1:9090")]));
        assert!(verdict(&[(HOST, "localhost:9090")]));
        assert!(verdict(&[(HOST, "[::1]:9090")]));
        assert!(
            verdict(&[(HOST, "127.0.0.1:9090"), (ORIGIN, "http://127.0.0.1:9090")]),
            "a page of its own"
        );
        assert!(!verdict(&[
            (HOST, "127.0.0.1:9090"),
            (ORIGIN, "https://evil.example")
        ]));
        assert!(!verdict(&[(HOST, "127.0.0.1:9090"), (ORIGIN, "null")]));
        assert!(
            !verdict(&[(HOST, "evil.example:9090")]),
            "a name made to lead here"
        );
        assert!(!verdict(&[]));
    }

    #[test]
    fn loopback_alone_needs_no_token() {
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
