//! Parameters taken from a body whose engine checks it. A value of an unexpected type counts as absent.

use serde_json::Value;

use crate::openai::{Fields, integer as as_integer};

/// The parameter's value, if it has one that is not too large to be kept.
pub(super) fn value(fields: &mut Fields, name: &str) -> Option<Value> {
    fields.take(name).ok().flatten()
}

/// Whether the parameter has a value, of any type and size.
pub(super) fn is_given(fields: &mut Fields, name: &str) -> bool {
    !matches!(fields.take(name), Ok(None))
}

/// A string.
pub(super) fn text(fields: &mut Fields, name: &str) -> Option<String> {
    match value(fields, name)? {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// A string that is a member of an object.
pub(super) fn member_text(fields: &mut Fields, name: &str, member: &str) -> Option<String> {
    match value(fields, name)?.get_mut(member)?.take() {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// An integer.
pub(super) fn integer(fields: &mut Fields, name: &str) -> Option<i64> {
    as_integer(&value(fields, name)?)
}

/// An integer of at least 1.
pub(super) fn count(fields: &mut Fields, name: &str) -> Option<u32> {
    let count = u32::try_from(integer(fields, name)?).ok()?;
    (count > 0).then_some(count)
}

/// A truth value, as [`truth`] reads it.
pub(super) fn flag(fields: &mut Fields, name: &str) -> Option<bool> {
    truth(&value(fields, name)?)
}

/// `stream_options.include_usage`.
pub(super) fn include_usage(fields: &mut Fields) -> bool {
    value(fields, "stream_options")
        .and_then(|options| truth(options.get("include_usage")?))
        .unwrap_or(false)
}

/// The most tokens of a prompt after which the engine cuts it; `u32::MAX` for the model's context.
pub(super) fn truncation(fields: &mut Fields) -> Option<u32> {
    let limit = integer(fields, "truncate_prompt_tokens")?;
    Some(u32::try_from(limit).unwrap_or(u32::MAX))
}

/// A truth value as vLLM and SGLang read it. Their reader is pydantic, which also takes 1, 0 and some words. The answer is
/// a stream or a document accordingly, so the reading must be the engine's.
/// <https://docs.pydantic.dev/latest/concepts/conversion_table/>
fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::Number(_) => match as_integer(value) {
            Some(0) => Some(false),
            Some(1) => Some(true),
            _ => None,
        },
        Value::String(word) => {
            let is = |words: [&str; 6]| words.iter().any(|one| word.eq_ignore_ascii_case(one));
            match () {
                () if is(["1", "true", "t", "yes", "y", "on"]) => Some(true),
                () if is(["0", "false", "f", "no", "n", "off"]) => Some(false),
                () => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn truth_values_are_read_as_pydantic_reads_them() {
        for (value, expected) in [
            (json!(true), Some(true)),
            (json!(1), Some(true)),
            (json!(1.0), Some(true)),
            (json!("Yes"), Some(true)),
            (json!("on"), Some(true)),
            (json!(false), Some(false)),
            (json!(0), Some(false)),
            (json!("OFF"), Some(false)),
            (json!(2), None),
            (json!("stream"), None),
            (json!([true]), None),
        ] {
            assert_eq!(truth(&value), expected, "{value}");
        }
    }

    #[test]
    fn a_value_of_another_type_is_absent() {
        let body = br#"{"n":"two","user":{},"metadata":{"user_id":7},"max_tokens":0,"priority":1.5}"#;
        let names = &["n", "user", "metadata", "max_tokens", "priority"][..];
        let mut fields = Fields::parse(body, &[names]).unwrap();
        assert_eq!(count(&mut fields, "n"), None);
        assert_eq!(text(&mut fields, "user"), None);
        assert_eq!(member_text(&mut fields, "metadata", "user_id"), None);
        assert_eq!(count(&mut fields, "max_tokens"), None);
        assert_eq!(integer(&mut fields, "priority"), None);
    }
}
