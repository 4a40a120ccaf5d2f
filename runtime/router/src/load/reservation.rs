//! One request's share of a worker's load.

use std::sync::atomic::Ordering::SeqCst;

use signalbox_kv_index::WorkerSlot;

use super::LoadTable;

/// One request's share of a worker's load, from the decision until the request's end.
#[derive(Debug)]
pub(crate) struct Reservation {
    table: LoadTable,
    worker: WorkerSlot,
    prefill_tokens: u32,
    decode_blocks: u32,
    /// The choices that the request asks for, each of which counts as a request.
    sequences: u32,
    /// Tokens per KV block; 0: the load does not grow with the answer.
    block_size: u32,
    /// Tokens of the answer that no whole KV block in `decode_blocks` accounts for.
    block_tokens: u32,
    /// Blocks by which the load has grown since the last change that was sent to other routers.
    unreported_blocks: u32,
}

/// Blocks of growth that are sent to other routers at once: 256 tokens of an answer. Smaller growth goes with the next
/// change. They know the load of others only roughly, and each message costs all of them.
const REPORTED_GROWTH: u32 = 16;

impl Reservation {
    /// The share that `table` has counted just now.
    pub(super) fn new(table: LoadTable, worker: WorkerSlot, prefill_tokens: u32, decode_blocks: u32) -> Self {
        Self {
            table,
            worker,
            prefill_tokens,
            decode_blocks,
            sequences: 1,
            block_size: 0,
            block_tokens: 0,
            unreported_blocks: 0,
        }
    }

    /// Counts the load of a request for this many sequences, with an answer that grows by KV blocks of this size. Each
    /// sequence reads the prompt's blocks at each step, so they count for each.
    pub(crate) fn of_sequences(mut self, sequences: u32, block_size: u32) -> Self {
        let others = sequences.saturating_sub(1);
        let blocks = self.decode_blocks.saturating_mul(others);
        if let Some(own) = self.table.own.get(self.worker.0 as usize)
            && others > 0
        {
            own.decode_blocks.fetch_add(blocks, SeqCst);
            own.requests.fetch_add(others, SeqCst);
            self.table.changes.raise();
        }
        self.decode_blocks = self.decode_blocks.saturating_add(blocks);
        self.sequences = others + 1;
        self.block_size = block_size;
        self
    }

    /// The worker has generated this many more tokens of the answer, so its prompt is computed.
    pub(crate) fn generated(&mut self, tokens: u32) {
        self.first_token();
        self.block_tokens += tokens;
        if self.block_size > 0 && self.block_tokens >= self.block_size {
            self.grow();
        }
    }

    fn grow(&mut self) {
        let blocks = self.block_tokens / self.block_size;
        self.block_tokens %= self.block_size;
        let Some(own) = self.table.own.get(self.worker.0 as usize) else {
            return;
        };
        self.decode_blocks += blocks;
        self.unreported_blocks += blocks;
        own.decode_blocks.fetch_add(blocks, SeqCst);
        if self.unreported_blocks >= REPORTED_GROWTH {
            self.unreported_blocks = 0;
            self.table.changes.raise();
        }
    }

    /// The prompt is computed: its prefill tokens no longer count. Later calls change nothing.
    pub(crate) fn first_token(&mut self) {
        let tokens = std::mem::take(&mut self.prefill_tokens);
        if let Some(own) = self.table.own.get(self.worker.0 as usize)
            && tokens > 0
        {
            let before = own.prefill_tokens.fetch_sub(tokens, SeqCst);
            debug_assert!(before >= tokens, "R-1: prefill tokens released twice");
            self.table.changes.raise();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.first_token();
        if let Some(own) = self.table.own.get(self.worker.0 as usize) {
            own.decode_blocks.fetch_sub(self.decode_blocks, SeqCst);
            let before = own.requests.fetch_sub(self.sequences, SeqCst);
            debug_assert!(before >= self.sequences, "R-1: a request released twice");
            self.table.changes.raise();
        }
    }
}
