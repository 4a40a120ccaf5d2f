//! The admin API's token, which can be replaced while it is in use.

use std::sync::{Arc, PoisonError, RwLock};

/// The token that requests to the admin API carry. A clone is a handle on the same token.
#[derive(Clone)]
pub struct AdminToken(Arc<RwLock<Option<Arc<str>>>>);

impl AdminToken {
    pub(crate) fn new(token: Option<String>) -> Self {
        Self(Arc::new(RwLock::new(token.map(Into::into))))
    }

    /// The token of requests from now on; `None` for an API without a token.
    pub(crate) fn present(&self) -> Option<Arc<str>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether there is a token, and `given` is it.
    pub(crate) fn matches(&self, given: &str) -> bool {
        self.present().is_some_and(|token| same(given, &token))
    }

    /// Takes another token in place of the present one. Requests with the present one are refused from now on. An API that
    /// has a token keeps one, and one without stays without: whether it is open to other machines was checked with that.
    ///
    /// # Errors
    /// There was no token, or there would be none.
    pub fn replace(&self, token: &str) -> Result<(), &'static str> {
        let mut present = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if present.is_none() || token.is_empty() {
            return Err("a token can be replaced, and not added or removed, while the router runs");
        }
        *present = Some(token.into());
        Ok(())
    }
}

/// Compares in a time that does not depend on how many bytes are right.
pub(super) fn same(given: &str, token: &str) -> bool {
    let differing = given
        .bytes()
        .zip(token.bytes())
        .fold(0, |differing, (a, b)| differing | (a ^ b));
    given.len() == token.len() && differing == 0
}

impl std::fmt::Debug for AdminToken {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminToken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_replaced_by_a_token_only() {
        let token = AdminToken::new(Some("old".into()));
        let admin = token.clone();
        assert!(token.replace("").is_err());
        assert_eq!(admin.present().as_deref(), Some("old"));
        token.replace("new").unwrap();
        assert_eq!(admin.present().as_deref(), Some("new"));
        assert!(AdminToken::new(None).replace("new").is_err());
    }
}
