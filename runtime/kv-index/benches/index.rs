//! The speed of stores, lookups and removals, and the bytes per membership: `cargo bench -p signalbox-kv-index`. For a
//! part of it, add `-- 8`, `64` or `1024` (workers), `long` or `shared`.
//!
//! Every worker holds sequences of 256 blocks. The first 64 blocks are one of 16 system prompts that all workers hold.
//! The blocks are stored in events of 16 blocks and of 1, the latter also in batches. No worker holds the blocks of a
//! prompt past the 256th. The bench prints one line per figure, and times only the index. `tests/memory.rs` checks the
//! bytes against the allocator.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark prints its figures"
)]

use std::{
    env,
    hint::black_box,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use signalbox_kv_index::{KvIndex, OverlapScores, SharedKvIndex, WorkerSlot};
use signalbox_protocol::{CacheTier, KvEvent, SequenceHash};

const LENGTH: u64 = 256;
const SHARED: u64 = 64;
const SYSTEM_PROMPTS: u64 = 16;
const LOOKUPS: u64 = 2000;
/// Long enough for the system to schedule reader and writer on a core each.
const LOOKING_BESIDE_A_WRITER: Duration = Duration::from_millis(500);

fn main() {
    // Cargo adds a flag, `--bench`.
    let wanted: Vec<String> = env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|name| name == part);
    for (workers, sessions) in [(8, 400), (64, 100), (1024, 16)] {
        for (event, together) in [(16, 1), (1, 1), (1, 32)] {
            if is_wanted(&workers.to_string()) {
                run(workers, sessions, event, together);
            }
        }
    }
    if is_wanted("long") {
        lookup_of_a_long_prompt_held_by_all();
    }
    if is_wanted("shared") {
        lookup_beside_a_writer(64, 100);
    }
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

/// The events of a worker that stores a sequence.
fn stored(sequence: &[SequenceHash], event: usize) -> impl Iterator<Item = KvEvent> {
    let mut parent = None;
    sequence.chunks(event).map(move |blocks| KvEvent::Stored {
        tier: CacheTier::Device,
        parent: std::mem::replace(&mut parent, blocks.last().copied()),
        blocks: blocks.to_vec(),
    })
}

fn events_of(worker: u64, sessions: u64, event: usize) -> Vec<KvEvent> {
    (0..sessions)
        .flat_map(|session| stored(&chain(worker, session, LENGTH), event).collect::<Vec<_>>())
        .collect()
}

/// Times an index with events of `event` blocks, `together` of them in a batch, as an engine step publishes them.
fn run(workers: u64, sessions: u64, event: usize, together: usize) {
    let mut index = KvIndex::new(usize::MAX);
    let mut storing = Duration::ZERO;
    for worker in 0..workers {
        let events = events_of(worker, sessions, event);
        let start = Instant::now();
        for batch in events.chunks(together) {
            index.apply_all(WorkerSlot(worker as u32), batch);
        }
        storing += start.elapsed();
    }
    let stores = (workers * sessions * LENGTH) as f64;
    let stats = index.stats();
    let batches = if together > 1 {
        format!(", {together} together")
    } else {
        String::new()
    };
    let name = format!("{workers} x {sessions}, events of {event}{batches}");
    println!(
        "{name}: store {:.2} M block/s, {:.1} B/membership ({} memberships, {} blocks)",
        stores / storing.as_secs_f64() / 1e6,
        stats.bytes as f64 / stats.memberships as f64,
        stats.memberships,
        stats.blocks
    );
    for length in [10, 100, 1000] {
        let mut scores = OverlapScores::default();
        let times = time_lookups(
            0..LOOKUPS,
            |k| chain(k % workers, k % sessions, length),
            |prompt| index.overlaps(prompt, &mut scores),
        );
        println!("{name}: lookup {length} blocks: {}", percentiles(&times));
    }
    let start = Instant::now();
    let before = stats.memberships;
    for worker in 0..workers / 2 {
        index.remove_worker(WorkerSlot(worker as u32));
    }
    let removed = (before - index.stats().memberships) as f64;
    println!(
        "{name}: remove half the workers: {:.2} M memberships/s",
        removed / start.elapsed().as_secs_f64() / 1e6
    );
}

fn lookup_of_a_long_prompt_held_by_all() {
    for workers in [64, 1024] {
        let mut index = KvIndex::new(usize::MAX);
        let prompt = chain(0, 0, 1000);
        for worker in 0..workers {
            for event in stored(&prompt, 16) {
                index.apply(WorkerSlot(worker), &event);
            }
        }
        let mut scores = OverlapScores::default();
        let times = time_lookups(
            0..LOOKUPS,
            |_| prompt.clone(),
            |prompt| index.overlaps(prompt, &mut scores),
        );
        println!(
            "{workers} workers hold all of 1000 blocks: lookup {}",
            percentiles(&times)
        );
    }
}

/// Times lookups beside a writer. The writer stores the sequences of one more worker and clears it, again and again, one
/// event at a time and without a pause.
fn lookup_beside_a_writer(workers: u64, sessions: u64) {
    let index = SharedKvIndex::new(usize::MAX);
    for worker in 0..workers {
        let events = events_of(worker, sessions, 16);
        index.apply_all(WorkerSlot(worker as u32), &events);
    }
    let print = |what: &str| {
        for length in [10, 100, 1000] {
            let mut scores = OverlapScores::default();
            let prompt = |k| chain(k % workers, k % sessions, length);
            let start = Instant::now();
            let lookups = (0..).take_while(|_| start.elapsed() < LOOKING_BESIDE_A_WRITER);
            let times = time_lookups(lookups, prompt, |prompt| {
                index.read(|index| index.overlaps(prompt, &mut scores));
            });
            println!("{what}: lookup {length} blocks: {}", percentiles(&times));
        }
    };
    for event in [16, 1] {
        print("shared, quiet");
        let done = AtomicBool::new(false);
        let events = events_of(workers, sessions, event);
        let rate = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let (start, mut blocks) = (Instant::now(), 0);
                while !done.load(Ordering::Relaxed) {
                    for stored in &events {
                        index.apply_all(WorkerSlot(workers as u32), std::slice::from_ref(stored));
                        blocks += event;
                    }
                    index.apply_all(WorkerSlot(workers as u32), &[KvEvent::Cleared]);
                }
                blocks as f64 / start.elapsed().as_secs_f64() / 1e6
            });
            print(&format!("shared, a writer with events of {event}"));
            done.store(true, Ordering::Relaxed);
            writer.join().expect("the writer does not panic")
        });
        println!("shared, the writer with events of {event}: {rate:.2} M block/s");
    }
}

/// `prompt` makes the prompt of each lookup right before the lookup, as hashing does.
fn time_lookups(
    lookups: impl Iterator<Item = u64>,
    prompt: impl Fn(u64) -> Vec<SequenceHash>,
    mut lookup: impl FnMut(&[SequenceHash]),
) -> Vec<Duration> {
    let mut times: Vec<_> = lookups
        .map(|k| {
            let prompt = prompt(k);
            let start = Instant::now();
            lookup(black_box(&prompt));
            start.elapsed()
        })
        .collect();
    times.sort();
    times
}

fn percentiles(times: &[Duration]) -> String {
    let at = |share: f64| {
        times
            .get((times.len() as f64 * share) as usize)
            .expect("there are lookups")
            .as_secs_f64()
            * 1e6
    };
    format!("p50 {:.2} us p99 {:.2} us", at(0.5), at(0.99))
}
