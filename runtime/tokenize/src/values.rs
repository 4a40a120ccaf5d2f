//! Clients' JSON as values of the template engine.

use std::cell::Cell;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, Serde, Value};
use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use crate::numbers;

/// Most members of an object that is a list. Searching so few members is faster than building a map. Messages and
/// templates have fewer members; an object with more becomes a map, so that no client can make searches slow.
const MAX_LISTED_MEMBERS: usize = 16;

/// The JSON as a value, with numbers that print as in Python. The parser bounds the depth.
pub(crate) fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::String(text) => Value::from(&**text),
        Json::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => numbers::float(float),
            _ => Value::from(Serde(number)),
        },
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(members) => numbers::long_integer(members)
            .unwrap_or_else(|| object(members.iter().map(|(name, member)| (&**name, value(member))))),
    }
}

/// The JSON as a value; none if it is absent.
pub(crate) fn value_or_none(json: Option<&Json>) -> Value {
    json.map_or_else(|| Value::from(()), value)
}

/// The JSON text as a value, with its integers beyond 64 bits; `None` if it is not JSON.
pub(crate) fn parsed(text: &str) -> Option<Value> {
    let json: Json = serde_json::from_str(&numbers::with_long_integers_kept(text)).ok()?;
    Some(value(&json))
}

/// An object with these members, in this order. If two members have the same name, the later one counts.
pub(crate) fn object<'a>(members: impl Iterator<Item = (&'a str, Value)>) -> Value {
    let mut first = Vec::with_capacity(members.size_hint().0.min(MAX_LISTED_MEMBERS));
    let mut members = members.peekable();
    while first.len() < MAX_LISTED_MEMBERS
        && let Some((name, value)) = members.next()
    {
        match first
            .iter_mut()
            .find(|(known, _): &&mut (&str, _)| *known == name)
        {
            Some((_, known)) => *known = value,
            None => first.push((name, value)),
        }
    }
    if members.peek().is_some() {
        return Value::from(Serde(MemberMap(Cell::new(Some(
            first.into_iter().chain(members),
        )))));
    }
    let members = first.into_iter().map(|(name, value)| (Value::from(name), value));
    Value::from_object(MemberList(members.collect()))
}

/// The members of a large object, serialised once into a map.
struct MemberMap<T>(Cell<Option<T>>);

impl<'a, T: Iterator<Item = (&'a str, Value)>> Serialize for MemberMap<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.take().into_iter().flatten())
    }
}

/// At most [`MAX_LISTED_MEMBERS`] members.
#[derive(Debug)]
struct MemberList(Vec<(Value, Value)>);

impl Object for MemberList {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let (_, value) = self.0.iter().find(|(name, _)| name == key)?;
        Some(value.clone())
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let (_, value) = self.0.iter().find(|(name, _)| name.as_str() == Some(key))?;
        Some(value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.iter().map(|(name, _)| name.clone()).collect())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_keep_the_order_and_the_last_value_of_each_name() {
        for count in [3, 40] {
            let names: Vec<String> = (0..count).map(|i| format!("n{i}")).collect();
            let members = names.iter().map(|name| (&**name, Value::from(1)));
            let value = object(members.chain([("n0", Value::from(2))]));
            assert_eq!(value.get_attr("n0").unwrap(), Value::from(2));
            let keys: Vec<String> = value.try_iter().unwrap().map(|key| key.to_string()).collect();
            assert_eq!(keys, names);
        }
    }

    #[test]
    fn numbers_of_all_kinds_print_as_in_python() {
        let json = json!({"a": [1, -1, u64::MAX, i64::MIN, 1.0, 1e-5, 1e16, true, null], "b": {"c": 0.5}});
        assert_eq!(
            value(&json).to_string(),
            "{'a': [1, -1, 18446744073709551615, -9223372036854775808, 1.0, 1e-05, 1e+16, True, None], 'b': {'c': 0.5}}"
        );
        assert_eq!(
            parsed(r#"{"a": 18446744073709551616, "b": [1e400]}"#).map(|value| value.to_string()),
            None
        );
        assert_eq!(
            parsed(r#"[18446744073709551616, -0]"#).unwrap().to_string(),
            "[18446744073709551616, 0]"
        );
    }
}
