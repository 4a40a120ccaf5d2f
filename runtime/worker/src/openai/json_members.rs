//! Finds the members of a JSON object in its text, and changes some of them without writing the others anew.
//!
//! A client's body reaches the engine byte for byte but for what the adapter adds, so it is never parsed and serialised.
//! One pass finds where each member of the outermost object begins and ends. Text that is not an object is left alone:
//! the engine refuses it with its own words.

use std::ops::Range;

use bytes::Bytes;
use memchr::memchr2;

/// The places of the members of a JSON object, without those of objects inside it.
#[derive(Debug)]
pub(crate) struct JsonMembers<'a> {
    text: &'a [u8],
    members: Vec<Member>,
    /// The place of the closing brace.
    close: usize,
}

#[derive(Debug)]
struct Member {
    /// Without the quotes, and with escapes as they are written.
    key: Range<usize>,
    value: Range<usize>,
}

impl<'a> JsonMembers<'a> {
    /// `None` if the text is not one object. The values are not checked.
    pub(crate) fn find(text: &'a [u8]) -> Option<Self> {
        let mut scanner = Scanner { text, at: 0 };
        scanner.expect(b'{')?;
        let mut members = Vec::new();
        if !scanner.accept(b'}') {
            loop {
                scanner.skip_space();
                let key = scanner.string()?;
                scanner.expect(b':')?;
                scanner.skip_space();
                let value = scanner.value()?;
                members.push(Member { key, value });
                if scanner.accept(b'}') {
                    break;
                }
                scanner.expect(b',')?;
            }
        }
        let close = scanner.at - 1;
        scanner.skip_space();
        (scanner.at == text.len()).then_some(Self { text, members, close })
    }

    /// The text of a member's value. Of members with the same name, the last counts, as for common parsers.
    pub(crate) fn get(&self, key: &str) -> Option<&'a [u8]> {
        self.place(key).map(|value| &self.text[value])
    }

    /// The members' names, with escapes as they are written, and the texts of their values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let text = self.text;
        self.members
            .iter()
            .map(move |member| (&text[member.key.clone()], &text[member.value.clone()]))
    }

    fn place(&self, key: &str) -> Option<Range<usize>> {
        let is_named = |member: &&Member| &self.text[member.key.clone()] == key.as_bytes();
        let member = self.members.iter().rev().find(is_named)?;
        Some(member.value.clone())
    }
}

/// An object's text with members to replace and to add.
#[derive(Debug)]
pub(crate) struct MemberEdits<'a> {
    members: JsonMembers<'a>,
    /// In ascending order of place when they are applied.
    replaced: Vec<(Range<usize>, Vec<u8>)>,
    added: Vec<u8>,
}

impl<'a> MemberEdits<'a> {
    /// No edit of these members yet.
    pub(crate) fn of(members: JsonMembers<'a>) -> Self {
        Self {
            members,
            replaced: Vec::new(),
            added: Vec::new(),
        }
    }

    /// The members before the edits.
    pub(crate) fn members(&self) -> &JsonMembers<'a> {
        &self.members
    }

    /// Sets a member to a value in JSON: replaces its value, or adds it before the closing brace.
    pub(crate) fn set(&mut self, key: &str, value: &[u8]) {
        if let Some(place) = self.members.place(key) {
            self.replaced.push((place, value.to_vec()));
            return;
        }
        if !(self.members.members.is_empty() && self.added.is_empty()) {
            self.added.push(b',');
        }
        // Keys are names of this program's own; none needs an escape.
        self.added.push(b'"');
        self.added.extend_from_slice(key.as_bytes());
        self.added.extend_from_slice(b"\":");
        self.added.extend_from_slice(value);
    }

    /// The edited text; `None` without edits.
    pub(crate) fn apply(mut self) -> Option<Bytes> {
        if self.replaced.is_empty() && self.added.is_empty() {
            return None;
        }
        let text = self.members.text;
        let grown: usize = self.replaced.iter().map(|(_, value)| value.len()).sum();
        let mut edited = Vec::with_capacity(text.len() + grown + self.added.len());
        self.replaced.sort_by_key(|(place, _)| place.start);
        let mut copied = 0;
        for (place, value) in &self.replaced {
            edited.extend_from_slice(&text[copied..place.start]);
            edited.extend_from_slice(value);
            copied = place.end;
        }
        edited.extend_from_slice(&text[copied..self.members.close]);
        edited.extend_from_slice(&self.added);
        edited.extend_from_slice(&text[self.members.close..]);
        Some(edited.into())
    }
}

/// The length of the JSON value at the start of `text`, which must not start with a space.
pub(crate) fn value_length(text: &[u8]) -> Option<usize> {
    let mut scanner = Scanner { text, at: 0 };
    scanner.value().map(|value| value.end)
}

/// Walks over JSON text without recursion, so that no depth of nesting is too much.
struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn skip_space(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Steps over spaces and `byte`, if that comes next.
    fn accept(&mut self, byte: u8) -> bool {
        self.skip_space();
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.accept(byte).then_some(())
    }

    /// Steps over a string; returns the place of its content.
    fn string(&mut self) -> Option<Range<usize>> {
        if self.peek() != Some(b'"') {
            return None;
        }
        let start = self.at + 1;
        self.at = start;
        loop {
            self.at += memchr2(b'"', b'\\', self.text.get(self.at..)?)?;
            if self.text[self.at] == b'"' {
                self.at += 1;
                return Some(start..self.at - 1);
            }
            // The escaped byte cannot end the string.
            self.at += 2;
        }
    }

    /// Steps over a value; returns its place.
    fn value(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => _ = self.string()?,
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' if depth == 0 => return None,
                _ if depth == 0 => {
                    // A number or a word ends before the next separator, or with the text.
                    let rest = &self.text[self.at..];
                    let is_end = |byte: &u8| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace();
                    self.at += rest.iter().position(is_end).unwrap_or(rest.len());
                }
                _ => self.at += 1,
            }
            if depth == 0 {
                return Some(start..self.at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn edited(text: &str, edits: &[(&str, &str)]) -> String {
        let mut members = MemberEdits::of(JsonMembers::find(text.as_bytes()).unwrap());
        for (key, value) in edits {
            members.set(key, value.as_bytes());
        }
        let edited = members
            .apply()
            .unwrap_or_else(|| Bytes::copy_from_slice(text.as_bytes()));
        String::from_utf8(edited.to_vec()).unwrap()
    }

    #[test]
    fn only_edited_members_change() {
        for (text, edits, expected) in [
            (r#"{}"#, &[("a", "1")][..], r#"{"a":1}"#),
            (r#" { } "#, &[("a", "1"), ("b", "2")], r#" { "a":1,"b":2} "#),
            (
                r#"{"x": [1, {"a": 2}] }"#,
                &[("a", "1")],
                r#"{"x": [1, {"a": 2}] ,"a":1}"#,
            ),
            (
                r#"{"a" : "}\"," , "b":-1.5e3}"#,
                &[("b", "null"), ("a", "{}")],
                r#"{"a" : {} , "b":null}"#,
            ),
            (r#"{"a":1,"a":2}"#, &[("a", "3")], r#"{"a":1,"a":3}"#),
            (r#"{"k\"":true,"u":"\\"}"#, &[], r#"{"k\"":true,"u":"\\"}"#),
        ] {
            assert_eq!(edited(text, edits), expected, "{text}");
        }
    }

    #[test]
    fn text_that_is_no_object_is_left_alone() {
        for text in [
            "",
            "[]",
            "null",
            "{",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":}",
            "{\"a\":1",
            "{\"a\":1,}",
            "{\"a\":1}x",
            "{a:1}",
            "{\"a\\",
            "{\"a\":1]",
            "{\"a\":[1}",
            "{\"a\" 1}",
        ] {
            let found = JsonMembers::find(text.as_bytes());
            // Brackets that do not match are the engine's to refuse; only the outermost object has to be sure.
            assert!(found.is_none() || text.contains("[1}"), "{text}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[ -~\\n\u{e9}\"\\\\{}\\[\\]:,]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("[a-d\"\\\\]{0,3}", inner, 0..5)
                    .prop_map(|members| members.into_iter().collect::<Value>()),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_object_keeps_its_other_members(
            mut members in prop::collection::btree_map("[a-d\"\\\\]{0,3}", any_json(), 0..5),
            pretty in any::<bool>(),
        ) {
            let object: Value = members.clone().into_iter().collect();
            let text = if pretty { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) };
            let after = edited(&text.unwrap(), &[("a", "[7]"), ("new", "{\"x\":\"}\"}")]);
            members.insert("a".into(), json!([7]));
            members.insert("new".into(), json!({"x": "}"}));
            let expected: Value = members.into_iter().collect();
            prop_assert_eq!(serde_json::from_str::<Value>(&after).unwrap(), expected);
        }

        #[test]
        fn no_text_panics(text in "[{}\\[\\]\"\\\\:, a1]{0,40}") {
            let _ = JsonMembers::find(text.as_bytes());
            let _ = value_length(text.as_bytes());
        }
    }
}
