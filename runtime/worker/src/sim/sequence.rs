//! One sequence of the simulated engine: how far it has come, and the KV blocks it holds.

use signalbox_protocol::{BlockHasher, SequenceHash};

use super::words::TokenSource;
use crate::{
    block_pool::{BlockPool, BlockTable, OutOfBlocks},
    engine::{NewSequence, SequenceId},
};

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// Alternatives to tell with each token; `None` for no log probabilities.
    pub(super) logprobs: Option<u32>,
    pub(super) source: TokenSource,
    /// The prompt, then what was generated.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    /// Length at which it is over.
    limit: usize,
    /// Identities of the whole blocks of `tokens`, as far as they are known.
    hashes: Vec<SequenceHash>,
    hasher: BlockHasher,
    table: BlockTable,
    /// Leading tokens whose KV is in the cache.
    computed: usize,
    /// Tokens of the prompt that were found in the cache and not computed for this sequence.
    cached: usize,
    /// It gave its blocks back once: what it finds from then on may be its own work.
    preempted: bool,
    /// Whether the prompt's prefill was reported: once, however often it is preempted.
    reported: bool,
}

impl Sequence {
    /// `limit`: length of prompt and answer together at which it is over.
    pub(super) fn new(new: NewSequence, source: TokenSource, limit: usize) -> Self {
        let mut tokens = new.tokens;
        let prompt_tokens = tokens.len();
        tokens.reserve_exact(limit - prompt_tokens);
        Self {
            id: new.id,
            logprobs: new.sampling.logprobs,
            source,
            tokens,
            prompt_tokens,
            limit,
            hashes: new.blocks,
            hasher: new.hasher,
            table: BlockTable::default(),
            computed: 0,
            cached: 0,
            preempted: false,
            reported: false,
        }
    }

    /// Tokens whose KV is still to be computed before the next one can be generated.
    pub(super) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// It has generated a token and nothing but that one is to be computed.
    pub(super) fn is_decoding(&self) -> bool {
        self.remaining() == 1 && self.tokens.len() > self.prompt_tokens
    }

    /// Blocks it needs to generate its next token.
    pub(super) fn needed_blocks(&self) -> usize {
        self.tokens.len().div_ceil(self.hasher.block_size())
    }

    /// The blocks it may share.
    pub(super) fn shareable(&self) -> &[SequenceHash] {
        shareable(&self.tokens, &self.hashes, self.hasher)
    }

    /// Tokens to compute next within `budget`: up to a block's edge where it cannot be all, so that others can share
    /// what it computes and it can share what they do.
    pub(super) fn next_chunk(&self, budget: usize) -> usize {
        let remaining = self.remaining();
        if remaining <= budget {
            return remaining;
        }
        let beyond_edge = (self.computed + budget) % self.hasher.block_size();
        if beyond_edge < budget {
            budget - beyond_edge
        } else {
            budget
        }
    }

    /// Takes what others have computed meanwhile. Only where it stands at a block's edge.
    pub(super) fn share(&mut self, pool: &mut BlockPool) {
        let shareable = shareable(&self.tokens, &self.hashes, self.hasher);
        let shared = pool.share(&mut self.table, shareable) * self.hasher.block_size();
        self.computed += shared;
        if !self.preempted {
            self.cached += shared;
        }
    }

    /// Computes the KV of its next `count` tokens and seals the blocks they fill.
    pub(super) fn compute(&mut self, pool: &mut BlockPool, count: usize) -> Result<(), OutOfBlocks> {
        let size = self.hasher.block_size();
        let computed = self.computed + count;
        let more = computed.div_ceil(size).saturating_sub(self.table.blocks().len());
        if more > 0 {
            pool.grow(&mut self.table, more as u32)?;
        }
        self.computed = computed;
        while (self.table.sealed() + 1) * size <= computed {
            let place = self.table.sealed();
            if place == self.hashes.len() {
                let block = &self.tokens[place * size..(place + 1) * size];
                self.hashes
                    .push(self.hasher.next(self.hashes.last().copied(), block));
            }
            pool.seal(&mut self.table, self.hashes[place]);
        }
        Ok(())
    }

    /// Gives its blocks back. What it had computed is to be computed again, except what stays cached.
    pub(super) fn release(&mut self, pool: &mut BlockPool) {
        pool.release(&mut self.table);
        self.computed = 0;
        self.preempted = true;
    }

    /// The number of prompt tokens found in the cache: once, when the prompt is whole there.
    pub(super) fn report_prefill(&mut self) -> Option<u32> {
        let first = !self.reported && self.computed >= self.prompt_tokens;
        self.reported |= first;
        first.then_some(self.cached as u32)
    }

    /// Whether no further token may be generated.
    pub(super) fn is_over(&self) -> bool {
        self.tokens.len() >= self.limit && (self.generated() > 0 || self.remaining() == 0)
    }

    /// Tokens generated so far.
    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    pub(super) fn push(&mut self, token: u32) {
        self.tokens.push(token);
    }
}

/// The last token is always computed, since the next one follows from its logits.
fn shareable<'a>(tokens: &[u32], hashes: &'a [SequenceHash], hasher: BlockHasher) -> &'a [SequenceHash] {
    let most = tokens.len().saturating_sub(1) / hasher.block_size();
    &hashes[..most.min(hashes.len())]
}
