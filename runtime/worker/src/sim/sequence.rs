//! One sequence of the simulated engine: its progress and the KV blocks it holds.

use signalbox_protocol::{BlockHasher, FinishReason, SequenceHash};

use super::tokens::TokenSource;
use crate::{
    block_pool::{BlockPool, BlockTable, OutOfBlocks},
    engine::{NewSequence, SequenceId},
    grammar::Grammar,
    token_limits::BannedTokens,
};

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// Number of alternatives to report with each token; `None` for no log probabilities.
    pub(super) logprobs: Option<u32>,
    pub(super) source: TokenSource,
    /// Tokens that it must not generate, if there are any.
    banned: Option<BannedTokens>,
    /// Whether to report the log probabilities of the prompt's tokens.
    pub(super) prompt_logprobs: bool,
    /// What it obeys.
    grammar: Option<Grammar>,
    /// Fewest tokens, if its grammar allows more.
    min_tokens: usize,
    /// Whether it ended before its length.
    ended: bool,
    /// The prompt, then the generated tokens.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    /// The number of tokens, prompt included, at which the sequence ends.
    max_length: usize,
    /// Hashes of the full blocks of `tokens`, as far as they are computed.
    hashes: Vec<SequenceHash>,
    hasher: BlockHasher,
    table: BlockTable,
    /// Number of leading tokens whose KV is in the cache.
    computed: usize,
    /// Number of leading tokens whose KV was in the cache before this step.
    computed_before: usize,
    /// Number of prompt tokens found in the cache.
    cached: usize,
    /// Whether the sequence was preempted once. Blocks that it finds in the cache from then on may be its own.
    preempted: bool,
    /// Whether the end of the prefill was reported. It is reported once, even after a preemption.
    prefill_reported: bool,
}

impl Sequence {
    /// `max_length`: the number of tokens, prompt included, at which the sequence ends.
    pub(super) fn new(new: NewSequence, source: TokenSource, max_length: usize) -> Self {
        let mut tokens = new.tokens;
        let prompt_tokens = tokens.len();
        tokens.reserve_exact(max_length - prompt_tokens);
        let mut limits = new.limits;
        let grammar = limits.grammar.take();
        let mut banned = BannedTokens::new(limits);
        if let Some(banned) = &mut banned {
            let delivered = &tokens[prompt_tokens.saturating_sub(new.generated)..];
            delivered.iter().for_each(|token| banned.push(*token));
        }
        Self {
            id: new.id,
            logprobs: new.sampling.logprobs,
            prompt_logprobs: new.sampling.prompt_logprobs,
            source,
            banned,
            grammar,
            min_tokens: (new.sampling.min_tokens as usize).saturating_sub(new.generated),
            ended: false,
            tokens,
            prompt_tokens,
            max_length,
            hashes: new.blocks,
            hasher: new.hasher,
            table: BlockTable::default(),
            computed: 0,
            computed_before: 0,
            cached: 0,
            preempted: false,
            prefill_reported: false,
        }
    }

    /// Number of tokens to compute before the next one can be generated.
    pub(super) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// A step begins.
    pub(super) fn begin_step(&mut self) {
        self.computed_before = self.computed;
    }

    /// How many tokens this step computes, and whether it computes more than the latest generated one.
    pub(super) fn in_step(&self) -> (usize, bool) {
        let computed = self.computed - self.computed_before;
        let is_decode = self.computed == self.tokens.len() && computed == 1 && self.generated() > 0;
        (computed, !is_decode)
    }

    /// KV blocks that the sequence needs to generate its next token.
    pub(super) fn needed_blocks(&self) -> usize {
        self.tokens.len().div_ceil(self.hasher.block_size())
    }

    /// Hashes of the blocks that the sequence may share: none if its whole prompt is computed for log probabilities.
    pub(super) fn shareable(&self) -> &[SequenceHash] {
        if self.prompt_logprobs {
            return &[];
        }
        shareable(&self.tokens, &self.hashes, self.hasher)
    }

    /// Takes the cached blocks of the tokens. Called before the first of them is computed.
    pub(super) fn share(&mut self, pool: &mut BlockPool) {
        let shareable = if self.prompt_logprobs {
            &[]
        } else {
            shareable(&self.tokens, &self.hashes, self.hasher)
        };
        let shared = pool.share(&mut self.table, shareable) * self.hasher.block_size();
        self.computed += shared;
        self.computed_before = self.computed;
        if !self.preempted {
            self.cached += shared;
        }
    }

    /// Computes the KV of the next `count` tokens and seals the blocks that become full.
    pub(super) fn compute(&mut self, pool: &mut BlockPool, count: usize) -> Result<(), OutOfBlocks> {
        let size = self.hasher.block_size();
        let computed = self.computed + count;
        let more = computed.div_ceil(size).saturating_sub(self.table.blocks().len());
        if more > 0 {
            pool.grow(&mut self.table, more as u32)?;
        }
        self.computed = computed;
        while (self.table.sealed() + 1) * size <= computed {
            let index = self.table.sealed();
            if index == self.hashes.len() {
                let block = &self.tokens[index * size..(index + 1) * size];
                self.hashes
                    .push(self.hasher.next(self.hashes.last().copied(), block));
            }
            pool.seal(&mut self.table, self.hashes[index]);
        }
        Ok(())
    }

    /// Releases the sequence's blocks. Its tokens must be computed again, except those in blocks that stay cached.
    /// Returns the number of tokens that this step had computed of it.
    pub(super) fn release(&mut self, pool: &mut BlockPool) -> usize {
        let in_step = self.computed - self.computed_before;
        pool.release(&mut self.table);
        (self.computed, self.computed_before) = (0, 0);
        self.preempted = true;
        in_step
    }

    /// The number of prompt tokens found in the cache. Returned once, when the prefill is done.
    pub(super) fn report_prefill(&mut self) -> Option<u32> {
        let first = !self.prefill_reported && self.computed >= self.prompt_tokens;
        self.prefill_reported |= first;
        first.then_some(self.cached as u32)
    }

    /// The prompt.
    pub(super) fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_tokens]
    }

    /// Whether the sequence has all its tokens.
    pub(super) fn is_done(&self) -> bool {
        self.ended || self.tokens.len() >= self.max_length && (self.generated() > 0 || self.remaining() == 0)
    }

    /// Number of tokens: those of the prompt and the generated ones.
    pub(super) fn length(&self) -> usize {
        self.tokens.len()
    }

    /// Number of generated tokens.
    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// The next token, out of `vocabulary`. `None` if the grammar allows none of them.
    pub(super) fn next_token(&mut self, vocabulary: &[u32]) -> Option<u32> {
        let position = self.generated();
        let is_allowed = |token| self.banned.as_ref().is_none_or(|banned| !banned.bans(token));
        let Some(grammar) = &mut self.grammar else {
            return Some(self.source.token(position, vocabulary, is_allowed));
        };
        let closing = grammar.closing_tokens();
        let allowed = grammar.allowed()?;
        let is_allowed = |token: u32| allowed.contains(token) && is_allowed(token);
        // Half of the tokens end what is open, so that answers end.
        let closing = closing.iter().copied().find(|token| is_allowed(*token));
        if let (Some(closing), true) = (closing, self.source.is_even(position)) {
            return Some(closing);
        }
        let token = self.source.token(position, vocabulary, is_allowed);
        is_allowed(token).then_some(token).or(closing)
    }

    /// Why the sequence ends.
    pub(super) fn finish_reason(&self) -> FinishReason {
        if self.ended {
            FinishReason::Stop
        } else {
            FinishReason::Length
        }
    }

    pub(super) fn push(&mut self, token: u32) {
        self.tokens.push(token);
        if let Some(grammar) = &mut self.grammar {
            grammar.push(token);
            let may_end = self.tokens.len() - self.prompt_tokens >= self.min_tokens && grammar.may_end();
            self.ended = may_end || grammar.is_complete();
        }
        if let Some(banned) = &mut self.banned {
            banned.push(token);
        }
    }
}

/// The last token is always computed, because the next token is sampled from its logits.
fn shareable<'a>(tokens: &[u32], hashes: &'a [SequenceHash], hasher: BlockHasher) -> &'a [SequenceHash] {
    let most = tokens.len().saturating_sub(1) / hasher.block_size();
    &hashes[..most.min(hashes.len())]
}
