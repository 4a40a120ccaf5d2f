//! Our replay beside Dynamo's own on the same trace, and how long a replay takes.
//! `cargo bench --package signalbox-replay -- TRACE`, with Mooncake's conversation trace.
//!
//! Dynamo's figures are those of its offline replay (ai-dynamo 1.6.1, `dynamo.replay`, block size 16, one run a row). Its
//! router breaks ties at random, so the figures of its KV router differ from run to run.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

use std::{fs::File, io::BufReader, sync::atomic::AtomicUsize, time::Instant};

use anyhow::Context as _;
use signalbox_replay::{
    BlockScope, ClusterConfig, Figures, ReplayPolicy, ServiceLimits, Trace, WorkerShape, replay,
};

/// Workers, speed of the traffic, blocks of each worker; what Dynamo's round robin and its KV router reach.
const ROWS: [(usize, f64, u32, [Reached; 2]); 4] = [
    (
        8,
        1.0,
        16_384,
        [
            reached(359.0, 213.0, 2_199.0, 0.049),
            reached(350.0, 232.0, 1_865.0, 0.073),
        ],
    ),
    (
        8,
        2.0,
        16_384,
        [
            reached(1_376.0, 307.0, 18_387.0, 0.051),
            reached(439.0, 353.0, 2_079.0, 0.071),
        ],
    ),
    (
        4,
        1.0,
        16_384,
        [
            reached(1_220.0, 457.0, 12_703.0, 0.048),
            reached(600.0, 429.0, 2_469.0, 0.052),
        ],
    ),
    (
        8,
        2.0,
        65_536,
        [
            reached(347.0, 207.0, 2_147.0, 0.082),
            reached(330.0, 212.0, 1_790.0, 0.179),
        ],
    ),
];

/// The same policies here. The settings leave Dynamo's formula.
const POLICIES: [&str; 2] = ["round-robin", "kv-linear"];

struct Reached {
    mean: f64,
    p50: f64,
    p99: f64,
    reuse: f64,
}

const fn reached(mean: f64, p50: f64, p99: f64, reuse: f64) -> Reached {
    Reached {
        mean,
        p50,
        p99,
        reuse,
    }
}

fn main() -> anyhow::Result<()> {
    let path = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"))
        .context("name the trace: cargo bench --package signalbox-replay -- TRACE")?;
    let trace = Trace::read(BufReader::new(File::open(path)?), 512, BlockScope::Session)?;
    let choices = POLICIES.map(|policy| policy.parse().map_err(anyhow::Error::msg));
    let choices = choices.into_iter().collect::<Result<Vec<_>, _>>()?;
    let policies = ReplayPolicy::load_all(&choices)?;
    println!(
        "{:<22}{:<12}{:>18}{:>18}{:>18}{:>18}{:>12}",
        "workers, speed, blocks", "policy", "mean TTFT, ms", "p50", "p99", "reuse", "replay, s"
    );
    for (workers, speed, kv_blocks, dynamo) in &ROWS {
        let trace = trace.clone().at_speed(*speed);
        let shape = WorkerShape {
            kv_blocks: *kv_blocks,
            ..WorkerShape::default()
        };
        let cluster = ClusterConfig {
            workers: vec![shape; *workers],
            ..ClusterConfig::default()
        };
        for (policy, dynamo) in policies.iter().zip(dynamo) {
            let started = Instant::now();
            let record = replay(&trace, &cluster, policy, 0, &AtomicUsize::new(0))?;
            let took = started.elapsed().as_secs_f64();
            let figures = Figures::new(&record, ServiceLimits::default());
            let beside =
                |ours: f64, theirs: f64| format!("{ours:.0} ({:+.1} %)", 100.0 * (ours - theirs) / theirs);
            let name = policy.label().split('=').next().unwrap_or_default();
            println!(
                "{:<22}{name:<12}{:>18}{:>18}{:>18}{:>18}{took:>12.1}",
                format!("{workers}, ×{speed}, {kv_blocks}"),
                beside(figures.ttft.mean, dynamo.mean),
                beside(figures.ttft.p50, dynamo.p50),
                beside(figures.ttft.p99, dynamo.p99),
                format!(
                    "{:.4} ({:+.4})",
                    figures.prefix_reuse,
                    figures.prefix_reuse - dynamo.reuse
                ),
            );
        }
    }
    Ok(())
}
