//! What a store takes, the same in every kind of store.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::store::StoreError;

/// Longest key: a model's name with a prefix. Encoded for NATS it is at most three times as long, well within the
/// 4,096 bytes of a protocol line there.
pub const MAX_KEY_BYTES: usize = 512;
/// Largest value: the longest settings of a policy. Also far below the 1 MiB NATS takes in one message.
pub const MAX_VALUE_BYTES: usize = 64 << 10;
/// Largest object: the largest component that is admitted.
pub const MAX_OBJECT_BYTES: usize = 1 << 20;

/// All entries together: those of the thousand models of a large cluster, with ordinary settings, a hundred times
/// over.
pub(crate) const MAX_ENTRIES_BYTES: usize = 64 << 20;
/// All objects together: four times the versions a router keeps, all of the largest size.
pub(crate) const MAX_OBJECTS_BYTES: usize = 256 << 20;

pub(crate) fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(StoreError::Refused(format!(
            "a key of {} bytes; it has 1 to {MAX_KEY_BYTES}",
            key.len()
        )));
    }
    Ok(())
}

pub(crate) fn check_value(value: &[u8]) -> Result<(), StoreError> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(StoreError::Refused(format!(
            "a value of {} bytes; {MAX_VALUE_BYTES} is the most",
            value.len()
        )));
    }
    if std::str::from_utf8(value).is_err() {
        return Err(StoreError::Refused("a value that is no UTF-8 text".into()));
    }
    Ok(())
}

pub(crate) fn check_object(bytes: &[u8]) -> Result<(), StoreError> {
    if bytes.len() > MAX_OBJECT_BYTES {
        return Err(StoreError::Refused(format!(
            "an object of {} bytes; {MAX_OBJECT_BYTES} is the most",
            bytes.len()
        )));
    }
    Ok(())
}

/// Refuses what is no digest: it becomes the name of a file.
pub(crate) fn check_digest(digest: &str) -> Result<(), StoreError> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if digest.len() == 64 && digest.bytes().all(is_digit) {
        return Ok(());
    }
    let shown: String = digest.chars().take(80).collect();
    Err(StoreError::Refused(format!(
        "{shown:?} is no digest; one has 64 hexadecimal digits in lower case"
    )))
}

/// SHA-256 in hexadecimal.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The bytes, if they are those that `digest` names.
pub(crate) fn verified(digest: &str, bytes: Bytes) -> Result<Bytes, StoreError> {
    let found = digest_of(&bytes);
    if found == digest {
        return Ok(bytes);
    }
    Err(StoreError::Damaged {
        digest: digest.to_owned(),
        reason: format!("its {} bytes have the digest {found}", bytes.len()),
    })
}
