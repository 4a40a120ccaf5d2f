//! Names as tokens of NATS subjects.

use std::fmt::Write;

/// Encodes a name as one token: each byte outside `A-Z a-z 0-9 _ -` becomes `%` and two upper-case hexadecimal digits,
/// as in URLs. Different names have different tokens, and no token has a dot, a space or a wildcard. The empty name is
/// `%`.
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
    fn separators_and_wildcards_are_escaped() {
        assert_eq!(token("meta-llama/Llama_3.1"), "meta-llama%2FLlama_3%2E1");
        assert_eq!(token("> * ü%"), "%3E%20%2A%20%C3%BC%25");
        assert_eq!(token(""), "%");
    }

    proptest! {
        #[test]
        fn different_names_have_different_tokens(one: String, other: String) {
            prop_assert_eq!(token(&one) == token(&other), one == other);
            let legal = |c: char| c.is_ascii_alphanumeric() || "-_%".contains(c);
            prop_assert!(token(&one).chars().all(legal) && !token(&one).is_empty());
        }
    }
}
