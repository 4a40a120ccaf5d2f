//! Numbers as Python prints them.
//!
//! Templates of the reference print numbers with Python's `repr`: `1e-05`, and integers of any length. The template
//! engine prints `0.00001`, and a JSON number beyond 64 bits becomes a rounded float. Every other number prints alike
//! in both.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr, Value};
use serde_json::Value as Json;

/// The one member of an object that stands for an integer beyond 64 bits, between [`with_long_integers_kept`] and
/// [`long_integer`]. The control character keeps it apart from names that clients use.
const LONG_INTEGER: &str = "\0integer";
/// The digits of the shortest integer beyond 64 bits that may be written with a sign.
const LONG_DIGITS: usize = 19;

/// A number that the template engine prints otherwise than Python.
#[derive(Debug)]
pub(crate) struct PythonNumber {
    text: String,
    approximate: f64,
}

impl PythonNumber {
    /// The number as a float.
    pub(crate) fn approximate(&self) -> f64 {
        self.approximate
    }

    /// Whether Python has the number as an `int`.
    pub(crate) fn is_integer(&self) -> bool {
        !self.text.contains(['.', 'e'])
    }
}

impl Object for PythonNumber {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The float as a value that prints as in Python.
pub(crate) fn float(value: f64) -> Value {
    let size = value.abs();
    if size == 0.0 || (1e-4..1e16).contains(&size) || !size.is_finite() {
        return Value::from(value);
    }
    Value::from_object(PythonNumber {
        text: python_repr(value),
        approximate: value,
    })
}

/// Python's `repr` of a float: the shortest digits that read back as the same float, with an exponent below 1e-4 and
/// from 1e16 on.
pub(crate) fn python_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return (if value > 0.0 { "inf" } else { "-inf" }).to_owned();
    }
    let size = value.abs();
    if size == 0.0 || (1e-4..1e16).contains(&size) {
        let digits = value.to_string();
        return if digits.contains('.') {
            digits
        } else {
            format!("{digits}.0")
        };
    }
    let scientific = format!("{value:e}");
    match scientific.split_once('e') {
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
        None => scientific,
    }
}

/// The JSON text with every integer beyond 64 bits, which a parser would round to a float, in a form that
/// [`long_integer`] recognises, and with `-0`, which is the integer 0 in Python, as `0`.
pub(crate) fn with_long_integers_kept(json: &str) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    let mut kept: Option<String> = None;
    let mut copied = 0;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = end_of_string(bytes, at),
            b'-' | b'0'..=b'9' => {
                let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                let length = bytes[at..].iter().take_while(|byte| is_part(byte)).count();
                if let Some(form) = kept_form(&json[at..at + length]) {
                    let kept = kept.get_or_insert_default();
                    kept.push_str(&json[copied..at]);
                    kept.push_str(&form);
                    copied = at + length;
                }
                at += length;
            }
            _ => at += 1,
        }
    }
    match kept {
        Some(mut kept) => {
            kept.push_str(&json[copied..]);
            Cow::Owned(kept)
        }
        None => Cow::Borrowed(json),
    }
}

/// The index behind the string that begins at `start`.
fn end_of_string(json: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    json.len()
}

/// `None` for a number that a parser keeps as it is.
fn kept_form(number: &str) -> Option<String> {
    let digits = number.strip_prefix('-').unwrap_or(number);
    if number == "-0" {
        return Some("0".to_owned());
    }
    let whole = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    let fits = number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok();
    (whole && digits.len() >= LONG_DIGITS && !fits).then(|| format!(r#"{{"\u0000integer":"{number}"}}"#))
}

/// The integer that `members` stand for, if [`with_long_integers_kept`] wrote them.
pub(crate) fn long_integer(members: &serde_json::Map<String, Json>) -> Option<Value> {
    let number = match members.get(LONG_INTEGER) {
        Some(Json::String(number)) if members.len() == 1 => number,
        _ => return None,
    };
    let digits = number.strip_prefix('-').unwrap_or(number);
    if digits.len() < LONG_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    if let Ok(integer) = number.parse::<i128>() {
        return Some(Value::from(integer));
    }
    Some(Value::from_object(PythonNumber {
        text: number.clone(),
        approximate: number.parse().unwrap_or(f64::INFINITY),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The expected texts are those of CPython 3.11's `repr`.
    #[test]
    fn floats_print_as_in_python() {
        for (value, expected) in [
            (1e-5, "1e-05"),
            (0.000_099, "9.9e-05"),
            (1e-4, "0.0001"),
            (1e-7, "1e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1e22, "1e+22"),
            (1.5e300, "1.5e+300"),
            (-2.5e-10, "-2.5e-10"),
            (5e-324, "5e-324"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (123_456_789.125, "123456789.125"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(python_repr(value), expected);
            assert_eq!(float(value).to_string(), expected);
        }
    }

    #[test]
    fn integers_beyond_64_bits_are_kept_and_all_others_left_alone() {
        let read = |json: &str| {
            let kept: Json = serde_json::from_str(&with_long_integers_kept(json)).unwrap();
            long_integer(kept.as_object().unwrap()).unwrap().to_string()
        };
        for number in [
            "18446744073709551616",
            "-9223372036854775809",
            "123456789012345678901234567890",
            "-340282366920938463463374607431768211456000",
        ] {
            assert_eq!(read(number), number);
        }
        for same in [
            r#"{"a": 18446744073709551615, "b": -9223372036854775808}"#,
            r#"{"a": 1.2345678901234567890123, "b": 12345678901234567890e1, "c": "123456789012345678901234567890"}"#,
            r#""\"123456789012345678901234567890""#,
            "",
            "-",
            "\"",
            "\"\\",
        ] {
            assert_eq!(with_long_integers_kept(same), same);
        }
        assert_eq!(with_long_integers_kept("[-0, -0.0, 1]"), "[0, -0.0, 1]");
    }

    proptest! {
        #[test]
        fn keeping_integers_never_changes_whether_a_text_is_json(text in "[\\[\\]{}:,\"\\\\0-9e.+ -]{0,40}") {
            let kept = with_long_integers_kept(&text);
            let read: Result<Json, _> = serde_json::from_str(&kept);
            // `1e999` is the one number that JSON has and the parser has not.
            if serde_json::from_str::<Json>(&text).is_ok() {
                prop_assert!(read.is_ok());
            }
        }

        #[test]
        fn every_float_reads_back_from_its_text(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            prop_assert_eq!(python_repr(value).parse::<f64>().unwrap().to_bits(), bits);
        }
    }
}
