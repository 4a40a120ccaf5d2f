//! A policy's description of itself, checked.

use crate::{
    bindings::types::{self, Columns},
    convert,
    signals::Signal,
};

/// Longest name or version, in bytes: both are part of headers and metric labels.
pub(crate) const MAX_NAME: usize = 64;

/// What a policy is called and which values it wants, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) columns: Columns,
    /// Whether any of `columns` is optional, or any of `signals` is computed from an optional column.
    pub(crate) wants_optional: bool,
    pub(crate) signals: Vec<Signal>,
}

impl Description {
    /// Checks the answer of `describe`. An error is a sentence about what is wrong with it.
    pub(crate) fn check(info: types::Info) -> Result<Self, String> {
        let types::Info {
            name,
            version,
            columns,
            extra,
        } = info;
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
        let signals = Signal::named(&extra)?;
        let reads_optional = signals.iter().any(|signal| signal.reads_optional());
        Ok(Self {
            name,
            version,
            columns,
            wants_optional: convert::wants_optional(columns) || reads_optional,
            signals,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn wants_optional(columns: Columns, extra: &[&str]) -> bool {
        let info = types::Info {
            name: "p".into(),
            version: "1".into(),
            columns,
            extra: extra.iter().map(ToString::to_string).collect(),
        };
        Description::check(info).unwrap().wants_optional
    }

    #[test]
    fn the_optional_columns_are_filled_for_a_policy_that_names_one_or_a_signal_of_one() {
        let required = Columns::OVERLAP_DEVICE | Columns::REQUESTS;
        assert!(!wants_optional(required, &["kv-use", "overlap-share"]));
        assert!(wants_optional(required | Columns::TRAITS, &[]));
        assert!(wants_optional(required, &["approximate"]));
    }
}
