//! JSON values with a bound on their number.
//!
//! A tree of JSON values takes up to sixteen times the memory of its text (`[0,0,0…`), so the limit on a body's bytes
//! alone does not bound memory. Values past the budget are still read, to check syntax and depth, but not kept.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// A parameter's value in the body.
#[derive(Debug)]
pub(super) enum Param {
    /// A value within the budget.
    Given(Value),
    /// A value with more parts than the budget allows.
    Oversized,
}

/// Reads one JSON value that consists of at most `budget` values, itself included. With a budget of 0 the value is only
/// checked.
pub(super) struct ParamSeed {
    pub(super) budget: usize,
}

impl<'de> DeserializeSeed<'de> for ParamSeed {
    type Value = Param;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Param, D::Error> {
        let mut left = self.budget;
        let value = deserializer.deserialize_any(Bounded { left: &mut left })?;
        Ok(value.map_or(Param::Oversized, Param::Given))
    }
}

/// Builds a value within the budget, or `None` past it.
struct Bounded<'a> {
    left: &'a mut usize,
}

impl Bounded<'_> {
    fn leaf(self, value: impl FnOnce() -> Value) -> Option<Value> {
        *self.left = self.left.checked_sub(1)?;
        Some(value())
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(self.leaf(|| Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(self.leaf(|| Value::Number(value.into())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(self.leaf(|| Value::Number(value.into())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(self.leaf(|| Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(self.leaf(|| Value::String(value.to_owned())))
    }

    fn visit_string<E>(self, value: String) -> Result<Self::Value, E> {
        Ok(self.leaf(|| Value::String(value)))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(self.leaf(|| Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = self.left.checked_sub(1).map(|left| {
            *self.left = left;
            Vec::new()
        });
        while let Some(item) = seq.next_element_seed(Bounded { left: self.left })? {
            keep(&mut items, item, |items, item| items.push(item));
        }
        Ok(items.map(Value::Array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = self.left.checked_sub(1).map(|left| {
            *self.left = left;
            Map::new()
        });
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(Bounded { left: self.left })?;
            keep(&mut members, value, |members, value| {
                members.insert(name, value);
            });
        }
        Ok(members.map(Value::Object))
    }
}

/// Adds `part` to `whole`. Without the part, the whole becomes `None` too.
fn keep<T>(whole: &mut Option<T>, part: Option<Value>, add: impl FnOnce(&mut T, Value)) {
    match (whole.as_mut(), part) {
        (Some(whole), Some(part)) => add(whole, part),
        _ => *whole = None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, budget: usize) -> Result<Param, serde_json::Error> {
        ParamSeed { budget }.deserialize(&mut serde_json::Deserializer::from_str(text))
    }

    #[test]
    fn a_value_within_the_budget_is_what_serde_json_reads() {
        for text in [
            "null",
            "true",
            "-3",
            "1.5",
            "18446744073709551615",
            r#""aé\n""#,
            r#"[1,{"a":[]},"x"]"#,
        ] {
            let Param::Given(value) = read(text, 10).unwrap() else {
                panic!("{text}")
            };
            assert_eq!(value, serde_json::from_str::<Value>(text).unwrap());
        }
    }

    #[test]
    fn a_value_with_one_part_too_many_is_oversized() {
        assert!(matches!(read("[1,2,3]", 4), Ok(Param::Given(_))));
        assert!(matches!(read("[1,2,3]", 3), Ok(Param::Oversized)));
        assert!(matches!(read(r#"{"a":{"b":1}}"#, 2), Ok(Param::Oversized)));
        assert!(matches!(read("1", 0), Ok(Param::Oversized)));
    }

    #[test]
    fn depth_is_bounded_even_if_nothing_is_kept() {
        let deep = "[".repeat(100_000);
        let error = read(&deep, 0).unwrap_err().to_string();
        assert!(error.contains("recursion limit"), "{error}");
    }

    #[test]
    fn broken_json_is_an_error_even_if_nothing_is_kept() {
        assert!(read("[1,", 0).is_err());
        assert!(read(r#""\ud800""#, 0).is_err());
    }
}
