//! The events of a batch, each read from whatever the engine sent in its place.

use serde::de::{IgnoredAny, MapAccess, SeqAccess};
use signalbox_protocol::CacheTier;

use super::{
    Batch, EngineHash, MAX_EVENTS, MAX_EXTRA_KEYS, MAX_HASHES, MAX_TOKENS, RawEvent, RawLora, RawMedium,
    RawRemoved, RawStored, RawTokens,
    lenient::{Lenient, Scalar, Shape},
    lists::{ExtraKeys, Hashes, check_bound},
};

/// The outermost value; `None` if it is no batch.
pub(super) struct Envelope<'a>(pub(super) Option<Batch<'a>>);

impl<'de> Shape<'de> for Envelope<'de> {
    fn from_scalar(_: Scalar<'de>) -> Self {
        Self(None)
    }

    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let time = element(&mut list)?;
        let events = list.next_element::<Lenient<Events<'de>>>()?;
        let rank = element(&mut list)?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        let Some(Lenient(Events(Some(events)))) = events else {
            return Ok(Self(None));
        };
        if !matches!(time, Scalar::Float(_) | Scalar::Unsigned(_)) {
            return Ok(Self(None));
        }
        let rank = as_u32(rank);
        Ok(Self(Some(Batch { rank, events })))
    }
}

/// The events of a batch; `None` if they are no list.
struct Events<'a>(Option<Vec<RawEvent<'a>>>);

impl<'de> Shape<'de> for Events<'de> {
    fn from_scalar(_: Scalar<'de>) -> Self {
        Self(None)
    }

    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let mut events = Vec::new();
        let (mut hashes, mut tokens, mut keys) = (0, 0, 0);
        while let Some(Lenient(event)) = list.next_element::<Lenient<RawEvent<'de>>>()? {
            match &event {
                RawEvent::Stored(stored) => {
                    hashes += stored.hashes.len();
                    keys += stored.extra_keys.len();
                    if let RawTokens::Ids(ids) = &stored.tokens {
                        tokens += ids.len();
                    }
                }
                RawEvent::Removed(removed) => hashes += removed.hashes.len(),
                _ => {}
            }
            events.push(event);
            check_bound(events.len(), MAX_EVENTS, "events")?;
            check_bound(hashes, MAX_HASHES, "block hashes")?;
            check_bound(tokens, MAX_TOKENS, "token ids")?;
            check_bound(keys, MAX_EXTRA_KEYS, "extra keys")?;
        }
        Ok(Self(Some(events)))
    }
}

impl<'de> Shape<'de> for RawEvent<'de> {
    fn from_scalar(_: Scalar<'de>) -> Self {
        Self::Unreadable
    }

    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Self, A::Error> {
        let name = element(&mut list)?;
        let mut members = Members::default();
        match name {
            Scalar::Text(STORED) => {
                members.hashes = shaped(&mut list)?;
                members.parent = element(&mut list)?;
                members.tokens = shaped(&mut list)?;
                members.block_size = element(&mut list)?;
                members.lora_id = element(&mut list)?;
                members.medium = element(&mut list)?;
                members.lora_name = element(&mut list)?;
                members.extra_keys = shaped(&mut list)?.unwrap_or_default();
                members.group = element(&mut list)?;
                members.kind = element(&mut list)?;
            }
            Scalar::Text(REMOVED) => {
                members.hashes = shaped(&mut list)?;
                members.medium = element(&mut list)?;
                members.group = element(&mut list)?;
            }
            _ => {}
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(members.into_event(name))
    }

    fn from_map<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let mut name = Scalar::Nil;
        let mut members = Members::default();
        while let Some(Lenient(key)) = map.next_key::<Lenient<Scalar<'de>>>()? {
            let member = match key {
                Scalar::Text("block_hashes") => {
                    members.hashes = Some(map.next_value::<Lenient<_>>()?.0);
                    continue;
                }
                Scalar::Text("token_ids") => {
                    members.tokens = Some(map.next_value::<Lenient<_>>()?.0);
                    continue;
                }
                Scalar::Text("extra_keys") => {
                    members.extra_keys = map.next_value::<Lenient<_>>()?.0;
                    continue;
                }
                Scalar::Text("type") => &mut name,
                Scalar::Text("parent_block_hash") => &mut members.parent,
                Scalar::Text("block_size") => &mut members.block_size,
                Scalar::Text("lora_id") => &mut members.lora_id,
                Scalar::Text("lora_name") => &mut members.lora_name,
                Scalar::Text("cache_salt") => &mut members.cache_salt,
                Scalar::Text("medium") => &mut members.medium,
                Scalar::Text("locality") => &mut members.locality,
                Scalar::Text("group_idx") => &mut members.group,
                Scalar::Text("kv_cache_spec_kind") => &mut members.kind,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            *member = map.next_value::<Lenient<_>>()?.0;
        }
        Ok(members.into_event(name))
    }
}

const STORED: &str = "BlockStored";
const REMOVED: &str = "BlockRemoved";
const CLEARED: &str = "AllBlocksCleared";

/// The members of an event, whichever it is. A member that is absent is nil.
#[derive(Default)]
struct Members<'a> {
    hashes: Option<Hashes>,
    parent: Scalar<'a>,
    tokens: Option<RawTokens>,
    block_size: Scalar<'a>,
    lora_id: Scalar<'a>,
    lora_name: Scalar<'a>,
    cache_salt: Scalar<'a>,
    extra_keys: ExtraKeys<'a>,
    medium: Scalar<'a>,
    locality: Scalar<'a>,
    group: Scalar<'a>,
    kind: Scalar<'a>,
}

impl<'a> Members<'a> {
    fn into_event(self, name: Scalar<'a>) -> RawEvent<'a> {
        match name {
            Scalar::Text(STORED) => self.into_stored().map_or(RawEvent::Unreadable, RawEvent::Stored),
            Scalar::Text(REMOVED) => self
                .into_removed()
                .map_or(RawEvent::UnreadableRemoved, RawEvent::Removed),
            Scalar::Text(CLEARED) => RawEvent::Cleared,
            Scalar::Text(_) => RawEvent::Unknown,
            _ => RawEvent::Unreadable,
        }
    }

    fn into_stored(self) -> Option<RawStored<'a>> {
        let parent = match self.parent {
            Scalar::Nil => None,
            hash => Some(EngineHash::from_scalar(hash)?),
        };
        Some(RawStored {
            medium: self.medium()?,
            group: self.group()?,
            hashes: self.hashes?.0?,
            parent,
            tokens: self.tokens?,
            block_size: as_u32(self.block_size)?,
            lora: match (self.lora_name, self.lora_id) {
                (Scalar::Text(name), _) if !name.is_empty() => RawLora::Named(name),
                (_, Scalar::Nil) => RawLora::None,
                _ => RawLora::Unnamed,
            },
            cache_salt: match self.cache_salt {
                Scalar::Text(salt) if !salt.is_empty() => Some(salt),
                Scalar::Text(_) | Scalar::Nil => None,
                _ => return None,
            },
            extra_keys: self.extra_keys.0?,
            full_attention: matches!(
                self.kind,
                Scalar::Nil | Scalar::Text("full_attention" | "mla_attention" | "sink_full_attention")
            ),
        })
    }

    fn into_removed(self) -> Option<RawRemoved> {
        Some(RawRemoved {
            medium: self.medium()?,
            group: self.group()?,
            hashes: self.hashes?.0?,
        })
    }

    fn medium(&self) -> Option<RawMedium> {
        let medium = match self.medium {
            // Engines of before 2026 have one medium and do not name it.
            Scalar::Nil | Scalar::Text("GPU") => RawMedium::Tier(CacheTier::Device),
            Scalar::Text("CPU" | "CPU_PINNED") => RawMedium::Tier(CacheTier::Host),
            Scalar::Text("DISK" | "STORAGE" | "EXTERNAL") => RawMedium::Tier(CacheTier::Disk),
            Scalar::Text(_) => RawMedium::Unknown,
            _ => return None,
        };
        match self.locality {
            Scalar::Nil | Scalar::Text("LOCAL") => Some(medium),
            _ => Some(RawMedium::Remote),
        }
    }

    fn group(&self) -> Option<Option<u32>> {
        match self.group {
            Scalar::Nil => Some(None),
            // Older engines have a list at this place of the array.
            Scalar::List => Some(None),
            group => as_u32(group).map(Some),
        }
    }
}

fn as_u32(scalar: Scalar<'_>) -> Option<u32> {
    match scalar {
        Scalar::Unsigned(number) => u32::try_from(number).ok(),
        _ => None,
    }
}

/// The next element of a list; nil after its end.
fn element<'de, A: SeqAccess<'de>>(list: &mut A) -> Result<Scalar<'de>, A::Error> {
    Ok(shaped(list)?.unwrap_or_default())
}

/// The next element of a list as `T`; `None` after its end.
fn shaped<'de, T: Shape<'de>, A: SeqAccess<'de>>(list: &mut A) -> Result<Option<T>, A::Error> {
    Ok(list.next_element::<Lenient<T>>()?.map(|Lenient(value)| value))
}
