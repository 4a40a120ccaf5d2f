//! The approximate mode of one worker, as a pure state: the KV blocks that the worker probably holds because this
//! router sent it their prompts.
//!
//! It serves workers whose KV events are absent or cannot be relied on. A block counts from the first bytes of the
//! answer to its prompt: the engine has computed the prompt then. It counts until [`TTL`] after its last use, or until
//! the worker's capacity is full of blocks used later. At the end of an answer the engine may report how many tokens of
//! the prompt it took from its KV cache. Credit that the report contradicts is removed. Generated tokens are not learned.
//!
//! A router learns from its own decisions only. Other routers' requests store blocks that this one does not count, and
//! evict blocks that it goes on counting until its next report about them.
//!
//! Each method returns the changes as KV events, to apply to the index under the worker's slot.

use std::{ops::Range, time::Duration};

use signalbox_protocol::{CacheTier, KvEvent, SequenceHash};
use tokio::time::Instant;

use last_uses::LastUses;

mod last_uses;
#[cfg(test)]
mod tests;

/// A block counts for this long after its last use. Dynamo's router uses the same time.
pub(crate) const TTL: Duration = Duration::from_secs(120);

/// Most blocks of a worker that does not state its capacity: a million tokens in blocks of 16.
const DEFAULT_BLOCKS: u32 = 65_536;

/// Most blocks of any worker, so that a card with an absurd capacity costs 64 MiB at most.
const MAX_BLOCKS: u32 = 1 << 20;

/// Most blocks in one event. Every decision waits while the index applies one.
const MAX_EVENT_BLOCKS: usize = 256;

/// The blocks that this router has learned of one worker.
#[derive(Debug)]
pub(crate) struct ApproximateBlocks {
    most_blocks: usize,
    /// The blocks of one use are in it from the last one to the first, so that children expire before their parents.
    uses: LastUses,
    /// Whether the engine has reported tokens from its cache. One that never does reports 0 for every answer, which
    /// does not mean a miss.
    reports_cache: bool,
}

impl ApproximateBlocks {
    /// No blocks. `kv_blocks` is the worker's capacity; 0 if it is unknown.
    pub(crate) fn new(kv_blocks: u32) -> Self {
        let most_blocks = match kv_blocks {
            0 => DEFAULT_BLOCKS,
            known => known.min(MAX_BLOCKS),
        };
        Self {
            most_blocks: most_blocks as usize,
            uses: LastUses::new(),
            reports_cache: false,
        }
    }

    /// The worker has begun to answer a prompt of these blocks. It holds them now; a prompt longer than its capacity
    /// counts up to the capacity.
    pub(crate) fn learn(&mut self, prompt: &[SequenceHash], now: Instant) -> Vec<KvEvent> {
        let mut events = self.expire(now);
        let prompt = &prompt[..prompt.len().min(self.most_blocks)];
        // From the last block to the first, so that children are older than their parents.
        let mut new = Vec::new();
        for place in (0..prompt.len()).rev() {
            if self.uses.touch(prompt[place], now) {
                extend_down(&mut new, place);
            }
        }
        push_stored(&mut events, prompt, new);
        let over = self.uses.len().saturating_sub(self.most_blocks);
        self.remove_oldest(&mut events, |removed, _| removed < over);
        events
    }

    /// An answer to a prompt of these blocks has ended. The router had credited the worker with the first `credited` of
    /// them at the decision, and the engine took `cached_tokens` tokens of the prompt from its KV cache.
    ///
    /// If many fewer blocks were cached than credited, the missing credit is removed. It is withheld until the engine
    /// reports the blocks as cached, or until their time is over and they are learned anew: a prompt whose tokens
    /// differ for the engine would otherwise be credited again by each answer. Blocks that are reported as cached
    /// count again.
    pub(crate) fn correct(
        &mut self,
        prompt: &[SequenceHash],
        credited: u32,
        cached_tokens: u32,
        block_size: u32,
    ) -> Vec<KvEvent> {
        self.reports_cache |= cached_tokens > 0;
        if !self.reports_cache {
            return Vec::new();
        }
        let credited = prompt.len().min(credited as usize);
        let cached = prompt.len().min((cached_tokens / block_size.max(1)) as usize);
        let confirmed = if is_contradicted(prompt.len(), cached) {
            cached
        } else {
            prompt.len()
        };
        let mut events = Vec::new();
        let mut held = Vec::new();
        for place in (0..confirmed).rev() {
            if self.set_withheld(prompt[place], false) {
                extend_down(&mut held, place);
            }
        }
        push_stored(&mut events, prompt, held);
        if is_contradicted(credited, cached) {
            let missing = prompt[cached..credited].iter().rev().copied();
            let missing: Vec<_> = missing.filter(|block| self.set_withheld(*block, true)).collect();
            push_removed(&mut events, &missing);
        }
        events
    }

    /// Removes the blocks whose time is over.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<KvEvent> {
        let mut events = Vec::new();
        self.remove_oldest(&mut events, |_, last_used| last_used + TTL <= now);
        events
    }

    /// Removes the oldest blocks for as long as `is_due` returns true for the number removed so far and the next block's
    /// last use.
    fn remove_oldest(&mut self, events: &mut Vec<KvEvent>, is_due: impl Fn(usize, Instant) -> bool) {
        let (mut removed, mut credited) = (0, Vec::new());
        while self
            .uses
            .oldest()
            .is_some_and(|oldest| is_due(removed, oldest.last_used))
        {
            let oldest = self.uses.remove_oldest().filter(|oldest| !oldest.withheld);
            credited.extend(oldest.map(|oldest| oldest.block));
            removed += 1;
        }
        push_removed(events, &credited);
    }

    /// Withholds a learned block, or counts it again. Returns whether that is a change.
    fn set_withheld(&mut self, block: SequenceHash, withheld: bool) -> bool {
        self.uses
            .get_mut(block)
            .is_some_and(|held| std::mem::replace(&mut held.withheld, withheld) != withheld)
    }
}

/// Whether the engine took so many fewer blocks from its cache than were credited that the credit was wrong. Engines
/// compute the last token of a prompt that is wholly cached, some in steps of several blocks: one block or a quarter
/// fewer is no contradiction.
fn is_contradicted(credited: usize, cached: usize) -> bool {
    cached + (credited / 4).max(1) < credited
}

/// Adds `place` to ranges that are found from the last to the first.
fn extend_down(ranges: &mut Vec<Range<usize>>, place: usize) {
    match ranges.last_mut() {
        Some(range) if range.start == place + 1 => range.start = place,
        _ => ranges.push(place..place + 1),
    }
}

/// Appends `Stored` events for ranges of a prompt, which were found from the last to the first.
fn push_stored(events: &mut Vec<KvEvent>, prompt: &[SequenceHash], ranges: Vec<Range<usize>>) {
    for range in ranges.into_iter().rev() {
        for start in range.clone().step_by(MAX_EVENT_BLOCKS) {
            let end = range.end.min(start + MAX_EVENT_BLOCKS);
            events.push(KvEvent::Stored {
                tier: CacheTier::Device,
                parent: start.checked_sub(1).map(|parent| prompt[parent]),
                blocks: prompt[start..end].to_vec(),
            });
        }
    }
}

fn push_removed(events: &mut Vec<KvEvent>, blocks: &[SequenceHash]) {
    events.extend(blocks.chunks(MAX_EVENT_BLOCKS).map(|blocks| KvEvent::Removed {
        tier: CacheTier::Device,
        blocks: blocks.to_vec(),
    }));
}
