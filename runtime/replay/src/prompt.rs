//! The tokens of a trace's prompts. A trace has ids in place of tokens; equal ids become equal tokens.

use signalbox_protocol::{BlockHasher, SequenceHash};
use signalbox_worker::sim::{GOLDEN, scramble};

use crate::trace::{BlockContent, Trace};

/// The name of the model that every replay serves: part of the hashes of its KV blocks.
pub(crate) const MODEL: &str = "replay";

/// Scope of the tokens that no other request has. No session has this number.
const UNSHARED: u64 = u64::MAX;

/// Makes the prompts of a trace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prompts<'a> {
    trace: &'a Trace,
    hasher: BlockHasher,
}

impl<'a> Prompts<'a> {
    /// The prompts of `trace` for engines whose KV blocks have `block_size` tokens.
    pub(crate) fn new(trace: &'a Trace, block_size: u32) -> Self {
        Self {
            trace,
            hasher: BlockHasher::new(MODEL, "", "", block_size as usize),
        }
    }

    pub(crate) fn hasher(&self) -> BlockHasher {
        self.hasher
    }

    /// The prompt of request number `index`.
    pub(crate) fn tokens(&self, index: usize) -> Vec<u32> {
        let request = &self.trace.requests[index];
        let length = request.input_tokens as usize;
        let mut tokens = Vec::with_capacity(length);
        let unshared = BlockContent {
            scope: UNSHARED,
            id: index as u64,
        };
        let contents = request.blocks.iter().copied().chain([unshared]);
        for content in contents {
            let room = length - tokens.len();
            let start = scramble(scramble(content.scope) ^ content.id);
            let count = room.min(self.trace.block_tokens as usize);
            tokens.extend((0..count as u64).map(|place| token(start, place)));
        }
        tokens
    }

    /// The hashes of the whole KV blocks of `tokens`.
    pub(crate) fn hashes(&self, tokens: &[u32]) -> Vec<SequenceHash> {
        self.hasher.hash(tokens)
    }
}

/// The token at `place` of the block whose content is `start`: the high half of a multiplication, which depends on all
/// bits below it.
fn token(start: u64, place: u64) -> u32 {
    ((start ^ place).wrapping_mul(GOLDEN) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::trace::{Arrival, TraceRequest};

    fn request(input_tokens: u32, scope: u64, ids: &[u64]) -> TraceRequest {
        TraceRequest {
            arrival: Arrival::At(Duration::ZERO),
            input_tokens,
            output_tokens: 1,
            blocks: ids.iter().map(|&id| BlockContent { scope, id }).collect(),
            session: 0,
        }
    }

    #[test]
    fn equal_ids_are_equal_tokens_and_nothing_else_is() {
        let trace = Trace {
            block_tokens: 8,
            requests: vec![
                request(20, 0, &[1, 2, 3]),
                request(24, 0, &[1, 2, 4]),
                request(20, 1, &[1, 2, 3]),
                request(20, 0, &[1, 2]),
                request(20, 0, &[1, 2]),
            ],
        };
        let prompts = Prompts::new(&trace, 4);
        let hashes: Vec<_> = (0..5)
            .map(|index| prompts.hashes(&prompts.tokens(index)))
            .collect();
        assert_eq!(hashes.iter().map(Vec::len).collect::<Vec<_>>(), [5, 6, 5, 5, 5]);
        assert_eq!(hashes[0][..4], hashes[1][..4]);
        assert_ne!(hashes[0][4], hashes[1][4]);
        assert_ne!(hashes[0][0], hashes[2][0], "another session's ids");
        assert_eq!(hashes[3][..4], hashes[0][..4]);
        assert_ne!(
            hashes[3][4], hashes[4][4],
            "tokens after the ids are no other request's"
        );
    }
}
