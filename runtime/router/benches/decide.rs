//! The cost of a whole decision: look up the prompt's blocks, fill the candidates' columns, call the policy, check
//! its answer, reserve the load, record it. `cargo bench --package signalbox-router [-- POLICY… WORKERS… unrecorded large]`.
//!
//! Each figure is the lowest of several medians, because other work on the machine only ever makes a median higher.
//! Arguments that name policies or numbers of workers limit the bench to them. With `unrecorded` nothing records the decisions,
//! which routers do not offer: the difference is the cost of the record. `large` adds a run in which 1,024
//! workers hold 100,000 blocks each; it takes some gigabytes of memory.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

use std::{sync::Arc, time::Instant};

use signalbox_policy_host::{PolicyEngine, PolicyLimits, PolicyRegistry};
use signalbox_protocol::SequenceHash;
use signalbox_router::bench_support::BenchRouter;
use signalbox_tokenize::{ModelArtifacts, ModelText};

/// Blocks of a prompt of 2,000 bytes.
const PROMPT: u64 = 31;
const MEDIANS: usize = 9;
const SAMPLES: usize = 101;
/// Decisions in one sample: enough that the cost of reading the clock does not show.
const DECISIONS: usize = 50;

fn main() -> anyhow::Result<()> {
    let text = Arc::new(ModelText::load(&ModelArtifacts::byte_level())?);
    let engine = PolicyEngine::new(PolicyLimits::default())?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_named = |names: &[String], name: &String| {
        let mut named = arguments
            .iter()
            .filter(|argument| names.contains(argument))
            .peekable();
        named.peek().is_none() || named.any(|argument| argument == name)
    };
    let policies = ["kv-aware", "kv-linear", "round-robin", "replica-synced"].map(str::to_owned);
    let sizes = ["8", "64", "512", "1024"].map(str::to_owned);
    println!(
        "{:<16}{:>10}{:>16}{:>16}",
        "policy", "workers", "ns a decision", "blocks held"
    );
    for policy in policies.iter().filter(|policy| is_named(&policies, policy)) {
        for workers in sizes.iter().filter(|size| is_named(&sizes, size)) {
            let workers = workers.parse()?;
            let registry = PolicyRegistry::new(engine.clone(), policy)?;
            let mut router = BenchRouter::new(workers, 2 * workers as usize, text.clone(), registry)?;
            if !arguments.iter().any(|argument| argument == "unrecorded") {
                router = router.recording();
            }
            // Each worker holds beginnings of different lengths of all prompts.
            for worker in 0..workers {
                for prompt in 0..PROMPTS {
                    let held = (u64::from(worker) * 7 + prompt) % (PROMPT + 1);
                    router.store(worker, blocks(prompt, held));
                }
            }
            report(policy, workers, &mut router);
        }
    }
    if arguments.iter().any(|argument| argument == "large") {
        large(&engine, text)?;
    }
    Ok(())
}

/// Different prompts that are decided in turn.
const PROMPTS: u64 = 64;

/// The first `length` blocks of a prompt.
fn blocks(prompt: u64, length: u64) -> Vec<SequenceHash> {
    // SplitMix64: spreads over a hash table as well as the real hashes do.
    let mix = |value: u64| {
        let mut z = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    (0..length)
        .map(|block| SequenceHash(mix(prompt << 20 | (block + 1))))
        .collect()
}

fn report(policy: &str, workers: u32, router: &mut BenchRouter) {
    let prompts: Vec<_> = (0..PROMPTS).map(|prompt| blocks(prompt, PROMPT)).collect();
    let mut turn = 0;
    let mut sample = || {
        let began = Instant::now();
        for _ in 0..DECISIONS {
            turn += 1;
            assert!(
                router.decide(&prompts[turn % prompts.len()]).is_some(),
                "a worker has room"
            );
        }
        began.elapsed().as_nanos() as f64 / DECISIONS as f64
    };
    let medians = (0..MEDIANS).map(|_| {
        let mut samples: Vec<f64> = (0..SAMPLES).map(|_| sample()).collect();
        samples.sort_by(f64::total_cmp);
        samples[SAMPLES / 2]
    });
    let least = medians.min_by(f64::total_cmp).unwrap_or(f64::NAN);
    let (_, held) = router.index_size();
    println!("{policy:<16}{workers:>10}{least:>16.0}{held:>16}");
}

/// Every worker holds the same blocks in a tenth of its cache, as with a shared system prompt.
fn large(engine: &PolicyEngine, text: Arc<ModelText>) -> anyhow::Result<()> {
    const WORKERS: u32 = 1_024;
    const CHAIN: u64 = 1_000;
    const CHAINS: u64 = 100;
    let registry = PolicyRegistry::new(engine.clone(), "kv-aware")?;
    let mut router = BenchRouter::new(WORKERS, 2 * WORKERS as usize, text, registry)?.recording();
    let began = Instant::now();
    for worker in 0..WORKERS {
        for chain in 0..CHAINS {
            let prompt = if chain % 10 == 0 {
                chain
            } else {
                u64::from(worker + 1) * CHAINS + chain
            };
            router.store(worker, blocks(prompt, CHAIN));
        }
    }
    let (bytes, held) = router.index_size();
    println!(
        "{WORKERS} workers hold {held} blocks: {:.2} GiB of index, {:.1} bytes each, stored in {:.1} s",
        bytes as f64 / f64::from(1 << 30),
        bytes as f64 / held as f64,
        began.elapsed().as_secs_f64()
    );
    report("kv-aware", WORKERS, &mut router);
    Ok(())
}
