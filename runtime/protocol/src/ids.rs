//! Names for workers and requests, and numbers for clients' names.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// The longest name of a worker, a router or a namespace, in bytes. Names appear in headers, NATS subjects, etcd keys
/// and metric labels.
pub const MAX_NAME_LEN: usize = 64;

/// Whether `text` can name a worker, a router or a namespace: 1 to 64 of `a-z A-Z 0-9 - _`.
pub fn is_name(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=MAX_NAME_LEN).contains(&text.len()) && text.bytes().all(legal)
}

/// A number that stands for a client's name for something, such as a session or a LoRA adapter: XXH3-64 of the name's
/// bytes. An empty name has 0, and no other name has: a hash of 0 becomes 1.
///
/// The number is the same on every router and in every release, because policies compare it and records of decisions
/// will keep it.
pub fn name_hash(name: &str) -> u64 {
    if name.is_empty() {
        0
    } else {
        xxh3_64(name.as_bytes()).max(1)
    }
}

/// A worker's name, stable over its restarts: 1 to 64 of `a-z A-Z 0-9 - _`.
///
/// A name has no dots, because NATS splits subjects at dots. A clone costs a reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerId(Arc<str>);

/// The text is not a worker name.
#[derive(Debug, Clone, thiserror::Error)]
#[error("worker name {0:?} is not 1 to {MAX_NAME_LEN} letters, digits, '-' or '_'")]
pub struct InvalidWorkerId(String);

impl WorkerId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WorkerId {
    type Err = InvalidWorkerId;

    fn from_str(name: &str) -> Result<Self, InvalidWorkerId> {
        if is_name(name) {
            Ok(Self(name.into()))
        } else {
            Err(InvalidWorkerId(name.chars().take(MAX_NAME_LEN + 1).collect()))
        }
    }
}

impl TryFrom<String> for WorkerId {
    type Error = InvalidWorkerId;

    fn try_from(name: String) -> Result<Self, InvalidWorkerId> {
        name.parse()
    }
}

impl From<WorkerId> for String {
    fn from(id: WorkerId) -> Self {
        id.0.as_ref().into()
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// The epoch of one incarnation of a worker: the start of the process, in milliseconds since the Unix epoch.
///
/// Everything a worker sends carries its epoch. A later incarnation has a greater epoch, so routers recognise and
/// refuse what arrives late from an earlier incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerEpoch(pub u64);

impl fmt::Display for WorkerEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A request's name in logs, headers and answers: at most 64 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Accepts a client's own id if it is short and printable, so that the client's logs and ours can be joined.
    pub fn from_client(id: &str) -> Option<Self> {
        let legal = (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
        legal.then(|| Self(id.into()))
    }

    /// 32 hexadecimal digits of a random number.
    pub fn from_random(number: u128) -> Self {
        Self(format!("{number:032x}").into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_name_fits_subjects_keys_and_headers() {
        assert_eq!("worker-0_a".parse::<WorkerId>().unwrap().as_str(), "worker-0_a");
        for bad in ["", "a.b", "a b", "ü", &"x".repeat(65)] {
            assert!(bad.parse::<WorkerId>().is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<WorkerId>("\"a/b\"").is_err());
    }

    /// Computed with the `xxhash` package of Python.
    #[test]
    fn the_hash_of_a_name_never_changes_and_no_name_is_0() {
        assert_eq!(name_hash("sql-adapter"), 0x88f0_c7e6_c82b_806b);
        assert_eq!(name_hash("user-1"), 0x7c76_15c1_1438_e5c9);
        assert_eq!(name_hash(""), 0);
    }

    #[test]
    fn a_client_id_is_accepted_only_if_printable_and_short() {
        assert!(RequestId::from_client("trace-1").is_some());
        assert!(RequestId::from_client("a\nb").is_none());
        assert!(RequestId::from_client(&"x".repeat(65)).is_none());
    }
}
