//! A request's parameters, taken one by one, each checked when it is taken.

use std::{fmt, ops::RangeInclusive};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use signalbox_protocol::{ErrorKind, WireError};

use super::json::{Param, ParamSeed};

/// Most JSON values in a parameter that holds the prompt. A prompt of a million token ids fits; the tree of values
/// takes at most 32 MiB.
const MAX_CONTENT_VALUES: usize = 1 << 20;

/// Most JSON values in a parameter that becomes part of the prompt beside the messages. The tools of an agent with a
/// hundred of them have about 20,000; the tree of values takes at most 4 MiB.
const MAX_TOOL_VALUES: usize = 1 << 16;

/// Most JSON values in any other parameter. This is twice the largest `logit_bias`.
const MAX_PARAM_VALUES: usize = 2_048;

/// The parameters that hold the prompt.
const CONTENT: [&str; 4] = ["messages", "prompt", "input", "tokens"];

/// The parameters that become part of the prompt beside its messages, and those with a schema of the answer.
const TOOLS: [&str; 7] = [
    "tools",
    "text",
    "documents",
    "system",
    "chat_template_kwargs",
    "response_format",
    "structured_outputs",
];

/// The known parameters of one request body. Taking a parameter removes it; `null` counts as absent.
#[derive(Debug)]
pub(crate) struct Fields {
    given: Vec<(&'static str, Param)>,
    /// A parameter that is given twice. The later value counts, as for Python's JSON reader.
    repeated: Option<&'static str>,
}

impl Fields {
    /// Reads a JSON object and keeps the parameters named in `known`. Others are only checked for syntax and depth.
    pub(crate) fn parse(body: &[u8], known: &[&[&'static str]]) -> Result<Self, WireError> {
        let mut json = serde_json::Deserializer::from_slice(body);
        let read = FieldsSeed { known }
            .deserialize(&mut json)
            .and_then(|fields| json.end().map(|()| fields));
        read.map_err(|error| {
            let message = match error.classify() {
                _ if body.is_empty() => "the body is empty; give a JSON object".into(),
                serde_json::error::Category::Data => format!("the body is not a request: {error}"),
                _ => format!("the body is not valid JSON: {error}"),
            };
            WireError::new(ErrorKind::InvalidRequest, message)
        })
    }

    /// Parameters with these values, each given once.
    pub(crate) fn of(values: Vec<(&'static str, Value)>) -> Self {
        let given = values
            .into_iter()
            .map(|(name, value)| (name, Param::Given(value)));
        Self {
            given: given.collect(),
            repeated: None,
        }
    }

    /// Refuses a body that gives a parameter twice: two readers of it could each take a different one of the two values.
    pub(crate) fn check_unique(&self) -> Result<(), WireError> {
        let Some(name) = self.repeated else {
            return Ok(());
        };
        let message = format!("the body is not a request: `{name}` is given twice");
        Err(WireError::new(ErrorKind::InvalidRequest, message))
    }

    /// Whether the body does not have the parameter.
    pub(crate) fn is_absent(&self, name: &str) -> bool {
        self.given.iter().all(|(given, _)| *given != name)
    }

    /// The parameter's value, of any type.
    pub(crate) fn take(&mut self, name: &str) -> Result<Option<Value>, WireError> {
        let Some(place) = self.given.iter().position(|(given, _)| *given == name) else {
            return Ok(None);
        };
        match self.given.swap_remove(place).1 {
            Param::Given(Value::Null) => Ok(None),
            Param::Given(value) => Ok(Some(value)),
            Param::Oversized => {
                let limit = budget(name);
                Err(WireError::invalid_param(
                    name,
                    format!("{name} has more than {limit} JSON values; give fewer"),
                ))
            }
        }
    }

    /// A string.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, WireError> {
        match self.take(name)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, &other, "a string")),
        }
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, name: &str) -> Result<Option<bool>, WireError> {
        match self.take(name)? {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong(name, &other, "true or false")),
        }
    }

    /// An integer in `range`; `2.0` counts as 2.
    pub(super) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, WireError> {
        let Some(value) = self.take(name)? else {
            return Ok(None);
        };
        match integer(&value).filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let right = match (*range.start(), *range.end()) {
                    (i64::MIN, _) => "an integer of 64 bits".into(),
                    (low, high) if high >= i64::from(u32::MAX) => format!("an integer of at least {low}"),
                    (low, high) => format!("an integer from {low} to {high}"),
                };
                Err(wrong(name, &value, &right))
            }
        }
    }

    /// A number that `accepts` returns true for; `right` describes these numbers.
    pub(super) fn number(
        &mut self,
        name: &str,
        accepts: impl Fn(f64) -> bool,
        right: &str,
    ) -> Result<Option<f32>, WireError> {
        let Some(value) = self.take(name)? else {
            return Ok(None);
        };
        match value.as_f64().filter(|number| accepts(*number)) {
            // Every accepted range fits a 32-bit float.
            #[expect(clippy::cast_possible_truncation, reason = "sampling has 32-bit precision")]
            Some(number) => Ok(Some(number as f32)),
            None => Err(wrong(name, &value, right)),
        }
    }
}

/// An error for a parameter whose value is not `right`.
pub(crate) fn wrong(param: &str, value: &Value, right: &str) -> WireError {
    WireError::invalid_param(param, format!("{param} is {}; give {right}", describe(value)))
}

/// The value itself if it is short, the beginning of a long text, or the type of what has parts.
fn describe(value: &Value) -> String {
    /// Longest text that is repeated as it is.
    const SHOWN_CHARS: usize = 40;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) if text.is_empty() => "an empty string".into(),
        Value::String(text) => match text.char_indices().nth(SHOWN_CHARS) {
            Some((end, _)) => format!("{:?}…", &text[..end]),
            None => format!("{text:?}"),
        },
        Value::Array(items) if items.is_empty() => "an empty array".into(),
        Value::Array(_) => "an array".into(),
        Value::Object(_) => "an object".into(),
    }
}

/// The value as an integer; a float without a fraction counts as one.
pub(crate) fn integer(value: &Value) -> Option<i64> {
    /// Up to this number, 2^53, a float represents every integer exactly.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_i64().or_else(|| {
        let float = value.as_f64()?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "no fraction, and in the range that both types represent exactly"
        )]
        (float.fract() == 0.0 && float.abs() <= EXACT).then_some(float as i64)
    })
}

fn budget(name: &str) -> usize {
    if CONTENT.contains(&name) {
        MAX_CONTENT_VALUES
    } else if TOOLS.contains(&name) {
        MAX_TOOL_VALUES
    } else {
        MAX_PARAM_VALUES
    }
}

/// Reads the outermost object.
struct FieldsSeed<'a> {
    known: &'a [&'a [&'static str]],
}

impl<'de> DeserializeSeed<'de> for FieldsSeed<'_> {
    type Value = Fields;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Fields, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldsSeed<'_> {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object with the request's parameters")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut given: Vec<(&'static str, Param)> = Vec::with_capacity(8);
        let mut repeated = None;
        while let Some(key) = map.next_key_seed(KeySeed { known: self.known })? {
            let Some(name) = key else {
                map.next_value_seed(ParamSeed { budget: 0 })?;
                continue;
            };
            let value = map.next_value_seed(ParamSeed { budget: budget(name) })?;
            match given.iter_mut().find(|(earlier, _)| *earlier == name) {
                Some((_, earlier)) => {
                    repeated = Some(name);
                    *earlier = value;
                }
                None => given.push((name, value)),
            }
        }
        Ok(Fields { given, repeated })
    }
}

/// Finds a key among the known names; unknown keys allocate nothing.
struct KeySeed<'a> {
    known: &'a [&'a [&'static str]],
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_> {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a parameter's name")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self
            .known
            .iter()
            .flat_map(|names| names.iter())
            .find(|name| **name == key)
            .copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&[&str]] = &[&["n", "prompt"], &["flag", "text"]];

    fn fields(body: &str) -> Fields {
        Fields::parse(body.as_bytes(), KNOWN).unwrap()
    }

    #[test]
    fn null_and_unknown_parameters_are_absent() {
        let mut fields = fields(r#"{"n":null,"other":{"deep":[1,2]},"flag":true}"#);
        assert_eq!(fields.integer("n", 0..=9).unwrap(), None);
        assert_eq!(fields.take("other").unwrap(), None);
        assert_eq!(fields.flag("flag").unwrap(), Some(true));
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_name_the_value_and_what_is_right() {
        for (body, message) in [
            (r#"{"n":-1}"#, "n is -1; give an integer from 0 to 9"),
            (r#"{"n":1.5}"#, "n is 1.5; give an integer from 0 to 9"),
            (r#"{"n":1e300}"#, "n is 1e+300; give an integer from 0 to 9"),
            (r#"{"n":"7"}"#, "n is \"7\"; give an integer from 0 to 9"),
            (
                r#"{"n":"seven times seven is forty-nine, or so they say"}"#,
                "n is \"seven times seven is forty-nine, or so t\"…; give an integer from 0 to 9",
            ),
            (r#"{"n":[]}"#, "n is an empty array; give an integer from 0 to 9"),
        ] {
            let error = fields(body).integer("n", 0..=9).unwrap_err();
            assert_eq!(
                (error.message.as_str(), error.param.as_deref()),
                (message, Some("n"))
            );
        }
        assert_eq!(fields(r#"{"n":7.0}"#).integer("n", 0..=9).unwrap(), Some(7));
    }

    #[test]
    fn a_body_that_is_no_object_of_parameters_is_refused_with_the_reason() {
        for (body, part) in [
            ("", "empty"),
            ("{", "not valid JSON: EOF"),
            (r#"{"n":1} x"#, "trailing characters"),
            ("[1]", "expected a JSON object"),
            (r#"{"text":"\ud800"}"#, "not valid JSON"),
            (r#"{"n":1e999}"#, "out of range"),
            (r#"{"n":NaN}"#, "not valid JSON"),
        ] {
            let error = Fields::parse(body.as_bytes(), KNOWN).unwrap_err();
            assert!(error.message.contains(part), "{body}: {error}");
            assert_eq!(error.kind, ErrorKind::InvalidRequest);
        }
        assert!(Fields::parse(b"{\"text\":\"\xff\"}", KNOWN).is_err());
        let deep = format!(r#"{{"other":{}"#, "[".repeat(100_000));
        assert!(
            Fields::parse(deep.as_bytes(), KNOWN)
                .unwrap_err()
                .message
                .contains("recursion limit")
        );
    }

    #[test]
    fn the_later_of_two_values_counts_until_the_repetition_is_refused() {
        let mut repeated = fields(r#"{"n":1,"flag":true,"n":2}"#);
        let error = repeated.check_unique().unwrap_err();
        assert_eq!(error.message, "the body is not a request: `n` is given twice");
        assert_eq!(repeated.integer("n", 0..=9).unwrap(), Some(2));
        assert_eq!(repeated.integer("n", 0..=9).unwrap(), None);
        assert_eq!(fields(r#"{"n":1,"other":1,"other":2}"#).check_unique(), Ok(()));
    }

    #[test]
    fn a_parameter_with_too_many_values_is_refused_by_name() {
        let body = format!(r#"{{"flag":[{}0]}}"#, "0,".repeat(MAX_PARAM_VALUES));
        let error = fields(&body).flag("flag").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("flag"));
        assert!(error.message.contains("2048"));
    }
}
