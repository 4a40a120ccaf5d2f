//! The bytes of a batch of KV events, in every shape that engines send.
//!
//! A batch is MessagePack: an array of a time in seconds, the events and, if the engine sends it, the data-parallel
//! rank. An event is a map whose member `type` names it, or, from engines before 2026, an array that begins with the
//! name:
//!
//! | event | members, in the order of the array |
//! |---|---|
//! | `BlockStored` | `block_hashes`, `parent_block_hash`, `token_ids`, `block_size`, `lora_id`, `medium`, `lora_name`, `extra_keys`, `group_idx`, `kv_cache_spec_kind`; only in maps: `locality`, `cache_salt` |
//! | `BlockRemoved` | `block_hashes`, `medium`, `group_idx`; only in maps: `locality` |
//! | `AllBlocksCleared` | |
//!
//! Arrays may be shorter. Other members (`session_id`, `ownership`, `lookahead_token_ids` and those to come) are
//! skipped, and so are events of other names. A member of the wrong type costs its event and no other.
//!
//! Sources: vLLM 0.32 and 0.33 `vllm/distributed/kv_events.py`, `vllm/v1/core/kv_cache_utils.py` (extra keys); SGLang
//! 0.5.23 `sglang/srt/disaggregation/kv_events.py`.

use serde::de::Error as _;
use signalbox_protocol::CacheTier;

mod events;
mod lenient;
mod lists;
#[cfg(test)]
mod tests;

use events::Envelope;
use lenient::Lenient;

/// Most bytes of a payload. A batch has the changes of one engine step: up to some 100,000 tokens of five bytes, or, on
/// request, all blocks of one prompt. A prompt of a million tokens is 5 MB.
pub(super) const MAX_PAYLOAD_LEN: usize = 16 << 20;
/// Most events of a batch. An engine sends up to one for each block that a step evicts. All are in memory at once, at
/// some 200 bytes.
const MAX_EVENTS: usize = 1 << 17;
/// Most block hashes of a batch: a prompt of a million tokens in blocks of one token.
const MAX_HASHES: usize = 1 << 20;
/// Most token ids of a batch: more than the steps and contexts of engines have, and 16 MiB of memory.
const MAX_TOKENS: usize = 1 << 22;
/// Most extra keys of a batch: one for each block, which is the LoRA adapter's name.
const MAX_EXTRA_KEYS: usize = MAX_HASHES;
/// Most values inside each other. The deepest one that is read, a pair in `extra_keys`, is the sixth.
const MAX_DEPTH: usize = 32;

/// One batch, as the engine sent it. Texts are borrowed from the payload.
#[derive(Debug, PartialEq)]
pub(super) struct Batch<'a> {
    /// The data-parallel rank, if the engine sends it.
    pub(super) rank: Option<u32>,
    /// The events, in the order they happened.
    pub(super) events: Vec<RawEvent<'a>>,
}

/// One event, as the engine sent it.
#[derive(Debug, PartialEq)]
pub(super) enum RawEvent<'a> {
    Stored(RawStored<'a>),
    Removed(RawRemoved),
    Cleared,
    /// A `BlockRemoved` that cannot be used: some blocks are gone, and nobody knows which.
    UnreadableRemoved,
    /// Another event that cannot be used.
    Unreadable,
    /// An event of another name.
    Unknown,
}

/// Blocks that the engine holds from now on.
#[derive(Debug, PartialEq)]
pub(super) struct RawStored<'a> {
    /// The blocks, each following the one before it.
    pub(super) hashes: Vec<EngineHash>,
    /// The block before the first; `None` if that begins a sequence.
    pub(super) parent: Option<EngineHash>,
    /// The tokens of all blocks, one after the other. None for a copy of known blocks on another medium.
    pub(super) tokens: RawTokens,
    /// Tokens per block.
    pub(super) block_size: u32,
    pub(super) lora: RawLora<'a>,
    /// The salt, from engines that send it as a member of each event.
    pub(super) cache_salt: Option<&'a str>,
    /// What the engine's hashes cover beside tokens: the number of a block within this event, ascending, and a key.
    pub(super) extra_keys: Vec<(usize, ExtraKey<'a>)>,
    pub(super) medium: RawMedium,
    /// The group of layers; `None` from engines that have one.
    pub(super) group: Option<u32>,
    /// Whether the group's attention reaches back to the first token.
    pub(super) full_attention: bool,
}

/// Blocks that the engine no longer holds on a medium.
#[derive(Debug, PartialEq)]
pub(super) struct RawRemoved {
    pub(super) hashes: Vec<EngineHash>,
    pub(super) medium: RawMedium,
    /// The group of layers; `None` from engines that have one.
    pub(super) group: Option<u32>,
}

/// An engine's own hash of a block: an unsigned or signed integer of 64 bits, or up to 32 bytes, of which the last 16
/// are as good as all, because they are of a cryptographic hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct EngineHash([u64; 2]);

#[cfg(test)]
impl EngineHash {
    /// The hash that an engine sends as this integer.
    pub(super) fn of(hash: u64) -> Self {
        Self([0, hash])
    }
}

/// The token ids of an event.
#[derive(Debug, PartialEq)]
pub(super) enum RawTokens {
    Ids(Vec<u32>),
    /// Pairs of neighbours, as SGLang sends with EAGLE speculative decoding.
    Pairs,
    /// Not all are numbers of 32 bits.
    Unreadable,
}

/// The LoRA adapter of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RawLora<'a> {
    None,
    Named(&'a str),
    /// There is one, and only its number in the engine is known.
    Unnamed,
}

/// Something that an engine's hash covers beside tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ExtraKey<'a> {
    /// A LoRA adapter's name, a salt or, from older engines, the hash of an image.
    Text(&'a str),
    /// Something else: an image with its position, prompt embeddings, a LoRA adapter's number.
    Opaque,
}

/// Where blocks are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RawMedium {
    Tier(CacheTier),
    /// On another machine.
    Remote,
    Unknown,
}

/// A payload that is no batch of KV events.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidPayload {
    #[error("a payload of {0} bytes is longer than {MAX_PAYLOAD_LEN}")]
    TooLong(usize),
    #[error("the payload is no batch of KV events: {0}")]
    Unreadable(#[from] rmp_serde::decode::Error),
}

/// Decodes a batch. Bytes after it are ignored.
///
/// # Errors
/// The payload is too long, is no MessagePack, or exceeds a bound of this file.
pub(super) fn decode(payload: &[u8]) -> Result<Batch<'_>, InvalidPayload> {
    if payload.len() > MAX_PAYLOAD_LEN {
        return Err(InvalidPayload::TooLong(payload.len()));
    }
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(payload);
    deserializer.set_max_depth(MAX_DEPTH);
    let Lenient(Envelope(batch)) = serde::Deserialize::deserialize(&mut deserializer)?;
    batch.ok_or_else(|| rmp_serde::decode::Error::custom("it is no array of a time and events").into())
}
