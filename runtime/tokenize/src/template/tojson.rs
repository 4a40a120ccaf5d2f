//! The `tojson` filter of the reference: Python's `json.dumps` without HTML escapes, and by default without
//! `ensure_ascii`.

use std::fmt::Write;

use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Error, ErrorKind};

use super::arguments::Arguments;
use crate::numbers::{PythonNumber, python_repr};

/// The widest indent, in spaces. Larger ones are reduced to it, so that a mistake in a template cannot fill the memory.
const MAX_INDENT: usize = 32;
/// Most levels of nesting. The parser of clients' JSON allows 128; a template may add some.
const MAX_DEPTH: usize = 200;

/// `value|tojson(ensure_ascii, indent, separators, sort_keys)`: the arguments of the reference, in its order.
pub(super) fn tojson(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let arguments = Arguments::of(arguments.into_values())?;
    let ascii = arguments.flag(0, "ensure_ascii")?.unwrap_or(false);
    let indent = match arguments.get(1, "indent")? {
        Some(indent) if indent.is_number() => Some(usize::try_from(indent)?.min(MAX_INDENT)),
        _ => None,
    };
    let (item, key) = match arguments.get(2, "separators")? {
        Some(separators) => two_texts(&separators)?,
        None => (
            (if indent.is_some() { "," } else { ", " }).to_owned(),
            ": ".to_owned(),
        ),
    };
    let sorted = arguments.flag(3, "sort_keys")?.unwrap_or(false);
    arguments.finish(4)?;
    let mut writer = Writer {
        json: String::new(),
        item,
        key,
        indent,
        ascii,
        sorted,
        depth: 0,
    };
    writer.value(value)?;
    Ok(writer.json)
}

fn two_texts(separators: &Value) -> Result<(String, String), Error> {
    let texts: Vec<String> = separators
        .try_iter()?
        .filter_map(|text| text.as_str().map(str::to_owned))
        .collect();
    match <[String; 2]>::try_from(texts) {
        Ok([item, key]) if separators.len() == Some(2) => Ok((item, key)),
        _ => Err(invalid("separators should be two strings".to_owned())),
    }
}

fn invalid(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {reason}"))
}

/// Writes JSON with the white space and the numbers of Python's `json.dumps`.
struct Writer {
    json: String,
    item: String,
    key: String,
    indent: Option<usize>,
    ascii: bool,
    sorted: bool,
    depth: usize,
}

impl Writer {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.json.push_str("null"),
            ValueKind::Bool => self.json.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value)?,
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.array(value)?,
            ValueKind::Map => self.object(value)?,
            ValueKind::Plain if value.downcast_object_ref::<PythonNumber>().is_some() => {
                write!(self.json, "{value}").map_err(Error::from)?;
            }
            other => return Err(invalid(format!("a value of type {other} has no JSON"))),
        }
        Ok(())
    }

    fn number(&mut self, value: &Value) -> Result<(), Error> {
        if value.is_integer() {
            return write!(self.json, "{value}").map_err(Error::from);
        }
        let float = f64::try_from(value.clone())?;
        self.json.push_str(match float {
            float if float.is_nan() => "NaN",
            f64::INFINITY => "Infinity",
            f64::NEG_INFINITY => "-Infinity",
            _ => return write!(self.json, "{}", python_repr(float)).map_err(Error::from),
        });
        Ok(())
    }

    fn array(&mut self, value: &Value) -> Result<(), Error> {
        self.open('[')?;
        let mut filled = false;
        for item in value.try_iter()?.checked() {
            self.element(filled);
            self.value(&item?)?;
            filled = true;
        }
        self.close(']', filled);
        Ok(())
    }

    fn object(&mut self, value: &Value) -> Result<(), Error> {
        self.open('{')?;
        let mut members = Vec::new();
        for name in value.try_iter()?.checked() {
            let name = name?;
            let member = value.get_item(&name)?;
            members.push((member_name(&name)?, member));
        }
        if self.sorted {
            members.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        let filled = !members.is_empty();
        for (index, (name, member)) in members.iter().enumerate() {
            self.element(index > 0);
            self.string(name);
            self.json.push_str(&self.key);
            self.value(member)?;
        }
        self.close('}', filled);
        Ok(())
    }

    fn open(&mut self, bracket: char) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(invalid(format!("the value has more than {MAX_DEPTH} levels")));
        }
        self.json.push(bracket);
        Ok(())
    }

    fn close(&mut self, bracket: char, filled: bool) {
        self.depth -= 1;
        if filled {
            self.line();
        }
        self.json.push(bracket);
    }

    fn element(&mut self, behind_another: bool) {
        if behind_another {
            self.json.push_str(&self.item);
        }
        self.line();
    }

    fn line(&mut self) {
        if let Some(indent) = self.indent {
            self.json.push('\n');
            self.json.extend(std::iter::repeat_n(' ', self.depth * indent));
        }
    }

    fn string(&mut self, text: &str) {
        self.json.push('"');
        let mut copied = 0;
        for (at, character) in text.char_indices() {
            let escaped = match character {
                '"' => "\\\"",
                '\\' => "\\\\",
                '\n' => "\\n",
                '\r' => "\\r",
                '\t' => "\\t",
                '\u{8}' => "\\b",
                '\u{c}' => "\\f",
                '\0'..='\u{1f}' => "",
                '\u{7f}'.. if self.ascii => "",
                _ => continue,
            };
            self.json.push_str(&text[copied..at]);
            copied = at + character.len_utf8();
            self.json.push_str(escaped);
            if escaped.is_empty() {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a string never fails.
                    let _ = write!(self.json, "\\u{unit:04x}");
                }
            }
        }
        self.json.push_str(&text[copied..]);
        self.json.push('"');
    }
}

/// The name of a member as `json.dumps` writes it: numbers, booleans and none become texts.
fn member_name(name: &Value) -> Result<String, Error> {
    Ok(match name.kind() {
        ValueKind::String => name.as_str().unwrap_or_default().to_owned(),
        ValueKind::Bool => (if name.is_true() { "true" } else { "false" }).to_owned(),
        ValueKind::None => "null".to_owned(),
        ValueKind::Number if name.is_integer() => name.to_string(),
        ValueKind::Number => python_repr(f64::try_from(name.clone())?),
        other => return Err(invalid(format!("a member's name is of type {other}"))),
    })
}
