//! How fast the index stores, answers and forgets, and what a membership costs: `cargo bench -p signalbox-kv-index`.
//!
//! Every worker holds its sequences of 256 blocks, the first 64 from one of 16 system prompts that all workers hold
//! too; stored in events of 16 blocks and of 1. Prints one line a figure; times nothing but the index.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark talks to its reader"
)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use signalbox_kv_index::{KvIndex, OverlapScores, WorkerSlot};
use signalbox_protocol::{CacheTier, KvEvent, SequenceHash};

const LENGTH: u64 = 256;
const SHARED: u64 = 64;
const SYSTEM_PROMPTS: u64 = 16;
const LOOKUPS: u64 = 2000;

fn main() {
    for (workers, sessions) in [(64, 200), (1024, 16)] {
        for event in [16, 1] {
            run(workers, sessions, event);
        }
    }
    lookup_of_a_long_prompt_held_by_all();
}

fn hash(worker: u64, session: u64, i: u64) -> SequenceHash {
    let owner = if i < SHARED {
        session % SYSTEM_PROMPTS
    } else {
        1 << 40 | worker << 20 | session
    };
    // SplitMix64, as good as the real hashes for a table.
    let mut z = owner
        .wrapping_mul(0x2545_f491_4f6c_dd1d)
        .wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    SequenceHash(z ^ z >> 31)
}

fn chain(worker: u64, session: u64, length: u64) -> Vec<SequenceHash> {
    (0..length).map(|i| hash(worker, session, i)).collect()
}

fn run(workers: u64, sessions: u64, event: usize) {
    let mut index = KvIndex::new(usize::MAX);
    let mut storing = Duration::ZERO;
    for worker in 0..workers {
        let mut events = Vec::new();
        for session in 0..sessions {
            let mut parent = None;
            for blocks in chain(worker, session, LENGTH).chunks(event) {
                events.push(KvEvent::Stored {
                    tier: CacheTier::Device,
                    parent,
                    blocks: blocks.to_vec(),
                });
                parent = blocks.last().copied();
            }
        }
        let start = Instant::now();
        for event in &events {
            index.apply(WorkerSlot(worker as u32), event);
        }
        storing += start.elapsed();
    }
    let stores = (workers * sessions * LENGTH) as f64;
    let stats = index.stats();
    println!(
        "{workers} workers, events of {event}: store {:.1} M blocks/s",
        stores / storing.as_secs_f64() / 1e6
    );
    println!(
        "{workers} workers, events of {event}: {:.1} B/membership ({} memberships, {} blocks)",
        stats.bytes as f64 / stats.memberships as f64,
        stats.memberships,
        stats.blocks
    );
    for length in [10, 100, 1000] {
        let what = format!("{workers} workers, events of {event}: lookup of {length} blocks");
        print_lookups(&index, |k| chain(k % workers, k % sessions, length), &what);
    }
    let start = Instant::now();
    let before = index.stats().memberships;
    for worker in 0..workers / 2 {
        index.remove_worker(WorkerSlot(worker as u32));
    }
    let removed = (before - index.stats().memberships) as f64;
    println!(
        "{workers} workers, events of {event}: remove half of them, {:.1} M memberships/s",
        removed / start.elapsed().as_secs_f64() / 1e6
    );
}

fn lookup_of_a_long_prompt_held_by_all() {
    for workers in [64, 1024] {
        let mut index = KvIndex::new(usize::MAX);
        let prompt = chain(0, 0, 1000);
        for worker in 0..workers {
            for (number, blocks) in prompt.chunks(16).enumerate() {
                let parent = number.checked_sub(1).map(|before| prompt[before * 16 + 15]);
                let event = KvEvent::Stored {
                    tier: CacheTier::Device,
                    parent,
                    blocks: blocks.to_vec(),
                };
                index.apply(WorkerSlot(worker), &event);
            }
        }
        print_lookups(
            &index,
            |_| prompt.clone(),
            &format!("{workers} workers hold all 1000 blocks: lookup"),
        );
    }
}

/// `prompt` makes the prompt of each lookup right before it, as hashing would.
fn print_lookups(index: &KvIndex, prompt: impl Fn(u64) -> Vec<SequenceHash>, what: &str) {
    let mut scores = OverlapScores::default();
    let mut times: Vec<_> = (0..LOOKUPS)
        .map(|k| {
            let prompt = prompt(k);
            let start = Instant::now();
            index.overlaps(black_box(&prompt), &mut scores);
            black_box(&scores);
            start.elapsed()
        })
        .collect();
    times.sort();
    let at = |share: f64| {
        times
            .get((times.len() as f64 * share) as usize)
            .expect("there are lookups")
            .as_secs_f64()
            * 1e6
    };
    println!("{what}: p50 {:.2} us, p99 {:.2} us", at(0.5), at(0.99));
}
