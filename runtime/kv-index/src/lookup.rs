//! The walk along a prompt's blocks.
//!
//! Leading blocks on the device, then on device or host, then on any tier: each is the length of the longest prefix
//! held on a set of tiers, and the sets contain one another. So three races run side by side, one for each set of
//! tiers. Everybody who holds the first block starts; who lacks a block drops out, and the blocks before it are the
//! worker's length in that race.

use signalbox_protocol::{CacheTier, SequenceHash};

use crate::{KvIndex, OverlapScores, strand::Holders};

/// Words of each race kept on the stack: enough for 4,096 workers. More take an allocation for each lookup.
const INLINE_WORDS: usize = 64;

impl KvIndex {
    /// Leading blocks of `blocks` that each worker holds, by tier; `scores` is cleared and reused.
    ///
    /// `blocks` are the hashes of the prompt's whole blocks, first block first.
    pub fn overlaps(&self, blocks: &[SequenceHash], scores: &mut OverlapScores) {
        let slots = self.slots();
        let below_device = self.holds_below_device();
        scores.reset(slots, if below_device { slots } else { 0 });
        let words = slots.div_ceil(64);
        let (mut inline, mut spilled);
        let running = if words <= INLINE_WORDS {
            inline = [0; 3 * INLINE_WORDS];
            &mut inline[..]
        } else {
            spilled = vec![0; 3 * words];
            &mut spilled[..]
        };
        let (device, running) = running.split_at_mut(words);
        let (host, running) = running.split_at_mut(words);
        let (disk, _) = running.split_at_mut(words);
        let device = Race {
            tiers: &CacheTier::ALL[..1],
            running: device,
            column: &mut scores.device,
        };
        if !below_device {
            return self.run(blocks, [device]);
        }
        let host = Race {
            tiers: &CacheTier::ALL[..2],
            running: host,
            column: &mut scores.host,
        };
        let disk = Race {
            tiers: &CacheTier::ALL[..3],
            running: disk,
            column: &mut scores.disk,
        };
        self.run(blocks, [device, host, disk]);
        // Lengths become what each further tier adds.
        for ((device, host), disk) in scores.device.iter().zip(&mut scores.host).zip(&mut scores.disk) {
            *disk -= *host;
            *host -= *device;
        }
    }

    /// Runs the races; the tiers of the last contain those of the others.
    fn run<const N: usize>(&self, blocks: &[SequenceHash], mut races: [Race<'_>; N]) {
        let mut depth = 0;
        while let Some(place) = blocks.get(depth).and_then(|&block| self.find(block)) {
            let strand = self.strand(place);
            let run = strand.run_after(place.offset(), &blocks[depth..]);
            for (held, holders) in strand.holders(place.offset()..place.offset() + run) {
                let mut anyone = false;
                for race in &mut races {
                    anyone = race.reach(depth, holders);
                }
                if !anyone {
                    return;
                }
                depth += held;
            }
        }
        for race in &mut races {
            race.finish(depth);
        }
    }
}

/// Which workers hold every block so far on the given tiers.
struct Race<'a> {
    tiers: &'static [CacheTier],
    /// A bit for each slot.
    running: &'a mut [u64],
    /// The result for each slot; 0 to begin with.
    column: &'a mut [u32],
}

impl Race<'_> {
    /// After `depth` blocks comes one of `holders`. Whether anyone is left.
    fn reach(&mut self, depth: usize, holders: &Holders) -> bool {
        let mut anyone = 0;
        for at in 0..self.running.len() {
            let held = self.tiers.iter().fold(0, |held, &tier| {
                held | holders.on(tier).map_or(0, |set| set.word(at))
            });
            let before = self.running[at];
            let after = if depth == 0 { held } else { before & held };
            self.record(at, before & !after, depth);
            self.running[at] = after;
            anyone |= after;
        }
        anyone != 0
    }

    /// Whoever still runs has `depth` blocks.
    fn finish(&mut self, depth: usize) {
        for at in 0..self.running.len() {
            self.record(at, self.running[at], depth);
        }
    }

    fn record(&mut self, at: usize, mut slots: u64, depth: usize) {
        // Slots past the last have no bits, so the column is long enough.
        let rows = &mut self.column[at * 64..];
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
