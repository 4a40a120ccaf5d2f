//! The bytes of KV event batches and snapshots, version 1. This crate's `README.md` describes the layout.

use bytes::{BufMut, Bytes, BytesMut};
use signalbox_protocol::{CacheTier, KvEvent, KvEventBatch, KvSnapshot, SequenceHash, WorkerEpoch};

#[cfg(test)]
mod tests;

const VERSION: u8 = 1;

const BATCH: u8 = 0;
const SNAPSHOT: u8 = 1;

const STORED_FIRST: u8 = 1;
const STORED_AFTER: u8 = 2;
const REMOVED: u8 = 3;
const CLEARED: u8 = 4;

/// Version, kind, epoch, sequence, number of events.
pub(crate) const HEADER_LEN: usize = 1 + 1 + 8 + 8 + 4;
/// Kind, tier, number of blocks: the bytes of an event without hashes.
const EVENT_LEN: usize = 1 + 1 + 4;
const HASH_LEN: usize = 8;

/// Why bytes cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The layout has another version.
    #[error("the KV event batch has version {0}; this release reads version 1")]
    Version(u8),
    /// The bytes end too early, have a rest, or hold an invalid value.
    #[error("the KV event batch is truncated or damaged at byte {0}")]
    Malformed(usize),
}

/// Encodes a batch: 22 bytes, and for each event 6 or 14 and 8 per block.
pub fn encode_batch(batch: &KvEventBatch) -> Bytes {
    encode(BATCH, batch.epoch, batch.sequence, &batch.events)
}

/// Decodes one batch. Allocates at most about eight times the length of `bytes`.
pub fn decode_batch(bytes: &[u8]) -> Result<KvEventBatch, CodecError> {
    let (epoch, sequence, events) = decode(BATCH, bytes)?;
    Ok(KvEventBatch {
        epoch,
        sequence,
        events,
    })
}

/// Decodes a message: one or more batches, one after the other. Allocates at most about eight times the length of
/// `bytes`.
///
/// One damaged batch makes the whole message invalid, because the start of the next batch is unknown then.
pub fn decode_batches(bytes: &[u8]) -> Result<Vec<KvEventBatch>, CodecError> {
    let mut input = Input { bytes, position: 0 };
    let mut batches = Vec::new();
    loop {
        let (epoch, sequence, events) = input.numbered_events(BATCH)?;
        batches.push(KvEventBatch {
            epoch,
            sequence,
            events,
        });
        if input.position == bytes.len() {
            return Ok(batches);
        }
    }
}

/// Encodes a snapshot, in the layout of a batch.
pub fn encode_snapshot(snapshot: &KvSnapshot) -> Bytes {
    encode(SNAPSHOT, snapshot.epoch, snapshot.next_sequence, &snapshot.stored)
}

/// Decodes a snapshot. Events other than `Stored` are an error.
pub fn decode_snapshot(bytes: &[u8]) -> Result<KvSnapshot, CodecError> {
    let (epoch, next_sequence, stored) = decode(SNAPSHOT, bytes)?;
    Ok(KvSnapshot {
        epoch,
        next_sequence,
        stored,
    })
}

/// The bytes of an event in a batch.
pub(crate) fn event_len(event: &KvEvent) -> usize {
    let hashes = match event {
        KvEvent::Stored { parent, blocks, .. } => usize::from(parent.is_some()) + blocks.len(),
        KvEvent::Removed { blocks, .. } => blocks.len(),
        KvEvent::Cleared => 0,
    };
    EVENT_LEN + hashes * HASH_LEN
}

fn encode(kind: u8, epoch: WorkerEpoch, sequence: u64, events: &[KvEvent]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER_LEN + events.iter().map(event_len).sum::<usize>());
    bytes.put_u8(VERSION);
    bytes.put_u8(kind);
    bytes.put_u64_le(epoch.0);
    bytes.put_u64_le(sequence);
    put_count(&mut bytes, events.len());
    for event in events {
        let (kind, tier, parent, blocks): (_, _, _, &[SequenceHash]) = match event {
            KvEvent::Stored {
                tier,
                parent: None,
                blocks,
            } => (STORED_FIRST, tier.index(), None, blocks),
            KvEvent::Stored { tier, parent, blocks } => (STORED_AFTER, tier.index(), *parent, blocks),
            KvEvent::Removed { tier, blocks } => (REMOVED, tier.index(), None, blocks),
            KvEvent::Cleared => (CLEARED, 0, None, &[]),
        };
        bytes.put_u8(kind);
        bytes.put_u8(tier as u8);
        put_count(&mut bytes, blocks.len());
        for hash in parent.iter().chain(blocks) {
            bytes.put_u64_le(hash.0);
        }
    }
    bytes.freeze()
}

fn put_count(bytes: &mut BytesMut, count: usize) {
    debug_assert!(u32::try_from(count).is_ok(), "no cache holds 34 GB of hashes");
    bytes.put_u32_le(count as u32);
}

fn decode(kind: u8, bytes: &[u8]) -> Result<(WorkerEpoch, u64, Vec<KvEvent>), CodecError> {
    let mut input = Input { bytes, position: 0 };
    let decoded = input.numbered_events(kind)?;
    if input.position != bytes.len() {
        return Err(input.damaged(0));
    }
    Ok(decoded)
}

/// The bytes to decode, and how many of them were read.
struct Input<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Input<'_> {
    /// Reads a whole batch or snapshot.
    fn numbered_events(&mut self, kind: u8) -> Result<(WorkerEpoch, u64, Vec<KvEvent>), CodecError> {
        match self.u8()? {
            VERSION => {}
            other => return Err(CodecError::Version(other)),
        }
        if self.u8()? != kind {
            return Err(self.damaged(1));
        }
        let epoch = WorkerEpoch(self.u64()?);
        let sequence = self.u64()?;
        let count = self.count(EVENT_LEN)?;
        let mut events = Vec::with_capacity(count);
        for _ in 0..count {
            let event = self.event()?;
            if kind == SNAPSHOT && !matches!(event, KvEvent::Stored { .. }) {
                return Err(self.damaged(0));
            }
            events.push(event);
        }
        Ok((epoch, sequence, events))
    }

    fn event(&mut self) -> Result<KvEvent, CodecError> {
        let kind = self.u8()?;
        let tier = self.u8()?;
        let Some(&tier) = CacheTier::ALL.get(tier as usize) else {
            return Err(self.damaged(1));
        };
        let count = self.count(HASH_LEN)?;
        match kind {
            STORED_FIRST => Ok(KvEvent::Stored {
                tier,
                parent: None,
                blocks: self.hashes(count)?,
            }),
            STORED_AFTER => {
                let parent = Some(SequenceHash(self.u64()?));
                Ok(KvEvent::Stored {
                    tier,
                    parent,
                    blocks: self.hashes(count)?,
                })
            }
            REMOVED => Ok(KvEvent::Removed {
                tier,
                blocks: self.hashes(count)?,
            }),
            CLEARED if count == 0 && tier == CacheTier::Device => Ok(KvEvent::Cleared),
            _ => Err(self.damaged(EVENT_LEN)),
        }
    }

    fn hashes(&mut self, count: usize) -> Result<Vec<SequenceHash>, CodecError> {
        (0..count).map(|_| self.u64().map(SequenceHash)).collect()
    }

    /// Reads the number of items that follow, of at least `each` bytes. Fails if the rest is too short for them, before
    /// anything is allocated.
    fn count(&mut self, each: usize) -> Result<usize, CodecError> {
        let count = u32::from_le_bytes(self.take()?) as usize;
        if count > (self.bytes.len() - self.position) / each {
            Err(self.damaged(4))
        } else {
            Ok(count)
        }
    }

    fn u8(&mut self) -> Result<u8, CodecError> {
        self.take().map(|[byte]| byte)
    }

    fn u64(&mut self) -> Result<u64, CodecError> {
        self.take().map(u64::from_le_bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let Some((taken, _)) = self.bytes[self.position..].split_first_chunk() else {
            return Err(CodecError::Malformed(self.bytes.len()));
        };
        self.position += N;
        Ok(*taken)
    }

    /// The error for a value that begins `back` bytes before the position.
    fn damaged(&self, back: usize) -> CodecError {
        CodecError::Malformed(self.position - back)
    }
}
