//! Continuous batching: decides which sequences run and what each step computes.
//!
//! A step has a budget of tokens. First every sequence whose prefill is done gets one token (decode). Then the prompts
//! get the rest of the budget, oldest first, in chunks (chunked prefill), so that a long prompt does not stop running
//! answers. Before it plans a chunk, the schedule takes newly cached blocks. It also waits for blocks that another
//! sequence computes in the same step, so that one of several equal prompts is computed.
//!
//! Blocks are allocated as they are needed, not for `max_tokens` in advance. When blocks run out, the newest sequence
//! is preempted: it returns to the head of the queue with its generated tokens and is computed again later, mostly from
//! the cache.

use std::collections::VecDeque;

use hashbrown::HashSet;
use signalbox_protocol::{
    BlockHasher, ErrorKind, FinishReason, KvEvent, LoadReport, SequenceHash, WireError, WorkerCapacity,
};

use super::cells::{CellCache, CellOp, CellOwner, SequenceCells};
use crate::engine::SequenceId;

/// Most tokens of one prompt with log probabilities that a step computes. Each has the logits of the whole vocabulary: 64 of a
/// vocabulary of 150,000 tokens are 38 MB, and to sort them takes some ten milliseconds.
const MOST_SCORED: u32 = 64;

/// The limits of a [`Schedule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Tokens per KV block.
    pub(super) block_size: u32,
    /// Most tokens of prompt and answer together. At most what the cache holds, so that one sequence can always finish.
    pub(super) context_length: u32,
    /// Most tokens computed in a step: at least one for each running sequence, and one KV block.
    pub(super) batch_tokens: u32,
    /// Most KV blocks, running sequences and waiting sequences.
    pub(super) capacity: WorkerCapacity,
    /// Whether KV blocks stay cached after their sequences.
    pub(super) reuse: bool,
}

/// A sequence with its sampler `S`.
#[derive(Debug)]
pub(super) struct Sequence<S> {
    id: SequenceId,
    /// The prompt, then the generated tokens.
    tokens: Vec<u32>,
    /// Number of prompt tokens.
    prompt_len: usize,
    /// Hashes of the full blocks of `tokens`.
    hashes: Vec<SequenceHash>,
    hasher: BlockHasher,
    max_tokens: u32,
    /// Whether the log probabilities of the prompt are reported, each with this many likeliest tokens. Then no block of the
    /// prompt is taken from the cache.
    scores_prompt: Option<u32>,
    /// Number of prompt tokens whose log probabilities were reported.
    scored: u32,
    /// Number of prompt tokens that were computed for the sequence and not found in the cache.
    prefilled: u32,
    /// Whether the end of the prefill was reported.
    prefill_reported: bool,
    /// Whether the answer is complete before `max_tokens`.
    is_complete: bool,
    sampler: S,
}

/// Tokens of one running sequence to compute in this step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    /// The sequence's index among the running ones, valid until the end of the step.
    pub(super) index: usize,
    /// The sequence's id in llama.cpp.
    pub(super) owner: CellOwner,
    /// Position of the first token.
    pub(super) start: u32,
    /// Number of tokens.
    pub(super) count: u32,
    /// Whether the chunk ends at the sequence's last token, so that its logits give the next token.
    pub(super) is_last: bool,
}

/// The tokens of a prompt that a step scored.
#[derive(Debug)]
pub(super) struct ScoredPrompt {
    pub(super) id: SequenceId,
    /// Number of likeliest tokens to report with each.
    pub(super) top: u32,
    /// Each with the number of the token in the chunk whose logits are its own.
    pub(super) tokens: Vec<(u32, Option<u32>)>,
}

/// The sequences of an engine. `S` samples a sequence's tokens; the schedule only stores it.
#[derive(Debug)]
pub(super) struct Schedule<S> {
    limits: Limits,
    cache: CellCache,
    waiting: VecDeque<Sequence<S>>,
    /// Oldest first.
    running: Vec<(Sequence<S>, SequenceCells)>,
    /// Sequence ids of llama.cpp that no running sequence uses.
    free_owners: Vec<CellOwner>,
    /// Blocks that this step computes.
    in_flight: HashSet<SequenceHash>,
    chunks: Vec<Chunk>,
}

impl<S> Sequence<S> {
    /// A new sequence. `hashes` are those of the prompt's full blocks.
    pub(super) fn new(
        id: SequenceId,
        prompt: Vec<u32>,
        hashes: Vec<SequenceHash>,
        hasher: BlockHasher,
        max_tokens: u32,
        sampler: S,
    ) -> Self {
        let prompt_len = prompt.len();
        Self {
            id,
            tokens: prompt,
            prompt_len,
            hashes,
            hasher,
            max_tokens,
            scores_prompt: None,
            scored: 0,
            prefilled: 0,
            prefill_reported: false,
            is_complete: false,
            sampler,
        }
    }

    /// The sequence, with the log probabilities of its prompt and of the `top` likeliest tokens.
    pub(super) fn scoring_prompt(self, top: u32) -> Self {
        Self {
            scores_prompt: Some(top),
            ..self
        }
    }

    /// The hashes of the blocks that may be taken from the cache.
    fn shareable(&self) -> &[SequenceHash] {
        if self.scores_prompt.is_some() {
            &[]
        } else {
            &self.hashes
        }
    }

    fn generated(&self) -> u32 {
        (self.tokens.len() - self.prompt_len) as u32
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

impl<S> Schedule<S> {
    /// A schedule without sequences.
    pub(super) fn new(limits: Limits) -> Self {
        let running = limits.capacity.max_sequences;
        debug_assert!(
            limits.batch_tokens >= running + limits.block_size,
            "a step has room for a block of prefill beside all decodes"
        );
        debug_assert!(
            limits.context_length <= limits.capacity.kv_blocks * limits.block_size,
            "one sequence always fits into the cache"
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
            free_owners: (0..running as CellOwner).rev().collect(),
            in_flight: HashSet::new(),
            chunks: Vec::new(),
        }
    }

    /// Puts a sequence into the waiting queue.
    ///
    /// # Errors
    /// The sequence can never run, or the queue is full.
    pub(super) fn submit(&mut self, sequence: Sequence<S>) -> Result<(), WireError> {
        let (prompt, context) = (sequence.prompt_len, self.limits.context_length as usize);
        if prompt == 0 {
            return Err(WireError::new(
                ErrorKind::InvalidRequest,
                "the prompt is empty; give at least one token",
            ));
        }
        if prompt >= context {
            return Err(WireError::new(
                ErrorKind::ContextLengthExceeded,
                format!(
                    "the prompt has {prompt} tokens; the context length is {context}, so a prompt may have at most {}",
                    context - 1
                ),
            ));
        }
        let size = self.limits.block_size as usize;
        if sequence.hasher.block_size() != size || sequence.hashes.len() != prompt / size {
            return Err(WireError::new(
                ErrorKind::Internal,
                format!(
                    "the prompt of {prompt} tokens has {} KV blocks of {} tokens; the engine's blocks have {size}",
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
                    "the worker has {max_sequences} sequences running and {max_waiting} waiting, its limits; try \
                     again later"
                ),
            ));
        }
        self.waiting.push_back(sequence);
        Ok(())
    }

    /// Ends a waiting or running sequence early.
    pub(super) fn cancel(&mut self, id: SequenceId, ops: &mut Vec<CellOp>) {
        self.waiting.retain(|sequence| sequence.id != id);
        if let Some(index) = self.running.iter().position(|(sequence, _)| sequence.id == id) {
            self.stop(index, ops);
        }
    }

    /// Plans the next step; see [`Self::chunks`]. The plan has a chunk if there is a sequence.
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
            // The running prompts hold all blocks, and none of them can continue.
            self.preempt_newest(ops);
        }
    }

    /// The chunks that this step computes.
    pub(super) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The tokens of a chunk.
    pub(super) fn tokens(&self, chunk: &Chunk) -> &[u32] {
        &self.running[chunk.index].0.tokens[chunk.start as usize..(chunk.start + chunk.count) as usize]
    }

    /// Whether the chunk needs the logits of all its tokens.
    pub(super) fn scores_prompt(&self, chunk: &Chunk) -> bool {
        let sequence = &self.running[chunk.index].0;
        sequence.scores_prompt.is_some() && (chunk.start as usize) < sequence.prompt_len
    }

    /// The tokens of the prompt that the chunk at index `chunk` scores for the first time, each with the number of the token
    /// in the chunk whose logits are its own: `None` for the first token of the prompt. A preempted sequence is computed again, and not
    /// scored again.
    pub(super) fn scored(&mut self, chunk: usize) -> ScoredPrompt {
        let Chunk {
            index, start, count, ..
        } = self.chunks[chunk];
        let sequence = &mut self.running[index].0;
        let end = (start + count + 1).min(sequence.prompt_len as u32);
        let first = sequence.scored;
        sequence.scored = first.max(end);
        let tokens = (first..end).map(|position| {
            let token = sequence.tokens[position as usize];
            (token, position.checked_sub(start + 1))
        });
        ScoredPrompt {
            id: sequence.id,
            top: sequence.scores_prompt.unwrap_or(0),
            tokens: tokens.collect(),
        }
    }

    /// Records that the planned chunks are computed. Appends to `prefilled` the sequences whose prefill is done, with
    /// the number of their prompt tokens that were found in the cache. Returns the number of prompt tokens that were
    /// computed.
    pub(super) fn computed(&mut self, ops: &mut Vec<CellOp>, prefilled: &mut Vec<(SequenceId, u32)>) -> u32 {
        let mut prompt_tokens = 0;
        for chunk in &self.chunks {
            let (sequence, cells) = &mut self.running[chunk.index];
            let end = chunk.start + chunk.count;
            if !sequence.prefill_reported {
                sequence.prefilled += chunk.count;
                prompt_tokens += chunk.count;
            }
            self.cache
                .computed(cells, end, &sequence.tokens, &sequence.hashes, ops);
            if chunk.is_last && !sequence.prefill_reported {
                sequence.prefill_reported = true;
                let found = (sequence.prompt_len as u32).saturating_sub(sequence.prefilled);
                prefilled.push((sequence.id, found));
            }
        }
        prompt_tokens
    }

    /// The sequence of the chunk at index `chunk`, and its sampler. The sampler is `None` if the sequence has generated
    /// `max_tokens`.
    pub(super) fn sampler(&mut self, chunk: usize) -> (SequenceId, Option<&mut S>) {
        let sequence = &mut self.running[self.chunks[chunk].index].0;
        let continues = sequence.generated() < sequence.max_tokens;
        (sequence.id, continues.then_some(&mut sequence.sampler))
    }

    /// Appends a sampled token to the sequence of the chunk at index `chunk`.
    pub(super) fn push(&mut self, chunk: usize, token: u32) {
        self.running[self.chunks[chunk].index].0.push(token);
    }

    /// The sequence of the chunk at index `chunk` is complete: nothing can follow its last token.
    pub(super) fn complete(&mut self, chunk: usize) {
        self.running[self.chunks[chunk].index].0.is_complete = true;
    }

    /// The samplers of the planned chunks that give a token.
    pub(super) fn samplers(&mut self) -> impl Iterator<Item = &mut S> {
        let chunks = &self.chunks;
        let sampled = |index| chunks.iter().any(|chunk| chunk.is_last && chunk.index == index);
        let running = self.running.iter_mut().enumerate();
        running.filter_map(move |(index, (sequence, _))| sampled(index).then_some(&mut sequence.sampler))
    }

    /// Ends the sequences that are complete, or reached `max_tokens` or the context length. Call it after the last [`Self::push`] of a
    /// step.
    pub(super) fn finish(&mut self, ops: &mut Vec<CellOp>, finished: &mut Vec<(SequenceId, FinishReason)>) {
        for index in (0..self.running.len()).rev() {
            let (sequence, _) = &self.running[index];
            let full = sequence.tokens.len() >= self.limits.context_length as usize;
            let is_long = full || sequence.generated() >= sequence.max_tokens;
            if sequence.prefill_reported && (sequence.is_complete || is_long) {
                let reason = if sequence.is_complete {
                    FinishReason::Stop
                } else {
                    FinishReason::Length
                };
                finished.push((sequence.id, reason));
                self.stop(index, ops);
            }
        }
    }

    /// Appends the blocks stored and removed since the last call.
    pub(super) fn drain_events(&mut self, events: &mut Vec<KvEvent>) {
        self.cache.drain_events(events);
    }

    /// Empties the cache and removes all running sequences, whose ids it returns. Waiting sequences stay.
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

    /// Whether there is no sequence.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// The current load.
    pub(super) fn load(&self) -> LoadReport {
        let pool = self.cache.pool();
        LoadReport {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            active_kv_blocks: pool.active(),
            used_kv_blocks: pool.used(),
            total_kv_blocks: pool.capacity(),
            ..LoadReport::default()
        }
    }

    /// Starts waiting sequences in order, while there are blocks for their tokens beside those that the running
    /// sequences need for theirs.
    fn admit(&mut self, ops: &mut Vec<CellOp>) {
        while let Some(sequence) = self.waiting.front() {
            // One spare block for each sequence. Without it, the next decode could preempt the sequence just admitted.
            let reserved: u32 = self
                .running
                .iter()
                .map(|(other, cells)| self.blocks(other.tokens.len() + 1).saturating_sub(cells.blocks()) + 1)
                .sum();
            if !self
                .cache
                .admits(sequence.shareable(), sequence.tokens.len() + 1, reserved)
            {
                return;
            }
            let Some(owner) = self.free_owners.pop() else {
                return;
            };
            let Some(sequence) = self.waiting.pop_front() else {
                return;
            };
            let mut cells = self.cache.new_sequence(owner);
            self.cache
                .share(&mut cells, &sequence.tokens, sequence.shareable(), ops);
            self.running.push((sequence, cells));
        }
    }

    /// Plans one token for each sequence whose prefill is done. Preempts the newest sequences if blocks run out.
    fn plan_decodes(&mut self, ops: &mut Vec<CellOp>) {
        let mut index = 0;
        while index < self.running.len() {
            let (sequence, cells) = &mut self.running[index];
            let end = sequence.tokens.len() as u32;
            if end - cells.computed() > 1 {
                index += 1;
            } else if self.cache.grow(cells, end, ops).is_ok() {
                self.chunks.push(Chunk {
                    index,
                    owner: cells.owner(),
                    start: end - 1,
                    count: 1,
                    is_last: true,
                });
                index += 1;
            } else {
                // The newest sequence is at `index` or after it, so it has no chunk yet.
                self.preempt_newest(ops);
            }
        }
    }

    /// Plans chunks of the prompts, oldest first, with the tokens that the decodes left of the budget.
    fn plan_prefills(&mut self, ops: &mut Vec<CellOp>) {
        let size = self.limits.block_size;
        let mut budget = self.limits.batch_tokens.saturating_sub(self.chunks.len() as u32);
        for (index, (sequence, cells)) in self.running.iter_mut().enumerate() {
            let total = sequence.tokens.len() as u32;
            if total - cells.computed() <= 1 {
                continue;
            }
            self.cache
                .share(cells, &sequence.tokens, sequence.shareable(), ops);
            let start = cells.computed();
            let most = if sequence.scores_prompt.is_some() {
                budget.min(MOST_SCORED.max(size))
            } else {
                budget
            };
            let mut end = total.min(start + most).min(self.cache.reach(cells));
            if end < total {
                // Full blocks, so that the sequence can share cached blocks before its next chunk.
                end -= end % size;
            }
            let next = &sequence.hashes[(start / size) as usize..];
            let waits = next.first().is_some_and(|hash| self.in_flight.contains(hash));
            if end <= start || waits && sequence.scores_prompt.is_none() {
                continue;
            }
            if self.cache.grow(cells, end, ops).is_err() {
                continue;
            }
            self.in_flight
                .extend(&next[..(end / size - start / size) as usize]);
            budget -= end - start;
            self.chunks.push(Chunk {
                index,
                owner: cells.owner(),
                start,
                count: end - start,
                is_last: end == total,
            });
        }
    }

    /// Moves the newest running sequence back to the head of the queue.
    fn preempt_newest(&mut self, ops: &mut Vec<CellOp>) {
        if let Some(index) = self.running.len().checked_sub(1)
            && let Some(sequence) = self.stop(index, ops)
        {
            self.waiting.push_front(sequence);
        }
    }

    /// Removes a running sequence and releases its cells.
    fn stop(&mut self, index: usize, ops: &mut Vec<CellOp>) -> Option<Sequence<S>> {
        debug_assert!(index < self.running.len());
        let (sequence, cells) = self.running.remove(index);
        self.free_owners.push(cells.owner());
        self.cache.release(cells, ops);
        Some(sequence)
    }

    fn blocks(&self, tokens: usize) -> u32 {
        (tokens as u32).div_ceil(self.limits.block_size)
    }
}

#[cfg(test)]
mod tests;
