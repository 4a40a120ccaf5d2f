//! Hashes of what a client names, for policies: by members of the body, and by headers.
//!
//! Policies see no text of a client, only whether two requests name the same thing. `wit/types.wit` (`request-keys`) says
//! what each key stands for.

use std::sync::Arc;

use actix_web::http::header::{HeaderMap, HeaderName};
use signalbox_protocol::name_hash;
use signalbox_router::{RequestKeys, RouteRequest};

const SESSION: HeaderName = HeaderName::from_static("x-session-id");

/// The headers that policies see, beside the session's.
#[derive(Debug, Clone, Default)]
pub(crate) struct ShownHeaders {
    /// The one that names the tenant; `None` for none.
    pub(crate) tenant: Option<HeaderName>,
    /// Others, each with the name that policies ask for.
    pub(crate) others: Vec<(HeaderName, Arc<str>)>,
}

/// The names that a body gives.
#[derive(Debug, Default)]
pub(crate) struct BodyNames {
    pub(crate) session_id: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) prompt_cache_key: Option<String>,
    pub(crate) safety_identifier: Option<String>,
}

impl BodyNames {
    /// The keys of these names. The session is the most exact name of the conversation that there is.
    pub(crate) fn keys(&self) -> RequestKeys {
        let key = |name: &Option<String>| name.as_deref().map_or(0, name_hash);
        let (user, cache_key) = (key(&self.user), key(&self.prompt_cache_key));
        let sessions = [key(&self.session_id), cache_key, user];
        RequestKeys {
            session: sessions.into_iter().find(|key| *key != 0).unwrap_or(0),
            user,
            cache_key,
            safety_identifier: key(&self.safety_identifier),
            ..RequestKeys::default()
        }
    }
}

/// The keys that a request's headers give.
#[derive(Debug, Clone, Default)]
pub(crate) struct HeaderKeys {
    /// 0 for none, as below.
    session: u64,
    tenant: u64,
    headers: Arc<[(Arc<str>, u64)]>,
}

impl HeaderKeys {
    /// Reads the header of the session, and those that are shown to policies.
    pub(crate) fn read(headers: &HeaderMap, shown: &ShownHeaders) -> Self {
        let key = |name: &HeaderName| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.map_or(0, name_hash)
        };
        let tenant = shown.tenant.as_ref().map_or(0, key);
        let shown = shown
            .others
            .iter()
            .filter_map(|(header, name)| match key(header) {
                0 => None,
                key => Some((name.clone(), key)),
            });
        let shown: Vec<_> = shown.collect();
        Self {
            session: key(&SESSION),
            tenant,
            headers: if shown.is_empty() {
                Arc::default()
            } else {
                shown.into()
            },
        }
    }

    /// Adds the keys to a request, in each form.
    pub(crate) fn add_to(&self, request: &mut RouteRequest) {
        let RouteRequest {
            keys, other_forms, ..
        } = request;
        if self.session != 0 {
            keys.session = self.session;
        }
        keys.tenant = self.tenant;
        keys.headers = self.headers.clone();
        for form in other_forms {
            self.add_to(form);
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    #[test]
    fn the_session_is_the_most_exact_name() {
        let name = |name: &str| Some(name.to_owned());
        let mut names = BodyNames {
            user: name("u"),
            safety_identifier: name("s"),
            ..BodyNames::default()
        };
        assert_eq!(names.keys().session, name_hash("u"));
        names.prompt_cache_key = name("k");
        assert_eq!(names.keys().session, name_hash("k"));
        names.session_id = name("id");
        let keys = names.keys();
        assert_eq!(keys.session, name_hash("id"));
        assert_eq!(
            (keys.user, keys.cache_key, keys.safety_identifier),
            (name_hash("u"), name_hash("k"), name_hash("s"))
        );
        names.session_id = name("");
        assert_eq!(names.keys().session, name_hash("k"), "an empty name is none");
    }

    #[test]
    fn only_shown_headers_are_read() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-team", "a"), ("x-secret", "b"), ("x-tenant-id", "t")] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let others = ["x-team", "x-absent"].map(|name| (HeaderName::from_static(name), Arc::from(name)));
        let mut shown = ShownHeaders {
            tenant: Some(HeaderName::from_static("x-tenant-id")),
            others: others.into(),
        };
        let keys = HeaderKeys::read(&headers, &shown);
        assert_eq!(*keys.headers, [(Arc::from("x-team"), name_hash("a"))]);
        assert_eq!((keys.session, keys.tenant), (0, name_hash("t")));
        shown.tenant = Some(HeaderName::from_static("x-team"));
        assert_eq!(HeaderKeys::read(&headers, &shown).tenant, name_hash("a"));
        shown.tenant = None;
        assert_eq!(HeaderKeys::read(&headers, &shown).tenant, 0, "none is read");
    }
}
