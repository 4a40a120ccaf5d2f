//! A lookup: the walk along the blocks of a prompt.
//!
//! The columns of the result are lengths of prefixes: the longest prefix that a worker holds on the device, on device or
//! host, and on any tier. So a lookup runs three matches side by side, one for each of these sets of tiers. At first, the
//! workers that hold the first block match. A worker that does not hold the next block stops matching, and the number of
//! blocks before that block is its length.

use signalbox_protocol::{CacheTier, SequenceHash};

use crate::{KvIndex, OverlapScores, strand::Holders};

/// Words of each match on the stack: enough for 4,096 workers. With more workers each lookup allocates.
const INLINE_WORDS: usize = 64;

impl KvIndex {
    /// Writes into `scores` how many leading blocks of `blocks` each worker holds, by tier. Earlier content of `scores` is
    /// dropped, and its memory reused.
    ///
    /// `blocks` are the hashes of the prompt's whole blocks, first block first.
    pub fn overlaps(&self, blocks: &[SequenceHash], scores: &mut OverlapScores) {
        let slots = self.slots();
        let below_device = self.holds_below_device();
        scores.reset(slots, if below_device { slots } else { 0 });
        let words = slots.div_ceil(64);
        let (mut inline, mut spilled);
        let matching = if words <= INLINE_WORDS {
            inline = [0; 3 * INLINE_WORDS];
            &mut inline[..]
        } else {
            spilled = vec![0; 3 * words];
            &mut spilled[..]
        };
        let (device, matching) = matching.split_at_mut(words);
        let (host, matching) = matching.split_at_mut(words);
        let (disk, _) = matching.split_at_mut(words);
        let device = TierMatch {
            tiers: &CacheTier::ALL[..1],
            matching: device,
            column: &mut scores.device,
        };
        if !below_device {
            return self.run(blocks, [device]);
        }
        let host = TierMatch {
            tiers: &CacheTier::ALL[..2],
            matching: host,
            column: &mut scores.host,
        };
        let disk = TierMatch {
            tiers: &CacheTier::ALL[..3],
            matching: disk,
            column: &mut scores.disk,
        };
        self.run(blocks, [device, host, disk]);
        // Each lower tier's length becomes the number of blocks that the tier adds.
        for ((device, host), disk) in scores.device.iter().zip(&mut scores.host).zip(&mut scores.disk) {
            *disk -= *host;
            *host -= *device;
        }
    }

    /// Runs the matches. The tiers of the last match contain the tiers of all others, so it goes on longest.
    fn run<const N: usize>(&self, blocks: &[SequenceHash], mut matches: [TierMatch<'_>; N]) {
        let mut depth = 0;
        while let Some(place) = blocks.get(depth).and_then(|&block| self.find(block)) {
            let strand = self.strand(place);
            strand.touch_in_lookup(self.clock());
            let run = strand.run_after(place.offset(), &blocks[depth..]);
            for (held, holders) in strand.holders(place.offset()..place.offset() + run) {
                let mut any_left = false;
                for tier_match in &mut matches {
                    any_left = tier_match.narrow(depth, holders);
                }
                if !any_left {
                    return;
                }
                depth += held;
            }
        }
        for tier_match in &mut matches {
            tier_match.finish(depth);
        }
    }
}

/// The workers that hold every block so far on the given tiers.
struct TierMatch<'a> {
    tiers: &'static [CacheTier],
    /// A bit for each slot.
    matching: &'a mut [u64],
    /// The result for each slot, at first 0.
    column: &'a mut [u32],
}

impl TierMatch<'_> {
    /// Moves on to the block after the first `depth` blocks, which has these holders. Returns whether any worker still
    /// matches.
    fn narrow(&mut self, depth: usize, holders: &Holders) -> bool {
        let mut any_left = 0;
        for word in 0..self.matching.len() {
            let held = self.tiers.iter().fold(0, |held, &tier| {
                held | holders.on(tier).map_or(0, |set| set.word(word))
            });
            let before = self.matching[word];
            let after = if depth == 0 { held } else { before & held };
            self.record(word, before & !after, depth);
            self.matching[word] = after;
            any_left |= after;
        }
        any_left != 0
    }

    /// Records the length `depth` for the workers that still match.
    fn finish(&mut self, depth: usize) {
        for word in 0..self.matching.len() {
            self.record(word, self.matching[word], depth);
        }
    }

    fn record(&mut self, word: usize, mut slots: u64, depth: usize) {
        // No bit is set past the last slot, so the column is long enough.
        let rows = &mut self.column[word * 64..];
        if slots == u64::MAX {
            rows[..64].fill(depth as u32);
            return;
        }
        while slots != 0 {
            rows[slots.trailing_zeros() as usize] = depth as u32;
            slots &= slots - 1;
        }
    }
}
