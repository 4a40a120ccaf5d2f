//! Methods of Python's strings, lists and dictionaries that templates call.
//!
//! `minijinja_contrib` has most of them. Here are those that it lacks, and those whose result differs from Python's.

use minijinja::value::{Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::arguments::Arguments;
use super::python_text::{is_space, lines};

/// The widest padding of a method, in characters, so that a mistake in a template cannot fill the memory.
const MAX_WIDTH: usize = 4096;

/// Calls a method that the template engine does not know.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let own = match value.kind() {
        ValueKind::String => value
            .as_str()
            .and_then(|text| string_method(text, method, args).transpose()),
        ValueKind::Seq => list_method(value, method, args).transpose(),
        ValueKind::Map if method == "copy" => Some(from_args::<()>(args).map(|()| value.clone())),
        _ => None,
    };
    own.unwrap_or_else(|| pycompat::unknown_method_callback(state, value, method, args))
}

/// `None` for a method that is not here.
fn string_method(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let strips = |character: char| match chars {
                Some(chars) => chars.contains(character),
                None => is_space(character),
            };
            Value::from(match method {
                "strip" => text.trim_matches(strips),
                "lstrip" => text.trim_start_matches(strips),
                _ => text.trim_end_matches(strips),
            })
        }
        "split" | "rsplit" => split(text, args, method == "rsplit")?,
        "splitlines" => {
            let (keep_ends,): (Option<bool>,) = from_args(args)?;
            lines(text, keep_ends.unwrap_or(false))
                .into_iter()
                .map(Value::from)
                .collect()
        }
        "partition" | "rpartition" => partition(text, args, method == "rpartition")?,
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let found = match method {
                "index" => text.find(part),
                _ => text.rfind(part),
            };
            let at = found.ok_or_else(|| invalid("substring not found"))?;
            Value::from(text[..at].chars().count())
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<char>) = from_args(args)?;
            Value::from(padded(text, method, width, fill.unwrap_or(' ')))
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = match text.chars().next() {
                Some('+' | '-') => text.split_at(1),
                _ => ("", text),
            };
            let width = width.saturating_sub(sign.len());
            Value::from(format!("{sign}{}", padded(digits, "rjust", width, '0')))
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text))
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swapped = text.chars().flat_map(|character| {
                if character.is_uppercase() {
                    character.to_lowercase().collect::<Vec<_>>()
                } else {
                    character.to_uppercase().collect()
                }
            });
            Value::from(swapped.collect::<String>())
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "expandtabs" => {
            let (width,): (Option<usize>,) = from_args(args)?;
            Value::from(with_expanded_tabs(text, width.unwrap_or(8).min(MAX_WIDTH)))
        }
        "isspace" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(is_space))
        }
        "isdecimal" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(char::is_numeric))
        }
        _ => return Ok(None),
    }))
}

fn split(text: &str, args: &[Value], from_end: bool) -> Result<Value, Error> {
    let arguments = Arguments::of(args.to_vec())?;
    let separator = arguments.get(0, "sep")?;
    let most = arguments.get(1, "maxsplit")?.map(i64::try_from).transpose()?;
    arguments.finish(2)?;
    // Python: a negative limit is none.
    let most = most.and_then(|most| usize::try_from(most).ok());
    let Some(separator) = separator else {
        return Ok(split_at_space(text, most, from_end)
            .into_iter()
            .map(Value::from)
            .collect());
    };
    let separator = separator
        .as_str()
        .ok_or_else(|| invalid("split: the separator should be a string"))?;
    if separator.is_empty() {
        return Err(invalid("split: the separator is empty"));
    }
    let pieces: Vec<&str> = match (most, from_end) {
        (None, _) => text.split(separator).collect(),
        (Some(most), false) => text.splitn(most.saturating_add(1), separator).collect(),
        (Some(most), true) => {
            let mut pieces: Vec<_> = text.rsplitn(most.saturating_add(1), separator).collect();
            pieces.reverse();
            pieces
        }
    };
    Ok(pieces.into_iter().map(Value::from).collect())
}

/// `split()` without a separator: at runs of white space, which the pieces and the ends of the text do not have.
fn split_at_space(text: &str, most: Option<usize>, from_end: bool) -> Vec<&str> {
    let most = most.unwrap_or(usize::MAX);
    let mut pieces = Vec::new();
    if from_end {
        let mut rest = text.trim_end_matches(is_space);
        while !rest.is_empty() {
            let start = rest.rfind(is_space);
            let Some(start) = start.filter(|_| pieces.len() < most) else {
                pieces.push(rest.trim_start_matches(|c| pieces.len() < most && is_space(c)));
                break;
            };
            let width = rest[start..].chars().next().map_or(1, char::len_utf8);
            pieces.push(&rest[start + width..]);
            rest = rest[..start].trim_end_matches(is_space);
        }
        pieces.reverse();
    } else {
        let mut rest = text.trim_start_matches(is_space);
        while !rest.is_empty() {
            let end = rest.find(is_space);
            let Some(end) = end.filter(|_| pieces.len() < most) else {
                pieces.push(rest);
                break;
            };
            pieces.push(&rest[..end]);
            rest = rest[end..].trim_start_matches(is_space);
        }
    }
    pieces
}

fn partition(text: &str, args: &[Value], from_end: bool) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(invalid("partition: the separator is empty"));
    }
    let found = if from_end {
        text.rsplit_once(separator)
    } else {
        text.split_once(separator)
    };
    let three = match (found, from_end) {
        (Some((before, behind)), _) => [before, separator, behind],
        (None, false) => [text, "", ""],
        (None, true) => ["", "", text],
    };
    Ok(Value::from(Tuple::from(three.map(Value::from))))
}

fn padded(text: &str, method: &str, width: usize, fill: char) -> String {
    let width = width.min(MAX_WIDTH);
    let missing = width.saturating_sub(text.chars().count());
    let left = match method {
        "ljust" => 0,
        "rjust" => missing,
        // Of an odd number, Python puts the greater part to the left where the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    let mut padded = String::with_capacity(text.len() + missing * fill.len_utf8());
    padded.extend(std::iter::repeat_n(fill, left));
    padded.push_str(text);
    padded.extend(std::iter::repeat_n(fill, missing - left));
    padded
}

/// A capital after everything that is no letter with two cases: `it's` becomes `It'S`.
fn title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut within_word = false;
    for character in text.chars() {
        if within_word {
            titled.extend(character.to_lowercase());
        } else {
            titled.extend(character.to_uppercase());
        }
        within_word = character.is_lowercase() || character.is_uppercase();
    }
    titled
}

fn with_expanded_tabs(text: &str, width: usize) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut column = 0;
    for character in text.chars() {
        match character {
            '\t' if width > 0 => {
                let spaces = width - column % width;
                expanded.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\t' => {}
            '\n' | '\r' => {
                expanded.push(character);
                column = 0;
            }
            _ => {
                expanded.push(character);
                column += 1;
            }
        }
    }
    expanded
}

fn list_method(list: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    if method != "index" {
        return Ok(None);
    }
    let (wanted,): (&Value,) = from_args(args)?;
    let at = list.try_iter()?.position(|item| item == *wanted);
    at.map(|at| Some(Value::from(at)))
        .ok_or_else(|| invalid("the value is not in the list"))
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
