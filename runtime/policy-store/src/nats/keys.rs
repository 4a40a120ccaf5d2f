//! The encoding of keys in NATS.
//!
//! A key in NATS is `{namespace}.{key}`, both encoded: letters, digits, `-`, `_` and `/` stand for themselves, every
//! other byte becomes `=` and two hexadecimal digits. So `active/llama3:8b` of `default` is
//! `default.active/llama3=3A8b`. Dots are encoded too, because a dot ends a token of a subject; the only dot ends the
//! namespace.

/// The keys of one namespace within a bucket.
#[derive(Debug)]
pub(super) struct KeySpace {
    /// `$KV.{bucket}.`
    subjects: String,
    /// The encoded namespace with its dot.
    prefix: String,
    namespace: String,
}

impl KeySpace {
    pub(super) fn new(bucket: &str, namespace: &str) -> Self {
        let mut prefix = String::new();
        encode(namespace, &mut prefix);
        prefix.push('.');
        Self {
            subjects: format!("$KV.{bucket}."),
            prefix,
            namespace: namespace.to_owned(),
        }
    }

    /// A key as the bucket stores it.
    pub(super) fn encode(&self, key: &str) -> String {
        let mut encoded = self.prefix.clone();
        encode(key, &mut encoded);
        encoded
    }

    /// The key that a message's subject stands for; `None` if it is not a key of this namespace.
    pub(super) fn decode_subject(&self, subject: &str) -> Option<String> {
        decode(subject.strip_prefix(&self.subjects)?.strip_prefix(&self.prefix)?)
    }

    /// The filter that matches the subjects of all keys of this namespace.
    pub(super) fn filter(&self) -> String {
        format!("{}{}>", self.subjects, self.prefix)
    }

    /// The name of an object, which the client encodes itself.
    pub(super) fn object(&self, digest: &str) -> String {
        format!("{}/{digest}", self.namespace)
    }
}

fn encode(text: &str, encoded: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'/' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("={byte:02X}")),
        }
    }
}

fn decode(encoded: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'=' {
            bytes.push(byte);
            continue;
        }
        let (high, low) = (char::from(rest.next()?), char::from(rest.next()?));
        bytes.push((high.to_digit(16)? * 16 + low.to_digit(16)?) as u8);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_encoded_as_documented() {
        let keys = KeySpace::new("signalbox-policies", "default");
        assert_eq!(keys.encode("active/llama3:8b"), "default.active/llama3=3A8b");
        assert_eq!(
            keys.encode("active/org/model v1.5"),
            "default.active/org/model=20v1=2E5"
        );
        assert_eq!(keys.filter(), "$KV.signalbox-policies.default.>");
        for foreign in [
            "$KV.other.default.a",
            "$KV.signalbox-policies.default2.a",
            "$KV.signalbox-policies.default.=4",
        ] {
            assert_eq!(keys.decode_subject(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn every_key_decodes_to_itself_in_its_own_namespace_only(namespace in "\\PC{0,12}", key in "\\PC{1,40}", other in "\\PC{0,12}") {
            let keys = KeySpace::new("b", &namespace);
            let encoded = keys.encode(&key);
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_=.".contains(&byte);
            prop_assert!(encoded.bytes().all(allowed));
            prop_assert_eq!(encoded.bytes().filter(|&byte| byte == b'.').count(), 1);
            let subject = format!("$KV.b.{encoded}");
            let seen = KeySpace::new("b", &other).decode_subject(&subject);
            prop_assert_eq!(seen, (other == namespace).then(|| key.clone()));
            prop_assert_eq!(keys.decode_subject(&subject), Some(key));
        }
    }
}
