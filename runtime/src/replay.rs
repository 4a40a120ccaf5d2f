//! `runtime replay`: judges policies on a trace or on made-up traffic, in virtual time. The work is in `signalbox-replay`.

use std::{
    fs::File,
    io::{BufReader, IsTerminal as _, Write as _, stderr},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use signalbox_replay::{
    BlockScope, Change, ClusterConfig, Comparison, MembershipChange, Plan, ReplayPolicy, Report, Run,
    ServiceLimits, Trace, WorkerShape, Workload, html, run_all, table,
};

use crate::{
    cli::{ChangeKind, ReplayAction, ReplayCommand, ReplayOptions},
    console,
};

mod tune;

/// How often the progress is written anew.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Characters of the bar.
const BAR: usize = 40;

/// Where the requests come from.
enum Traffic {
    Recorded(Trace),
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
        let trace = Trace::read(BufReader::new(file), options.trace_block_size, scope)
            .with_context(|| format!("{} is no trace", path.display()))?;
        Ok(Self::Recorded(limit(trace).at_speed(options.speed)))
    }

    fn requests(&self) -> usize {
        match self {
            Self::Recorded(trace) => trace.requests.len(),
            Self::Generated(workload) => workload.requests as usize,
        }
    }

    fn of_seed(&self, seed: u64, speed: f64) -> Trace {
        match self {
            Self::Recorded(trace) => trace.clone(),
            Self::Generated(workload) => workload.trace(seed).at_speed(speed),
        }
    }
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
    let cluster = cluster(options);
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
    print(options, &traffic, &runs)
}

fn print(options: &ReplayOptions, traffic: &Traffic, runs: &[Run]) -> anyhow::Result<()> {
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
            workers: usize::from(options.workers),
            routers: usize::from(options.routers),
            runs,
            comparisons: &comparisons,
        };
        console::line(format_args!("{}", serde_json::to_string_pretty(&report)?));
    } else {
        let text = table(runs, seeds, &comparisons);
        console::line(format_args!("{}", text.trim_end()));
    }
    Ok(())
}

fn cluster(options: &ReplayOptions) -> ClusterConfig {
    let blocks = options.blocks.iter().copied().cycle();
    let speeds = options.worker_speed.iter().copied().cycle();
    let mut shapes = blocks
        .zip(speeds)
        .map(|(kv_blocks, speed)| WorkerShape { kv_blocks, speed });
    let workers = shapes.by_ref().take(usize::from(options.workers)).collect();
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
        block_size: options.block_size,
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
