//! What is known about a stream of KV events: the facts that a verdict on parity rests on.

use std::{collections::BTreeSet, fmt, time::Instant};

/// Most block sizes kept in [`KvEventFacts::block_sizes`]: an engine has one or, with several kinds of attention, a few.
const MAX_BLOCK_SIZES: usize = 8;

/// What is known about one stream of KV events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KvEventFacts {
    /// Whether there is a connection to the engine's event socket.
    pub connected: bool,
    /// Whether lost batches can be fetched again.
    pub replay: Replay,
    /// Whether every block that the engine holds is known, except those counted in `dropped`. False while the source
    /// has not caught up, and after a loss that could not be repaired, until the engine starts again.
    pub complete: bool,
    /// Batches applied.
    pub batches: u64,
    /// When the last batch arrived.
    pub last_batch: Option<Instant>,
    /// Times that batches were missing and had to be fetched again.
    pub gaps: u64,
    /// Those of `gaps` that could not be filled. Each one forgot all blocks.
    pub unfilled_gaps: u64,
    /// Times that the engine's numbers began again, or that nobody could tell whether they did. Each one forgot all
    /// blocks.
    pub restarts: u64,
    /// Batches that could not be read at all. Each one forgot all blocks.
    pub unreadable_batches: u64,
    /// What was read and could not be used, by cause.
    pub dropped: Dropped,
    /// Tokens per block in the engine's events, the first few sizes seen.
    pub block_sizes: BTreeSet<u32>,
    /// Blocks held now, on any tier.
    pub held_blocks: usize,
}

/// Whether lost batches can be fetched again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Replay {
    /// The engine has no replay socket, as far as the source was configured.
    #[default]
    NotConfigured,
    /// No replay has been tried yet.
    Untried,
    /// The last replay was answered.
    Available,
    /// The last replay was not answered.
    Unanswered,
}

/// Why a part of an event was not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropCause {
    /// The block follows one that is unknown: its place in a prompt cannot be told.
    UnknownParent,
    /// The block holds an image, other media or prompt embeddings, or follows such a block: routers see tokens only.
    Media,
    /// The tokens are pairs, as SGLang sends with EAGLE speculative decoding: they are no tokens of a prompt.
    TokenPairs,
    /// The block has another size than the worker's blocks.
    BlockSize,
    /// The block is of a layer group without full attention, which does not say whether a prompt is held. Usual for
    /// models that mix kinds of attention.
    AttentionGroup,
    /// The block is on another machine.
    Remote,
    /// The storage medium is unknown.
    Medium,
    /// The block is of a LoRA adapter whose name is not in the event.
    UnnamedLora,
    /// The engine's hash named another block before.
    Conflict,
    /// More blocks are held than the engine has room for.
    Full,
    /// A member is missing or of a wrong type, or the counts of hashes and tokens disagree.
    Malformed,
    /// An event of a kind that is unknown here.
    UnknownEvent,
    /// The batch is of another data-parallel rank.
    OtherRank,
}

impl DropCause {
    /// All causes.
    pub const ALL: [Self; 13] = [
        Self::UnknownParent,
        Self::Media,
        Self::TokenPairs,
        Self::BlockSize,
        Self::AttentionGroup,
        Self::Remote,
        Self::Medium,
        Self::UnnamedLora,
        Self::Conflict,
        Self::Full,
        Self::Malformed,
        Self::UnknownEvent,
        Self::OtherRank,
    ];

    /// The name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownParent => "unknown_parent",
            Self::Media => "media",
            Self::TokenPairs => "token_pairs",
            Self::BlockSize => "block_size",
            Self::AttentionGroup => "attention_group",
            Self::Remote => "remote",
            Self::Medium => "medium",
            Self::UnnamedLora => "unnamed_lora",
            Self::Conflict => "conflict",
            Self::Full => "full",
            Self::Malformed => "malformed",
            Self::UnknownEvent => "unknown_event",
            Self::OtherRank => "other_rank",
        }
    }
}

/// How much was not used, by cause: blocks, or events where an event does not say how many blocks it is about.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped([u64; DropCause::ALL.len()]);

impl Dropped {
    /// The count of one cause.
    pub fn count(&self, cause: DropCause) -> u64 {
        self.0[cause as usize]
    }

    /// The causes that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropCause, u64)> {
        let counts = DropCause::ALL.map(|cause| (cause, self.count(cause)));
        counts.into_iter().filter(|&(_, count)| count > 0)
    }

    pub(super) fn add(&mut self, cause: DropCause, count: usize) {
        self.0[cause as usize] += count as u64;
    }
}

impl fmt::Debug for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.iter().map(|(cause, count)| (cause.as_str(), count)))
            .finish()
    }
}

/// Adds a block size to those seen.
pub(super) fn note_block_size(sizes: &mut BTreeSet<u32>, size: u32) {
    if sizes.len() < MAX_BLOCK_SIZES {
        sizes.insert(size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_a_count_and_a_name_of_its_own() {
        let mut dropped = Dropped::default();
        for (count, cause) in DropCause::ALL.into_iter().enumerate() {
            dropped.add(cause, count + 1);
        }
        for (count, cause) in DropCause::ALL.into_iter().enumerate() {
            assert_eq!(dropped.count(cause), count as u64 + 1);
        }
        let names: BTreeSet<_> = DropCause::ALL.map(DropCause::as_str).into_iter().collect();
        assert_eq!(names.len(), DropCause::ALL.len());
        assert_eq!(dropped.iter().count(), DropCause::ALL.len());
    }
}
