//! Which sequences run, and what each step computes: continuous batching.
//!
//! A step has a budget of tokens. First every sequence that is past its prompt gets one (decode), then the prompts get
//! what is left, oldest first, in chunks (chunked prefill): nobody's answer stops because somebody else came with a
//! long prompt. Before a chunk is planned the cache is asked again, and blocks that another sequence is computing in
//! the same step are waited for: of several equal prompts one is computed.
//!
//! Room is taken as it is needed, not for `max_tokens` ahead. When it runs out, the newest sequence gives way: it goes
//! back to the head of the queue with what it has generated and is computed again later, mostly from the cache.

use std::collections::VecDeque;

use hashbrown::HashSet;
use signalbox_protocol::{
    BlockHasher, ErrorKind, FinishReason, KvEvent, LoadReport, SequenceHash, WireError, WorkerCapacity,
};

use super::cells::{CellCache, CellOp, CellOwner, Held};
use crate::engine::SequenceId;

/// What a [`Schedule`] keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Tokens per KV block.
    pub(super) block_size: u32,
    /// Most tokens of prompt and answer together; no more than fit the cache, so that one sequence can always end.
    pub(super) context_length: u32,
    /// Tokens computed in a step: at least one for each running sequence and a block beside.
    pub(super) batch_tokens: u32,
    /// Blocks, running sequences, and queue.
    pub(super) capacity: WorkerCapacity,
    /// Whether KV blocks outlive their sequences.
    pub(super) reuse: bool,
}

/// A sequence, with the state of what picks its tokens.
#[derive(Debug)]
pub(super) struct Sequence<P> {
    id: SequenceId,
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// How many of them are the prompt.
    prompt: usize,
    /// Identities of the whole blocks of `tokens`.
    hashes: Vec<SequenceHash>,
    hasher: BlockHasher,
    max_tokens: u32,
    /// Prompt tokens that were computed for it, and not found.
    prefilled: u32,
    /// Whether the end of its prefill was told.
    told: bool,
    picker: P,
}

/// Tokens of one running sequence to compute in this step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    /// The sequence's place among the running ones, for the rest of the step.
    pub(super) place: usize,
    /// Its sequence id in llama.cpp.
    pub(super) owner: CellOwner,
    /// Position of the first token.
    pub(super) start: u32,
    /// How many.
    pub(super) count: u32,
    /// It reaches the sequence's last token: a new one is to be picked from its logits.
    pub(super) picks: bool,
}

/// The sequences of an engine. `P` picks a sequence's tokens; here it is only kept.
#[derive(Debug)]
pub(super) struct Schedule<P> {
    limits: Limits,
    cache: CellCache,
    waiting: VecDeque<Sequence<P>>,
    /// Oldest first.
    running: Vec<(Sequence<P>, Held)>,
    owners: Vec<CellOwner>,
    /// Blocks that are computed in this step.
    in_flight: HashSet<SequenceHash>,
    chunks: Vec<Chunk>,
}

impl<P> Sequence<P> {
    /// `hashes` are those of the prompt's whole blocks.
    pub(super) fn new(
        id: SequenceId,
        prompt: Vec<u32>,
        hashes: Vec<SequenceHash>,
        hasher: BlockHasher,
        max_tokens: u32,
        picker: P,
    ) -> Self {
        let prompt_len = prompt.len();
        Self {
            id,
            tokens: prompt,
            prompt: prompt_len,
            hashes,
            hasher,
            max_tokens,
            prefilled: 0,
            told: false,
            picker,
        }
    }

    fn generated(&self) -> u32 {
        (self.tokens.len() - self.prompt) as u32
    }

    fn push(&mut self, token: u32) {
        self.tokens.push(token);
        let size = self.hasher.block_size();
        if self.tokens.len().is_multiple_of(size) {
            let block = &self.tokens[self.tokens.len() - size..];
            self.hashes
                .push(self.hasher.next(self.hashes.last().copied(), block));
        }
    }
}

impl<P> Schedule<P> {
    /// Nothing to do yet.
    pub(super) fn new(limits: Limits) -> Self {
        let running = limits.capacity.max_sequences;
        debug_assert!(
            limits.batch_tokens >= running + limits.block_size,
            "a block of prefill beside all decodes"
        );
        debug_assert!(
            limits.context_length <= limits.capacity.kv_blocks * limits.block_size,
            "one always fits"
        );
        Self {
            limits,
            cache: CellCache::new(
                limits.capacity.kv_blocks,
                limits.block_size,
                running,
                limits.reuse,
            ),
            waiting: VecDeque::new(),
            running: Vec::new(),
            owners: (0..running as CellOwner).rev().collect(),
            in_flight: HashSet::new(),
            chunks: Vec::new(),
        }
    }

    /// Takes a sequence into the queue, or says why not.
    pub(super) fn submit(&mut self, sequence: Sequence<P>) -> Result<(), WireError> {
        let (prompt, context) = (sequence.prompt, self.limits.context_length as usize);
        if prompt == 0 {
            return Err(WireError::new(
                ErrorKind::InvalidRequest,
                "the prompt has no tokens; give at least one",
            ));
        }
        if prompt >= context {
            return Err(WireError::new(
                ErrorKind::ContextLengthExceeded,
                format!(
                    "the prompt has {prompt} tokens; this worker takes {context} for prompt and answer together, \
                     so at most {} in the prompt",
                    context - 1
                ),
            ));
        }
        let size = self.limits.block_size as usize;
        if sequence.hasher.block_size() != size || sequence.hashes.len() != prompt / size {
            return Err(WireError::new(
                ErrorKind::Internal,
                format!(
                    "{} block identities of {} tokens came with a prompt of {prompt} tokens; this engine's blocks \
                     have {size}",
                    sequence.hashes.len(),
                    sequence.hasher.block_size()
                ),
            ));
        }
        let WorkerCapacity {
            max_sequences,
            max_waiting,
            ..
        } = self.limits.capacity;
        let room = max_waiting as usize + (max_sequences as usize).saturating_sub(self.running.len());
        if self.waiting.len() >= room {
            return Err(WireError::new(
                ErrorKind::Overloaded,
                format!(
                    "this worker has {max_sequences} sequences running and {max_waiting} waiting, its most"
                ),
            ));
        }
        self.waiting.push_back(sequence);
        Ok(())
    }

    /// Ends a sequence early, wherever it is.
    pub(super) fn cancel(&mut self, id: SequenceId, ops: &mut Vec<CellOp>) {
        self.waiting.retain(|sequence| sequence.id != id);
        if let Some(place) = self.running.iter().position(|(sequence, _)| sequence.id == id) {
            self.stop(place, ops);
        }
    }

    /// Decides what the next step computes; see [`Self::chunks`]. There is something wherever there is a sequence.
    pub(super) fn plan(&mut self, ops: &mut Vec<CellOp>) {
        self.chunks.clear();
        self.in_flight.clear();
        self.admit(ops);
        while !self.running.is_empty() {
            self.plan_decodes(ops);
            self.plan_prefills(ops);
            if !self.chunks.is_empty() {
                return;
            }
            // All room is held by prompts none of which can go on.
            self.preempt_newest(ops);
        }
    }

    /// What this step computes.
    pub(super) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The tokens of a chunk.
    pub(super) fn tokens(&self, chunk: &Chunk) -> &[u32] {
        &self.running[chunk.place].0.tokens[chunk.start as usize..(chunk.start + chunk.count) as usize]
    }

    /// The plan was carried out: its KV is in the cache. Tells which prompts are whole now, with the number of their
    /// tokens that were found there.
    pub(super) fn computed(&mut self, ops: &mut Vec<CellOp>, prefilled: &mut Vec<(SequenceId, u32)>) {
        for chunk in &self.chunks {
            let (sequence, held) = &mut self.running[chunk.place];
            let end = chunk.start + chunk.count;
            if !sequence.told {
                sequence.prefilled += chunk.count;
            }
            self.cache
                .computed(held, end, &sequence.tokens, &sequence.hashes, ops);
            if chunk.picks && !sequence.told {
                sequence.told = true;
                let found = (sequence.prompt as u32).saturating_sub(sequence.prefilled);
                prefilled.push((sequence.id, found));
            }
        }
    }

    /// The sequence of a chunk, by the chunk's index, and what picks its next token; `None` where it wants no token.
    pub(super) fn picker(&mut self, chunk: usize) -> (SequenceId, Option<&mut P>) {
        let sequence = &mut self.running[self.chunks[chunk].place].0;
        let wants = sequence.generated() < sequence.max_tokens;
        (sequence.id, wants.then_some(&mut sequence.picker))
    }

    /// The token picked for the sequence of a chunk, by the chunk's index.
    pub(super) fn push(&mut self, chunk: usize, token: u32) {
        self.running[self.chunks[chunk].place].0.push(token);
    }

    /// Ends those that are over, after the last [`Self::push`] of a step.
    pub(super) fn finish(&mut self, ops: &mut Vec<CellOp>, finished: &mut Vec<(SequenceId, FinishReason)>) {
        for place in (0..self.running.len()).rev() {
            let (sequence, _) = &self.running[place];
            let full = sequence.tokens.len() >= self.limits.context_length as usize;
            if sequence.told && (full || sequence.generated() >= sequence.max_tokens) {
                finished.push((sequence.id, FinishReason::Length));
                self.stop(place, ops);
            }
        }
    }

    /// Appends what was stored and removed since the last call.
    pub(super) fn drain_events(&mut self, events: &mut Vec<KvEvent>) {
        self.cache.drain_events(events);
    }

    /// Forgets the whole cache and all running sequences, whose ids it returns. What waits goes on waiting.
    pub(super) fn reset(&mut self) -> Vec<SequenceId> {
        let waiting = std::mem::take(&mut self.waiting);
        let before = std::mem::replace(
            self,
            Self {
                waiting,
                ..Self::new(self.limits)
            },
        );
        before.running.iter().map(|(sequence, _)| sequence.id).collect()
    }

    /// Whether nothing is left to do.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Its work now.
    pub(super) fn load(&self) -> LoadReport {
        let pool = self.cache.pool();
        LoadReport {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            active_kv_blocks: pool.active(),
            used_kv_blocks: pool.used(),
            total_kv_blocks: pool.capacity(),
        }
    }

    /// Starts those that wait, in order, as long as there is room for their tokens beside what the running ones still
    /// need for theirs.
    fn admit(&mut self, ops: &mut Vec<CellOp>) {
        while let Some(sequence) = self.waiting.front() {
            // A block of headroom each, or the next decode would preempt at once who has just come.
            let promised: u32 = self
                .running
                .iter()
                .map(|(other, held)| self.blocks(other.tokens.len() + 1).saturating_sub(held.blocks()) + 1)
                .sum();
            if !self
                .cache
                .admits(&sequence.hashes, sequence.tokens.len() + 1, promised)
            {
                return;
            }
            let Some(owner) = self.owners.pop() else { return };
            let Some(sequence) = self.waiting.pop_front() else {
                return;
            };
            let mut held = self.cache.hold(owner);
            self.cache
                .share(&mut held, &sequence.tokens, &sequence.hashes, ops);
            self.running.push((sequence, held));
        }
    }

    /// One token for each sequence past its prompt. Where there is no room for it, the newest sequences give way.
    fn plan_decodes(&mut self, ops: &mut Vec<CellOp>) {
        let mut place = 0;
        while place < self.running.len() {
            let (sequence, held) = &mut self.running[place];
            let end = sequence.tokens.len() as u32;
            if end - held.computed() > 1 {
                place += 1;
            } else if self.cache.grow(held, end, ops).is_ok() {
                self.chunks.push(Chunk {
                    place,
                    owner: held.owner(),
                    start: end - 1,
                    count: 1,
                    picks: true,
                });
                place += 1;
            } else {
                // It is the last or after `place`, so not planned yet.
                self.preempt_newest(ops);
            }
        }
    }

    /// Prompts, oldest first, with what the decodes left of the step's tokens.
    fn plan_prefills(&mut self, ops: &mut Vec<CellOp>) {
        let size = self.limits.block_size;
        let mut budget = self.limits.batch_tokens.saturating_sub(self.chunks.len() as u32);
        for (place, (sequence, held)) in self.running.iter_mut().enumerate() {
            let total = sequence.tokens.len() as u32;
            if total - held.computed() <= 1 {
                continue;
            }
            self.cache.share(held, &sequence.tokens, &sequence.hashes, ops);
            let start = held.computed();
            let mut end = total.min(start + budget).min(self.cache.reach(held));
            if end < total {
                // Whole blocks, so that the cache can be asked again before the next chunk.
                end -= end % size;
            }
            let next = &sequence.hashes[(start / size) as usize..];
            if end <= start || next.first().is_some_and(|hash| self.in_flight.contains(hash)) {
                continue;
            }
            if self.cache.grow(held, end, ops).is_err() {
                continue;
            }
            self.in_flight
                .extend(&next[..(end / size - start / size) as usize]);
            budget -= end - start;
            self.chunks.push(Chunk {
                place,
                owner: held.owner(),
                start,
                count: end - start,
                picks: end == total,
            });
        }
    }

    /// The newest running sequence goes back to the head of the queue.
    fn preempt_newest(&mut self, ops: &mut Vec<CellOp>) {
        if let Some(place) = self.running.len().checked_sub(1)
            && let Some(sequence) = self.stop(place, ops)
        {
            self.waiting.push_front(sequence);
        }
    }

    fn stop(&mut self, place: usize, ops: &mut Vec<CellOp>) -> Option<Sequence<P>> {
        debug_assert!(place < self.running.len());
        let (sequence, held) = self.running.remove(place);
        self.owners.push(held.owner());
        self.cache.release(held, ops);
        Some(sequence)
    }

    fn blocks(&self, tokens: usize) -> u32 {
        (tokens as u32).div_ceil(self.limits.block_size)
    }
}

#[cfg(test)]
mod tests;
