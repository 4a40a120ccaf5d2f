//! The bounds of every store, and the digest of an object.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::store::StoreError;

/// Most bytes of a key: a model's name with a prefix. The encoding for NATS makes it at most three times as long, well
/// within the 4,096 bytes of a protocol line there.
pub const MAX_KEY_BYTES: usize = 512;
/// Most bytes of a value: room for the longest settings of a policy, 64 KiB, and for what stands beside them. Far below the
/// 1 MiB of a NATS message.
pub const MAX_VALUE_BYTES: usize = 72 << 10;
/// Most bytes of an object: as many as an admitted component may have.
pub const MAX_OBJECT_BYTES: usize = 1 << 20;

/// Most bytes of all entries together: a hundred times what the thousand models of a large cluster need with ordinary
/// settings.
pub(crate) const MAX_ENTRIES_BYTES: usize = 64 << 20;
/// Most bytes of all objects together: four times the 64 versions that a router keeps, each of the largest size.
pub(crate) const MAX_OBJECTS_BYTES: usize = 256 << 20;

pub(crate) fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(StoreError::Refused(format!(
            "the key has {} bytes; a key has 1 to {MAX_KEY_BYTES}",
            key.len()
        )));
    }
    Ok(())
}

pub(crate) fn check_value(value: &[u8]) -> Result<(), StoreError> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(StoreError::Refused(format!(
            "the value has {} bytes; {MAX_VALUE_BYTES} is the most",
            value.len()
        )));
    }
    if std::str::from_utf8(value).is_err() {
        return Err(StoreError::Refused("the value is not UTF-8 text".into()));
    }
    Ok(())
}

pub(crate) fn check_object(bytes: &[u8]) -> Result<(), StoreError> {
    if bytes.len() > MAX_OBJECT_BYTES {
        return Err(StoreError::Refused(format!(
            "the object has {} bytes; {MAX_OBJECT_BYTES} is the most",
            bytes.len()
        )));
    }
    Ok(())
}

/// Refuses a text that is not a digest, because a digest becomes the name of a file.
pub(crate) fn check_digest(digest: &str) -> Result<(), StoreError> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if digest.len() == 64 && digest.bytes().all(is_digit) {
        return Ok(());
    }
    let shown: String = digest.chars().take(80).collect();
    Err(StoreError::Refused(format!(
        "{shown:?} is not a digest; a digest has 64 hexadecimal digits in lower case"
    )))
}

/// The SHA-256 of bytes, in lower-case hexadecimal.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Returns the bytes if they have this digest.
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
