//! A full index: what it still credits, and its memory.

use std::collections::VecDeque;

use super::*;

/// Blocks of each prompt, the first of which are a system prompt's.
const PROMPT: u64 = 48;
const SYSTEM_PROMPT: u64 = 8;
const SYSTEM_PROMPTS: u64 = 6;

fn prompt(number: u64) -> Vec<SequenceHash> {
    let block = |i: u64| {
        let owner = if i < SYSTEM_PROMPT {
            number % SYSTEM_PROMPTS
        } else {
            SYSTEM_PROMPTS + number
        };
        (owner << 8 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    };
    chain((0..PROMPT).map(block))
}

/// Engines behind one index, each with a cache of its own.
struct Fleet {
    index: KvIndex,
    /// By worker, the prompts held, oldest first.
    held: Vec<VecDeque<u64>>,
    /// Most prompts that a worker holds.
    capacity: usize,
    scores: OverlapScores,
}

impl Fleet {
    fn new(workers: usize, capacity: usize, max_bytes: usize) -> Self {
        Self {
            index: KvIndex::new(max_bytes),
            held: vec![VecDeque::new(); workers],
            capacity,
            scores: OverlapScores::default(),
        }
    }

    /// A worker computes a prompt that no worker has seen, and evicts its oldest one for it.
    fn compute(&mut self, worker: usize, number: u64) {
        let slot = WorkerSlot(worker as u32);
        self.index.apply(
            slot,
            &KvEvent::Stored {
                tier: DEVICE,
                parent: None,
                blocks: prompt(number),
            },
        );
        self.held[worker].push_back(number);
        if self.held[worker].len() > self.capacity
            && let Some(oldest) = self.held[worker].pop_front()
        {
            let own = prompt(oldest)[SYSTEM_PROMPT as usize..].to_vec();
            self.index.apply(
                slot,
                &KvEvent::Removed {
                    tier: DEVICE,
                    blocks: own,
                },
            );
        }
    }

    /// Looks a prompt up. Returns how many blocks of it the worker that computed it is credited with.
    fn ask_again(&mut self, worker: usize, number: u64) -> u64 {
        self.index.overlaps(&prompt(number), &mut self.scores);
        u64::from(self.scores.device(WorkerSlot(worker as u32)))
    }
}

/// Ten minutes of new prompts, of which the index holds some hundred seconds' and the engines four minutes'. Of the prompts asked again
/// within a minute, at least nine in ten are credited whole; and the memory stays within the bound (K-3).
#[test]
fn a_full_index_credits_prompts_that_are_asked_again_within_a_minute() {
    const WORKERS: u64 = 16;
    const PER_SECOND: u64 = 10;
    const MAX_BYTES: usize = 2 << 20;
    let mut fleet = Fleet::new(
        WORKERS as usize,
        (4 * 60 * PER_SECOND / WORKERS) as usize,
        MAX_BYTES,
    );
    let empty = fleet.index.stats().bytes;
    let (mut asked, mut credited, mut pieces) = (0, 0, 0);
    // Prompts by the second in which they are asked again.
    let mut due: VecDeque<Vec<u64>> = vec![Vec::new(); 61].into();
    for number in 0..10 * 60 * PER_SECOND {
        let worker_of = |number: u64| (number * 7 % WORKERS) as usize;
        fleet.index.overlaps(&prompt(number), &mut fleet.scores);
        fleet.compute(worker_of(number), number);
        assert!(fleet.index.stats().bytes <= MAX_BYTES, "K-3");
        if number % 2 == 0 {
            due[(number * 31 % 60) as usize + 1].push(number);
        }
        if number % PER_SECOND == 0 {
            for number in due.pop_front().unwrap() {
                let found = fleet.ask_again(worker_of(number), number);
                asked += 1;
                credited += u64::from(found == PROMPT);
                pieces += u64::from(found > SYSTEM_PROMPT && found < PROMPT);
            }
            due.push_back(Vec::new());
        }
    }
    check_state(&fleet.index);
    let stats = fleet.index.stats();
    let computed = 10 * 60 * PER_SECOND * PROMPT;
    assert!(
        stats.evicted > computed / 2,
        "the index is too small for the prompts: {stats:?}"
    );
    assert!(stats.blocks as u64 > computed / 10, "it is full: {stats:?}");
    assert!(asked > 2_500, "{asked} prompts asked again");
    assert!(
        credited * 10 >= asked * 9,
        "{credited} of {asked} credited, {pieces} in part; {stats:?}, {empty} empty"
    );
    assert_eq!(stats.refused_stores, 0, "new prompts found room");
}

/// Prompts that are asked again and again outlast any number of prompts that are not.
#[test]
fn prompts_in_use_outlast_new_ones() {
    let mut fleet = Fleet::new(4, usize::MAX, 2 << 20);
    for number in 0..100 {
        fleet.compute((number % 4) as usize, number);
    }
    for round in 1..100 {
        for number in 0..100 {
            assert_eq!(
                fleet.ask_again((number % 4) as usize, number),
                PROMPT,
                "prompt {number}, round {round}"
            );
            fleet.compute((number % 4) as usize, round * 100 + number);
        }
    }
    assert!(fleet.index.stats().evicted > 50 * 100 * PROMPT / 2);
}

/// One worker stores forty times as much as each other one and never reports a removal. It displaces its own blocks
/// first: the others' prompts stay longer than by age alone.
#[test]
fn a_worker_that_stores_too_much_displaces_its_own_blocks_first() {
    const FLOOD: u64 = 40;
    const ASKED_AGAIN_AFTER: u64 = 16;
    // By age alone, some 10 rounds of prompts fit.
    let mut fleet = Fleet::new(8, usize::MAX, 1 << 20);
    let number = |round: u64, nth: u64| round * 100 + nth;
    let (mut asked, mut credited) = (0, 0);
    for round in 0..300 {
        for nth in 0..FLOOD + 7 {
            fleet.compute(nth.saturating_sub(FLOOD - 1) as usize, number(round, nth));
        }
        if round >= 100 {
            for nth in FLOOD..FLOOD + 7 {
                asked += 1;
                let found =
                    fleet.ask_again((nth - FLOOD + 1) as usize, number(round - ASKED_AGAIN_AFTER, nth));
                credited += u64::from(found == PROMPT);
            }
        }
    }
    let stats = fleet.index.stats();
    let held = stats.blocks as u64 / PROMPT;
    assert!(
        held < ASKED_AGAIN_AFTER * (FLOOD + 7) * 9 / 10,
        "by age alone they would not be held: {held} prompts fit"
    );
    assert!(
        credited * 10 >= asked * 8,
        "{credited} of {asked} credited, {stats:?}"
    );
}

/// What a worker lacks in the index is known, until the worker is removed or clears its cache.
#[test]
fn a_worker_whose_blocks_were_evicted_is_partial() {
    let mut fleet = Fleet::new(2, usize::MAX, 128 << 10);
    // The strands of the system prompts, which stay in use, are worker 1's.
    for number in 0..SYSTEM_PROMPTS {
        fleet.compute(1, number);
    }
    fleet.compute(0, SYSTEM_PROMPTS);
    assert!(!fleet.index.is_partial(WorkerSlot(0)));
    for number in SYSTEM_PROMPTS + 1..1000 {
        fleet.compute(1, number);
    }
    assert_eq!(
        [0, 1].map(|slot| fleet.index.is_partial(WorkerSlot(slot))),
        [true; 2]
    );
    fleet.index.apply(WorkerSlot(0), &KvEvent::Cleared);
    fleet.index.remove_worker(WorkerSlot(1));
    assert_eq!(
        [0, 1].map(|slot| fleet.index.is_partial(WorkerSlot(slot))),
        [false; 2]
    );
}

/// One chain larger than the index: its beginning is credited, and its end refused.
#[test]
fn a_chain_does_not_displace_its_own_beginning() {
    let mut fleet = Fleet::new(1, usize::MAX, 64 << 10);
    for number in 0..50 {
        fleet.compute(0, number);
    }
    fleet
        .index
        .apply(WorkerSlot(0), &stored(DEVICE, None, 1_000..21_000));
    let mut scores = OverlapScores::default();
    fleet.index.overlaps(&chain(1_000..21_000), &mut scores);
    let credited = scores.device(WorkerSlot(0));
    let stats = fleet.index.stats();
    assert!(credited > 1_000, "{credited} credited, {stats:?}");
    assert_eq!(stats.refused_stores, 20_000 - u64::from(credited));
    check_state(&fleet.index);
}
