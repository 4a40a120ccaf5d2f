//! Names as tokens of NATS subjects.

use std::fmt::Write;

/// A name as one token: what is not in `A-Z a-z 0-9 _ -` becomes `%` and two upper-case hexadecimal digits a byte, as
/// in URLs. No two names share a token, and none holds a dot, a space or a wildcard. The empty name is `%`.
pub(crate) fn token(name: &str) -> String {
    if name.is_empty() {
        return "%".into();
    }
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            token.push(byte.into());
        } else {
            // Writing to a string cannot fail.
            _ = write!(token, "%{byte:02X}");
        }
    }
    token
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_has_no_meaning_of_its_own() {
        assert_eq!(token("meta-llama/Llama_3.1"), "meta-llama%2FLlama_3%2E1");
        assert_eq!(token("> * ü%"), "%3E%20%2A%20%C3%BC%25");
        assert_eq!(token(""), "%");
    }

    proptest! {
        #[test]
        fn names_are_told_apart(one: String, other: String) {
            prop_assert_eq!(token(&one) == token(&other), one == other);
            let legal = |c: char| c.is_ascii_alphanumeric() || "-_%".contains(c);
            prop_assert!(token(&one).chars().all(legal) && !token(&one).is_empty());
        }
    }
}
