//! The lists of an event: hashes, token ids and extra keys.

use serde::de::{Error, SeqAccess};

use super::{
    EngineHash, ExtraKey, MAX_EXTRA_KEYS, MAX_HASHES, MAX_TOKENS, RawTokens,
    lenient::{Lenient, Scalar, Shape},
};

/// A list of hashes; `None` if it is something else.
pub(super) struct Hashes(pub(super) Option<Vec<EngineHash>>);

impl<'de> Shape<'de> for Hashes {
    fn from_scalar(_: Scalar<'de>) -> Self {
        Self(None)
    }

    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let mut hashes = Some(Vec::new());
        while let Some(Lenient(hash)) = list.next_element::<Lenient<Scalar<'de>>>()? {
            match (EngineHash::from_scalar(hash), &mut hashes) {
                (Some(hash), Some(hashes)) => {
                    check_bound(hashes.len() + 1, MAX_HASHES, "block hashes")?;
                    hashes.push(hash);
                }
                _ => hashes = None,
            }
        }
        Ok(Self(hashes))
    }
}

impl EngineHash {
    pub(super) fn from_scalar(scalar: Scalar<'_>) -> Option<Self> {
        match scalar {
            Scalar::Unsigned(hash) => Some(Self([0, hash])),
            Scalar::Negative(hash) => Some(Self([0, hash.cast_unsigned()])),
            Scalar::Bytes(bytes) if (1..=32).contains(&bytes.len()) => {
                let tail = &bytes[bytes.len().saturating_sub(16)..];
                let number = tail
                    .iter()
                    .fold(0, |number, &byte| number << 8 | u128::from(byte));
                Some(Self([(number >> 64) as u64, number as u64]))
            }
            _ => None,
        }
    }
}

impl<'de> Shape<'de> for RawTokens {
    fn from_scalar(_: Scalar<'de>) -> Self {
        Self::Unreadable
    }

    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let mut tokens = Self::Ids(Vec::new());
        while let Some(Lenient(token)) = list.next_element::<Lenient<Scalar<'de>>>()? {
            match (&mut tokens, token) {
                (Self::Ids(ids), Scalar::Unsigned(id)) if u32::try_from(id).is_ok() => {
                    check_bound(ids.len() + 1, MAX_TOKENS, "token ids")?;
                    ids.push(id as u32);
                }
                (Self::Ids(ids), Scalar::List) if ids.is_empty() => tokens = Self::Pairs,
                (Self::Pairs, Scalar::List) => {}
                _ => tokens = Self::Unreadable,
            }
        }
        Ok(tokens)
    }
}

/// The extra keys of all blocks of an event; `None` if they are no list.
pub(super) struct ExtraKeys<'a>(pub(super) Option<Vec<(usize, ExtraKey<'a>)>>);

impl Default for ExtraKeys<'_> {
    fn default() -> Self {
        Self(Some(Vec::new()))
    }
}

impl<'de> Shape<'de> for ExtraKeys<'de> {
    fn from_scalar(scalar: Scalar<'de>) -> Self {
        match scalar {
            Scalar::Nil => Self::default(),
            _ => Self(None),
        }
    }

    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let mut all = Vec::new();
        let mut block = 0;
        while let Some(Lenient(BlockKeys(keys))) = list.next_element::<Lenient<BlockKeys<'de>>>()? {
            check_bound(all.len() + keys.len(), MAX_EXTRA_KEYS, "extra keys")?;
            all.extend(keys.into_iter().map(|key| (block, key)));
            block += 1;
        }
        Ok(Self(Some(all)))
    }
}

/// The extra keys of one block.
struct BlockKeys<'a>(Vec<ExtraKey<'a>>);

impl<'de> Shape<'de> for BlockKeys<'de> {
    fn from_scalar(scalar: Scalar<'de>) -> Self {
        match scalar {
            Scalar::Nil => Self(Vec::new()),
            _ => Self(vec![ExtraKey::Opaque]),
        }
    }

    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let mut keys = Vec::new();
        while let Some(Lenient(key)) = list.next_element::<Lenient<Scalar<'de>>>()? {
            check_bound(keys.len() + 1, MAX_EXTRA_KEYS, "extra keys")?;
            keys.push(match key {
                Scalar::Text(text) => ExtraKey::Text(text),
                _ => ExtraKey::Opaque,
            });
        }
        Ok(Self(keys))
    }
}

/// Fails beyond a bound.
pub(super) fn check_bound<E: Error>(count: usize, bound: usize, what: &str) -> Result<(), E> {
    if count > bound {
        return Err(E::custom(format_args!("it has more than {bound} {what}")));
    }
    Ok(())
}
