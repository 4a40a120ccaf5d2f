//! Values of any type, read without failing where another type was expected.
//!
//! One member of an unexpected type must not cost the rest of a batch, and serde cannot continue after a type error. So
//! a [`Shape`] accepts whatever comes, and says itself what it makes of it. What it has no use for is skipped.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// A value without parts, or the kind of one that has parts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) enum Scalar<'a> {
    /// Nil, which is also what an absent member is.
    #[default]
    Nil,
    Unsigned(u64),
    /// Less than 0.
    Negative(i64),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// A list, which was skipped.
    List,
    /// Something else, which was skipped.
    Other,
}

/// A type that any value can be read as.
pub(super) trait Shape<'de>: Sized {
    /// From a value that is no list and no map.
    fn from_scalar(scalar: Scalar<'de>) -> Self;

    /// From a list. Reads all of it.
    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self::from_scalar(Scalar::List))
    }

    /// From a map. Reads all of it.
    fn from_map<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::from_scalar(Scalar::Other))
    }
}

impl<'de> Shape<'de> for Scalar<'de> {
    fn from_scalar(scalar: Self) -> Self {
        scalar
    }
}

/// Reads any value as `T`.
pub(super) struct Lenient<T>(pub(super) T);

impl<'de, T: Shape<'de>> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue(PhantomData)).map(Self)
    }
}

struct AnyValue<T>(PhantomData<T>);

impl<'de, T: Shape<'de>> Visitor<'de> for AnyValue<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Nil))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Other))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Unsigned(number)))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        let scalar = u64::try_from(number).map_or(Scalar::Negative(number), Scalar::Unsigned);
        Ok(T::from_scalar(scalar))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Float(number)))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Text(text)))
    }

    fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Bytes(bytes)))
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Other))
    }

    fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<T, E> {
        Ok(T::from_scalar(Scalar::Other))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, extension: D) -> Result<T, D::Error> {
        IgnoredAny::deserialize(extension)?;
        Ok(T::from_scalar(Scalar::Other))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::from_list(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::from_map(map)
    }
}
