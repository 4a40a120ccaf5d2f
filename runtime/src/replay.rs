//! `runtime replay`: judges policies on a trace or on made-up traffic, in virtual time. The work is in `signalbox-replay`.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, IsTerminal as _, Seek as _, Write as _, stderr},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use signalbox_replay::{
    BlockScope, Change, ClusterConfig, Comparison, MembershipChange, Plan, RecordedCluster, ReplayPolicy,
    Report, Run, ServiceLimits, Trace, WorkerShape, Workload, html, run_all, table,
};
use signalbox_router::RecordedDecision;

use crate::{
    cli::{ChangeKind, ReplayAction, ReplayCommand, ReplayOptions},
    console,
};

mod tune;

/// How often the progress is written anew.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Characters of the bar.
const BAR: usize = 40;

/// Workers, KV blocks of each and tokens per block, where neither options nor recorded decisions say otherwise.
const DEFAULT_SHAPE: (usize, u32, u32) = (8, 16_384, 16);

/// Where the requests come from.
enum Traffic {
    Recorded(Trace),
    /// Recorded by the routers of this cluster.
    Decided(Trace, RecordedCluster),
    Generated(Workload),
}

impl Traffic {
    fn read(options: &ReplayOptions) -> anyhow::Result<Self> {
        let limit = |trace: Trace| match options.limit {
            Some(count) => trace.limited_to(count as usize),
            None => trace,
        };
        if let Some(workload) = options.generate {
            return Ok(Self::Generated(workload));
        }
        let path = options.trace.as_ref().context("a trace is needed")?;
        let scope = if options.shared_ids {
            BlockScope::Trace
        } else {
            BlockScope::Session
        };
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut file = BufReader::new(file);
        if starts_with_decision(&mut file).with_context(|| format!("cannot read {}", path.display()))? {
            let (trace, cluster) = Trace::read_decisions(file, options.model.as_deref())
                .with_context(|| format!("{} cannot be replayed", path.display()))?;
            return Ok(Self::Decided(limit(trace).at_speed(options.speed), cluster));
        }
        ensure!(
            options.model.is_none(),
            "--model chooses among recorded decisions, and {} has none",
            path.display()
        );
        let trace = Trace::read(file, options.trace_block_size, scope)
            .with_context(|| format!("{} is no trace", path.display()))?;
        Ok(Self::Recorded(limit(trace).at_speed(options.speed)))
    }

    fn requests(&self) -> usize {
        match self {
            Self::Recorded(trace) | Self::Decided(trace, _) => trace.requests.len(),
            Self::Generated(workload) => workload.requests as usize,
        }
    }

    fn of_seed(&self, seed: u64, speed: f64) -> Trace {
        match self {
            Self::Recorded(trace) | Self::Decided(trace, _) => trace.clone(),
            Self::Generated(workload) => workload.trace(seed).at_speed(speed),
        }
    }

    /// The cluster that decided, if the traffic is recorded decisions.
    fn decided(&self) -> Option<&RecordedCluster> {
        match self {
            Self::Decided(_, cluster) => Some(cluster),
            _ => None,
        }
    }
}

/// Whether the first line that is not empty is a recorded decision. The file is read from its beginning afterwards.
fn starts_with_decision(file: &mut BufReader<File>) -> std::io::Result<bool> {
    let mut line = String::new();
    while file.read_line(&mut line)? > 0 && line.trim().is_empty() {
        line.clear();
    }
    file.rewind()?;
    Ok(RecordedDecision::is_one(&line))
}

/// Replays, or searches for settings.
pub(crate) fn run(command: &ReplayCommand) -> anyhow::Result<()> {
    match &command.action {
        Some(ReplayAction::Tune(options)) => tune::run(options),
        None => compare(&command.options),
    }
}

/// Replays, and prints the table or the JSON.
fn compare(options: &ReplayOptions) -> anyhow::Result<()> {
    let traffic = Traffic::read(options)?;
    let policies = ReplayPolicy::load_all(&options.policies)?;
    let cluster = cluster(options, &traffic);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let ended = AtomicUsize::new(0);
    let plan = Plan {
        cluster: &cluster,
        limits: ServiceLimits {
            ttft: options.limit_ttft_ms,
            itl: options.limit_itl_ms,
        },
        policies: &policies,
        seeds: &options.seeds,
        threads: options.jobs.map_or(cores, usize::from),
        ended: &ended,
    };
    let total = traffic.requests() * policies.len() * options.seeds.len();
    let runs = with_progress(&ended, total, || {
        run_all(&plan, |seed| traffic.of_seed(seed, options.speed))
    })?;
    print(options, &traffic, &cluster, &runs)
}

fn print(
    options: &ReplayOptions,
    traffic: &Traffic,
    cluster: &ClusterConfig,
    runs: &[Run],
) -> anyhow::Result<()> {
    let seeds = options.seeds.len();
    let comparisons = Comparison::of_runs(runs, seeds);
    if let Some(path) = &options.html {
        let title = match &options.trace {
            Some(trace) => trace.display().to_string(),
            None => "made-up traffic".into(),
        };
        std::fs::write(path, html(&title, runs, seeds, &comparisons))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if options.json {
        let report = Report {
            requests: traffic.requests(),
            workers: cluster.workers.len(),
            routers: cluster.routers,
            recorded: traffic.decided(),
            runs,
            comparisons: &comparisons,
        };
        console::line(format_args!("{}", serde_json::to_string_pretty(&report)?));
    } else {
        let text = table(runs, seeds, &comparisons);
        console::line(format_args!("{}", text.trim_end()));
        if let Some(recorded) = traffic.decided() {
            console::line(format_args!("\n{}", recorded_line(recorded)));
        }
    }
    Ok(())
}

/// What the live cluster did with the same requests.
fn recorded_line(recorded: &RecordedCluster) -> String {
    let sampled = if recorded.sample < 1.0 {
        let share = 100.0 * recorded.sample;
        format!("; {share:.1} % of the decisions were recorded, so the replay has less traffic")
    } else {
        String::new()
    };
    format!(
        "recorded: {} requests answered by {} workers, TTFT mean {:.1} ms, prefix reuse {:.4}{sampled}",
        recorded.completed,
        recorded.kv_blocks.len(),
        recorded.mean_ttft_ms,
        recorded.prefix_reuse
    )
}

/// The cluster of the options; what they leave open is that of the recorded decisions, or the default.
fn cluster(options: &ReplayOptions, traffic: &Traffic) -> ClusterConfig {
    let (mut workers, blocks, mut block_size) = DEFAULT_SHAPE;
    let mut kv_blocks = vec![blocks];
    if let Some(decided) = traffic.decided() {
        block_size = decided.block_size;
        workers = decided.kv_blocks.len();
        let known = decided.kv_blocks.values().map(|known| match known {
            0 => blocks,
            known => *known,
        });
        kv_blocks = known.collect();
    }
    if !options.blocks.is_empty() {
        kv_blocks.clone_from(&options.blocks);
    }
    let workers = options.workers.map_or(workers, usize::from);
    let blocks = kv_blocks.into_iter().cycle();
    let speeds = options.worker_speed.iter().copied().cycle();
    let mut shapes = blocks
        .zip(speeds)
        .map(|(kv_blocks, speed)| WorkerShape { kv_blocks, speed });
    let workers = shapes.by_ref().take(workers).collect();
    let changes = options.changes.iter().map(|change| MembershipChange {
        at: change.at,
        change: match change.change {
            ChangeKind::Join => Change::Join(shapes.next().unwrap_or_default()),
            ChangeKind::Leave(change) => change,
        },
    });
    ClusterConfig {
        workers,
        changes: changes.collect(),
        routers: usize::from(options.routers),
        block_size: options.block_size.unwrap_or(block_size),
        max_sequences: options.max_sequences,
        event_lag: options.event_lag_ms,
        sync_lag: options.sync_lag_ms,
        ..ClusterConfig::default()
    }
}

/// Does the work, and meanwhile shows on a terminal how much of it is done.
fn with_progress<R>(ended: &AtomicUsize, total: usize, work: impl FnOnce() -> R) -> R {
    if !stderr().is_terminal() {
        return work();
    }
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let shown = scope.spawn(|| {
            while !is_done.load(Relaxed) {
                let share = ended.load(Relaxed) as f64 / total.max(1) as f64;
                let filled = ((share * BAR as f64) as usize).min(BAR);
                let bar = "█".repeat(filled) + &"░".repeat(BAR - filled);
                let _ = write!(stderr(), "\r{bar} {:3.0} %", 100.0 * share);
                thread::park_timeout(PROGRESS_INTERVAL);
            }
            let _ = write!(stderr(), "\r\x1b[K");
        });
        let result = work();
        is_done.store(true, Relaxed);
        shown.thread().unpark();
        result
    })
}
