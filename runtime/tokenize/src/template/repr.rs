//! Python's `repr` of lists and dictionaries, which is what a template prints for them.

use std::fmt::{self, Write};

use minijinja::value::{Value, ValueKind};

use crate::numbers::python_repr;

/// Most levels of nesting. Python has no such bound; a value of so many levels comes from no template.
const MAX_DEPTH: usize = 200;

/// Writes the `repr` of a list, tuple or dictionary. `None` for any other value, which prints as its text.
pub(super) fn of_container(value: &Value) -> Option<String> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map) {
        return None;
    }
    let mut repr = String::new();
    write_repr(&mut repr, value, 0).ok()?;
    Some(repr)
}

fn write_repr(out: &mut String, value: &Value, depth: usize) -> fmt::Result {
    if depth > MAX_DEPTH {
        return Err(fmt::Error);
    }
    match value.kind() {
        ValueKind::String => write_text(out, value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => {
            let float = f64::try_from(value.clone()).map_err(|_| fmt::Error)?;
            out.write_str(&python_repr(float))
        }
        ValueKind::Seq => {
            let is_tuple = value.is_tuple();
            out.push(if is_tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter().map_err(|_| fmt::Error)? {
                if count > 0 {
                    out.push_str(", ");
                }
                write_repr(out, &item, depth + 1)?;
                count += 1;
            }
            out.push_str(match (is_tuple, count) {
                (true, 1) => ",)",
                (true, _) => ")",
                (false, _) => "]",
            });
            Ok(())
        }
        ValueKind::Map => {
            out.push('{');
            for (index, name) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_repr(out, &name, depth + 1)?;
                out.push_str(": ");
                let member = value.get_item(&name).map_err(|_| fmt::Error)?;
                write_repr(out, &member, depth + 1)?;
            }
            out.push('}');
            Ok(())
        }
        ValueKind::Undefined => out.write_str("Undefined"),
        _ => write!(out, "{value}"),
    }
}

fn write_text(out: &mut String, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            character if character == quote => {
                out.push('\\');
                out.push(character);
            }
            ' '..='~' => out.push(character),
            character if is_printable(character) => out.push(character),
            character => match u32::from(character) {
                code @ ..=0xff => write!(out, "\\x{code:02x}")?,
                code @ ..=0xffff => write!(out, "\\u{code:04x}")?,
                code => write!(out, "\\U{code:08x}")?,
            },
        }
    }
    out.push(quote);
    Ok(())
}

/// Python's `str.isprintable`. Rust's escapes follow the same categories of Unicode; behind another character they
/// leave out the rule for marks that combine with it.
fn is_printable(character: char) -> bool {
    let mut buffer = [b'a', 0, 0, 0, 0];
    let length = character.encode_utf8(&mut buffer[1..]).len();
    let text = std::str::from_utf8(&buffer[..=length]).unwrap_or_default();
    text.escape_debug().nth(1) == Some(character)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The expected text is that of CPython 3.11.
    #[test]
    fn containers_print_as_in_python() {
        let value = crate::values::value(&json!({
            "a'b": ["it's", "say \"hi\"", "both ' and \"", "\u{a0}\u{3000}\u{2028}\u{200b}\u{7f}\n\\", "é😀", 1e-5, 1.0],
            "c": [null, true, {}, []],
        }));
        assert_eq!(
            of_container(&value).unwrap(),
            r#"{"a'b": ["it's", 'say "hi"', 'both \' and "', '\xa0\u3000\u2028\u200b\x7f\n\\', 'é😀', 1e-05, 1.0], 'c': [None, True, {}, []]}"#
        );
        let combining = Value::from_iter(["e\u{301}"]);
        assert_eq!(of_container(&combining).unwrap(), "['e\u{301}']");
        assert_eq!(of_container(&Value::from("a")), None);
        let tuple = Value::from(minijinja::value::Tuple::from([Value::from(1)]));
        assert_eq!(of_container(&tuple).unwrap(), "(1,)");
    }
}
