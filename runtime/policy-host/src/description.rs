//! A policy's description of itself, checked.

use std::sync::Arc;

use crate::{bindings::types, names::Names};

/// Longest name or version, in bytes: both are part of headers and metric labels.
pub(crate) const MAX_NAME: usize = 64;

/// What a policy is called and which values it wants, checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) version: String,
    /// `name@version`; `None` before it is known.
    pub(crate) label: Option<Arc<str>>,
    pub(crate) names: Names,
}

impl Description {
    /// Checks the answer of `describe`. An error is a sentence about what is wrong with it.
    pub(crate) fn check(info: types::Info) -> Result<Self, String> {
        let names = Names::resolve(&info);
        let types::Info { name, version, .. } = info;
        if !is_policy_name(&name) {
            return Err(format!(
                "its name is {name:?}; a name has 1 to {MAX_NAME} lower-case letters, digits, `-`, `_` and `.`, a letter \
                 or digit first"
            ));
        }
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
        if version.is_empty() || version.len() > MAX_NAME || !version.chars().all(is_allowed) {
            return Err(format!(
                "its version is {version:?}; a version has 1 to {MAX_NAME} letters, digits, `.`, `-` and `+`"
            ));
        }
        Ok(Self {
            label: Some(format!("{name}@{version}").into()),
            name,
            version,
            names: names?,
        })
    }
}

/// Whether `name` can name a policy: safe in URLs, headers, metric labels and file names.
pub(crate) fn is_policy_name(name: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= MAX_NAME
        && name.starts_with(is_alphanumeric)
        && name
            .chars()
            .all(|c| is_alphanumeric(c) || matches!(c, '-' | '_' | '.'))
}
