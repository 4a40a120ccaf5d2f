//! Filters and tests of Jinja2 whose result differs in the template engine, or that it lacks.

use minijinja::value::{ObjectRepr, Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State};

use super::arguments::Arguments;
use super::python_text::{is_space, lines};
use super::repr;
use crate::numbers::PythonNumber;

/// The widest indent or padding, in characters, so that a mistake in a template cannot fill the memory.
const MAX_WIDTH: usize = 4096;

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_filter("trim", trim);
    environment.add_filter("string", string);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("indent", indent);
    environment.add_filter("wordcount", wordcount);
    environment.add_filter("truncate", truncate);
    environment.add_filter("center", center);
    environment.add_filter("urlencode", urlencode);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_test("callable", is_callable);
    environment.add_test("number", |value: &Value| {
        value.is_number() || long(value).is_some()
    });
    for name in ["integer", "int"] {
        environment.add_test(name, |value: &Value| {
            value.is_integer() || long(value).is_some_and(PythonNumber::is_integer)
        });
    }
    environment.add_test("float", |value: &Value| {
        (value.kind() == ValueKind::Number && !value.is_integer())
            || long(value).is_some_and(|number| !number.is_integer())
    });
}

fn long(value: &Value) -> Option<&PythonNumber> {
    value.downcast_object_ref()
}

/// The text of a value, as Jinja2's `soft_str` gives it.
fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None => repr::of_container(value).unwrap_or_else(|| value.to_string()),
    }
}

fn trim(value: &Value, chars: Option<&str>) -> Value {
    let trimmed = |text: &str| {
        Value::from(match chars {
            Some(chars) => text.trim_matches(|character| chars.contains(character)),
            None => text.trim_matches(is_space),
        })
    };
    match value.as_str() {
        Some(text) => trimmed(text),
        None => trimmed(&text(value)),
    }
}

/// The text of a value, as `{{ value }}` prints it.
fn string(value: &Value) -> Value {
    match value.as_str() {
        Some(_) => value.clone(),
        None => Value::from(text(value)),
    }
}

/// Python's `int`, and the default for what is no number.
fn int(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let arguments = Arguments::of(arguments.into_values())?;
    let default = arguments.get(0, "default")?.unwrap_or_else(|| Value::from(0));
    let base = arguments.size(1, "base")?.unwrap_or(10) as u32;
    arguments.finish(2)?;
    if value.is_integer() || long(value).is_some_and(PythonNumber::is_integer) {
        return Ok(value.clone());
    }
    if let Some(text) = value.as_str() {
        let digits = text.trim_matches(is_space);
        let digits = match base {
            16 => digits.trim_start_matches("0x").trim_start_matches("0X"),
            8 => digits.trim_start_matches("0o").trim_start_matches("0O"),
            2 => digits.trim_start_matches("0b").trim_start_matches("0B"),
            _ => digits,
        };
        if (2..=36).contains(&base)
            && let Ok(integer) = i128::from_str_radix(digits, base)
        {
            return Ok(Value::from(integer));
        }
    }
    let number = as_float(value).filter(|number| number.is_finite());
    Ok(number.map_or(default, |number| Value::from(number as i128)))
}

/// Python's `float`, and the default for what is no number.
fn float(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let arguments = Arguments::of(arguments.into_values())?;
    let default = arguments.get(0, "default")?.unwrap_or_else(|| Value::from(0.0));
    arguments.finish(1)?;
    Ok(as_float(value).map_or(default, crate::numbers::float))
}

fn as_float(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::String => value.as_str()?.trim_matches(is_space).parse().ok(),
        _ => long(value).map(PythonNumber::approximate),
    }
}

/// The lines after the first, and the first if asked for, begin with `width` spaces or a text.
fn indent(state: &State<'_, '_>, value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let arguments = Arguments::of(arguments.into_values())?;
    let width = arguments.get(0, "width")?.unwrap_or_else(|| Value::from(4));
    let first = arguments.flag(1, "first")?.unwrap_or(false);
    let blank = arguments.flag(2, "blank")?.unwrap_or(false);
    arguments.finish(3)?;
    let indention = match width.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(usize::try_from(width)?.min(MAX_WIDTH)),
    };
    // Jinja2 appends a line break first, so that a text that ends in one keeps it.
    let text = text(value) + "\n";
    let lines = lines(&text, false);
    // What a template prints is counted too; this counts what it only computes.
    state.consume_fuel((lines.len() * indention.len() / 64) as u64)?;
    let mut indented = String::with_capacity(text.len() + lines.len() * indention.len());
    for (index, line) in lines.into_iter().enumerate() {
        if index > 0 {
            indented.push('\n');
        }
        if (index == 0 && first) || (index > 0 && (blank || !line.is_empty())) {
            indented.push_str(&indention);
        }
        indented.push_str(line);
    }
    Ok(Value::from(indented))
}

fn wordcount(value: &Value) -> usize {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    text(value)
        .split(|character| !is_word(character))
        .filter(|word| !word.is_empty())
        .count()
}

fn truncate(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let arguments = Arguments::of(arguments.into_values())?;
    let length = arguments.size(0, "length")?.unwrap_or(255);
    let kill_words = arguments.flag(1, "killwords")?.unwrap_or(false);
    let end = arguments.text(2, "end")?.unwrap_or_else(|| "...".to_owned());
    let leeway = arguments.size(3, "leeway")?.unwrap_or(5);
    arguments.finish(4)?;
    let text = text(value);
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(Value::from(text));
    }
    let kept = length.checked_sub(end.chars().count()).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidOperation,
            "truncate: the length is less than that of the end",
        )
    })?;
    let cut = text
        .char_indices()
        .nth(kept)
        .map_or(&*text, |(at, _)| &text[..at]);
    let cut = match cut.rsplit_once(' ') {
        Some((words, _)) if !kill_words => words,
        _ => cut,
    };
    Ok(Value::from(format!("{cut}{end}")))
}

fn center(state: &mut State<'_, '_>, value: &Value, width: Option<usize>) -> Result<Value, Error> {
    let text = Value::from(text(value));
    text.call_method(state, "center", &[Value::from(width.unwrap_or(80))])
}

/// The text with all but letters, digits and `_.-~/` written as `%XX`.
fn urlencode(value: &Value) -> Result<String, Error> {
    let Some(text) = value.as_str() else {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "urlencode is supported for strings only",
        ));
    };
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"_.-~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(encoded)
}

/// Jinja2: what `iter` takes. Undefined is iterable, none is not.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Jinja2: what has a length and items. Strings and mappings are sequences.
fn is_sequence(value: &Value) -> bool {
    value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
}

/// Macros and functions. Jinja2's undefined is callable, and fails when it is called.
fn is_callable(value: &Value) -> bool {
    value.is_undefined()
        || value.as_object().is_some_and(|object| match object.repr() {
            ObjectRepr::Plain => long(value).is_none(),
            // A macro has its name and arguments as attributes.
            ObjectRepr::Map => object.type_name().ends_with("Macro"),
            _ => false,
        })
}
