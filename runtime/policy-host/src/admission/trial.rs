//! Trial decisions: generated requests and candidates, always the same, in every size that a policy meets later.

use std::sync::Arc;

use crate::{
    candidates::{Candidates, candidate_traits, for_each_column, value_of},
    features::{RequestFeatures, RequestKeys},
};

/// Numbers of candidates: the smallest, a machine, a rack, and the largest that is measured.
const SIZES: [usize; 5] = [1, 2, 8, 64, 1024];
/// Decisions of each size, each with a load of another kind.
const ROUNDS: u64 = 4;
/// The number of the first trial decision. Real decisions count from 0, so a policy can distinguish the two.
const FIRST_DECISION: u64 = 1 << 32;

/// The decisions that every policy makes before it is admitted.
pub(super) fn trial_decisions() -> impl Iterator<Item = (RequestFeatures, Candidates)> {
    trial_requests(&SIZES, ROUNDS)
}

/// Requests with candidates, `rounds` for each number of candidates in `sizes`: short and long prompts; empty, shared
/// and full caches; idle and overloaded workers; columns at their extremes. The same arguments give the same requests.
/// For trying, recording and measuring policies.
pub fn trial_requests(
    sizes: &[usize],
    rounds: u64,
) -> impl Iterator<Item = (RequestFeatures, Candidates)> + use<'_> {
    let mut numbers = Numbers(0x5167_6e61_6c62_6f78);
    let shapes = sizes
        .iter()
        .flat_map(move |&size| (0..rounds).map(move |round| (size, round)));
    shapes
        .zip(FIRST_DECISION..)
        .map(move |((size, round), decision_number)| decision(&mut numbers, size, round, decision_number))
}

fn decision(
    numbers: &mut Numbers,
    size: usize,
    round: u64,
    decision_number: u64,
) -> (RequestFeatures, Candidates) {
    let kind = (round % 4) as usize;
    let block_size = [16, 32, 64, 1][kind];
    let prompt_blocks = numbers.below([64, 512, 4096, 2][kind]);
    let expected_output_tokens = numbers.below(2048);
    let mut key = |present: bool| if present { numbers.next() } else { 0 };
    let session = key(true);
    let keys = RequestKeys {
        session,
        user: key(kind != 0),
        cache_key: key(kind == 1),
        safety_identifier: key(kind == 2),
        tenant: key(kind == 3),
        lora: key(kind == 3),
        cache_salt: key(kind == 2),
        prefix: if kind == 3 { 0 } else { session.rotate_left(32) },
        headers: Arc::default(),
    };
    let request = RequestFeatures {
        prompt_tokens: prompt_blocks * block_size + numbers.below(block_size),
        prompt_blocks,
        block_size,
        max_output_tokens: (kind != 2).then_some(expected_output_tokens),
        expected_output_tokens,
        choices: 1 + numbers.below(2),
        priority: numbers.below(5) as i32 - 2,
        attempt: (round % 2) as u32,
        now_ms: 60_000 + decision_number.wrapping_sub(FIRST_DECISION) * 10,
        deadline_ms: numbers.below(600_000) as f32,
        keys,
        seed: numbers.next(),
        decision_number,
        other_routers: (round % 3) as u32,
    };
    let mut candidates = Candidates::default();
    for worker in 0..size as u32 {
        let trial = Trial {
            numbers: &mut *numbers,
            kind,
            blocks_left: prompt_blocks,
            row: Row::default(),
        };
        trial.append(worker * 7 + 3, &mut candidates);
    }
    (request, candidates)
}

/// Generates the values of one candidate. The table of columns (`candidates.rs`) says which method gives which value.
struct Trial<'a> {
    numbers: &'a mut Numbers,
    /// 0: a cluster that just started, everything is zero. 3: load columns at their limits. Others: ordinary load.
    kind: usize,
    /// KV blocks of the prompt that are not yet on a tier of this worker.
    blocks_left: u32,
    /// The values so far.
    row: Row,
}

impl Trial<'_> {
    fn generate<T>(&mut self, value: fn(&mut Self) -> T) -> T {
        value(self)
    }

    /// A number from 0 to `most`.
    fn up_to(&mut self, most: u32) -> u32 {
        if self.kind == 0 {
            0
        } else {
            self.numbers.below(most.saturating_add(1))
        }
    }

    /// Some of the prompt's KV blocks that are not yet on a tier.
    fn overlap(&mut self) -> u32 {
        let blocks = self.up_to(self.blocks_left);
        self.blocks_left -= blocks;
        blocks
    }

    /// A load of this router: ordinarily at most `most`.
    fn own_load(&mut self, most: u32) -> u32 {
        if self.kind == 3 {
            u32::MAX - self.up_to(1)
        } else {
            self.up_to(most)
        }
    }

    /// A load of all routers: that of this one and at most `most` of the others.
    fn load_of_all(&mut self, own: u32, most: u32) -> u32 {
        own.saturating_add(self.up_to(most))
    }

    fn key(&mut self) -> u64 {
        self.numbers.next()
    }

    fn traits(&mut self) -> u32 {
        candidate_traits::PREFILL | candidate_traits::DECODE | (self.up_to(3) << 2)
    }
}

macro_rules! define_rows {
    ($($(#[$doc:meta])* $group:ident $space:ident $column:ident: $name:literal, trial $value:expr;)*) => {
        /// The values of one candidate.
        #[derive(Default)]
        struct Row {
            $($column: value_of!($space),)*
        }

        impl Trial<'_> {
            /// Generates a candidate and appends it to the columns.
            fn append(mut self, worker: u32, candidates: &mut Candidates) {
                candidates.worker.push(worker);
                $(
                    self.row.$column = self.generate($value);
                    candidates.$column.push(self.row.$column);
                )*
            }
        }
    };
}

for_each_column!(define_rows);

/// SplitMix64: a stream of numbers that is the same on every machine.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number from 0 to below `limit`.
    fn below(&mut self, limit: u32) -> u32 {
        (self.next() % u64::from(limit.max(1))) as u32
    }
}
