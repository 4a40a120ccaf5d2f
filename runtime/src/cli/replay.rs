//! Options of `runtime replay`. They have no environment variables: a replay serves nobody, and is not configured once.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Subcommand};
use signalbox_replay::{Change, Goal, PolicyChoice, SettingRange, Workload};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct ReplayCommand {
    #[command(subcommand)]
    pub(crate) action: Option<ReplayAction>,
    #[command(flatten)]
    pub(crate) options: ReplayOptions,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReplayAction {
    /// Search for the settings of a policy that reach an aim best on a trace.
    Tune(Box<TuneOptions>),
}

/// Options of `runtime replay tune`.
#[derive(Debug, Args)]
#[command(after_help = TUNE_EXAMPLES)]
pub(crate) struct TuneOptions {
    /// What is to be as low as possible: mean_ttft_ms, p90_ttft_ms, p99_ttft_ms or mean_e2e_ms. p99 TTFT, mean end to end
    /// and the largest share of one worker may not become worse than with the policy's own settings.
    #[arg(long, default_value = "mean_ttft_ms", value_name = "FIGURE")]
    pub(crate) goal: Goal,
    /// A setting to vary and its range. Given several times, all of them. The default is the ranges of the built-in policy;
    /// those of a component must be given.
    #[arg(long = "setting", value_name = "NAME=LOW..HIGH")]
    pub(crate) settings: Vec<SettingRange>,
    /// Settings to try beside the policy's own. Each costs a replay of half the traffic for each seed.
    #[arg(long, default_value_t = 40, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) trials: u16,
    /// Write the settings that were chosen to this file, as the JSON object that an activation takes.
    #[arg(long, value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) replay: ReplayOptions,
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReplayOptions {
    /// The trace, in the format of Mooncake's: a JSON object a line with `timestamp` (ms), `input_length`,
    /// `output_length` and `hash_ids`; for the turns of a session also `session_id` and, after its first line, `delay`
    /// (ms after the previous answer) in place of `timestamp`. Or the decisions that a router wrote (`--decision-log`): then
    /// workers, blocks and block size are those that it had, unless others are given.
    #[arg(value_name = "TRACE", required_unless_present = "generate")]
    pub(crate) trace: Option<PathBuf>,
    /// Make up traffic instead: `NAME=NUMBER,…` with requests, rate (chats a second), burst, groups, zipf, shared, prompt,
    /// answer (tokens), turns, pause (s). Each seed has traffic of its own.
    #[arg(long, value_name = "WORKLOAD", conflicts_with = "trace")]
    pub(crate) generate: Option<Workload>,
    /// A policy: a built-in one by name or a component, FILE.wasm; with `={JSON}` for its settings. Given several times,
    /// each is compared with the first.
    #[arg(long = "policy", value_name = "POLICY", default_value = "kv-aware")]
    pub(crate) policies: Vec<PolicyChoice>,
    /// Seed of the decisions, and of generated traffic. Given several times, each policy runs with each, and differences
    /// have a confidence interval.
    #[arg(long = "seed", value_name = "N", default_value = "0")]
    pub(crate) seeds: Vec<u64>,
    /// Of recorded decisions: the model to replay, if they are about several.
    #[arg(long, value_name = "NAME", conflicts_with = "generate")]
    pub(crate) model: Option<String>,
    /// Workers at the start. The default is 8.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1_024))]
    pub(crate) workers: Option<u16>,
    /// KV blocks of each worker's cache. Several, with commas between, go to the workers in turn: mixed GPUs. The default is
    /// 16384.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) blocks: Vec<u32>,
    /// How many times as fast as the timing model each worker is. Several, with commas between, go to the workers in turn.
    #[arg(long, default_value = "1", value_name = "X", value_delimiter = ',', value_parser = positive)]
    pub(crate) worker_speed: Vec<f64>,
    /// Tokens per KV block. The default is 16.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) block_size: Option<u32>,
    /// Most sequences that a worker decodes at once.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub(crate) max_sequences: u32,
    /// Divides the times between arrivals, and the delays of sessions.
    #[arg(long, default_value = "1", value_name = "X", value_parser = positive)]
    pub(crate) speed: f64,
    /// Only the first N requests of the trace.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
    /// Tokens that an id in `hash_ids` stands for.
    #[arg(long, default_value_t = 512, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) trace_block_size: u32,
    /// The ids of `hash_ids` mean the same blocks in all sessions. By default each session has ids of its own.
    #[arg(long)]
    pub(crate) shared_ids: bool,
    /// Routers. Requests go to them in turn.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) routers: u16,
    /// Milliseconds until routers receive KV events and load reports.
    #[arg(long, default_value = "0", value_name = "MS", value_parser = millis)]
    pub(crate) event_lag_ms: Duration,
    /// Milliseconds until routers receive what other routers have in flight.
    #[arg(long, default_value = "0", value_name = "MS", value_parser = millis)]
    pub(crate) sync_lag_ms: Duration,
    /// A change of the workers: `SECONDS:join`, `SECONDS:drain:N` or `SECONDS:fail:N`. Workers are numbered from 0 in the
    /// order in which they join.
    #[arg(long = "at", value_name = "CHANGE")]
    pub(crate) changes: Vec<TimedChange>,
    /// Goodput: longest time to the first token, in milliseconds.
    #[arg(long, default_value = "2000", value_name = "MS", value_parser = millis)]
    pub(crate) limit_ttft_ms: Duration,
    /// Goodput: longest mean time between two tokens, in milliseconds.
    #[arg(long, default_value = "50", value_name = "MS", value_parser = millis)]
    pub(crate) limit_itl_ms: Duration,
    /// Runs at the same time. The default is the number of cores.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1_024))]
    pub(crate) jobs: Option<u16>,
    /// Print one JSON object in place of the table: `runs`, each with `policy`, `seed` and every figure by name.
    #[arg(long)]
    pub(crate) json: bool,
    /// Also write the figures and plots of the first seed to this file: one page, which needs no network.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  runtime replay trace.jsonl --policy round-robin --policy kv-aware
  runtime replay trace.jsonl --policy kv-aware --policy mine.wasm --seed 0 --seed 1 --seed 2 --speed 2
  runtime replay --generate rate=4,turns=3,groups=20 --policy 'kv-aware={\"pressure_ms\":2}'
  runtime replay decisions.jsonl --policy kv-aware --policy mine.wasm      what a live router was asked
  runtime replay trace.jsonl --blocks 16384,65536 --worker-speed 1,2       half the GPUs larger and faster
  runtime replay trace.jsonl --routers 2 --event-lag-ms 20 --sync-lag-ms 5 --at 600:fail:3 --at 900:join";

const TUNE_EXAMPLES: &str = "Examples:
  runtime replay tune trace.jsonl --policy kv-aware --goal mean_ttft_ms --write settings.json
  runtime replay tune trace.jsonl --policy mine.wasm --setting weight=0..4 --setting window=10..1000 --trials 80";

/// A change of the workers, and when it takes place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct TimedChange {
    pub(crate) at: Duration,
    pub(crate) change: ChangeKind,
}

/// What happens to the workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum ChangeKind {
    /// A worker joins. It gets the next blocks and speed in turn.
    Join,
    /// Something happens to a worker that is there.
    Leave(Change),
}

impl FromStr for TimedChange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not SECONDS:join, SECONDS:drain:N or SECONDS:fail:N");
        let mut parts = text.split(':');
        let seconds: f64 = parts
            .next()
            .and_then(|part| part.parse().ok())
            .ok_or_else(wrong)?;
        let at = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
        let kind = parts.next();
        let worker = parts
            .next()
            .map(str::parse::<u32>)
            .transpose()
            .map_err(|_| wrong())?;
        let change = match (kind, worker, parts.next()) {
            (Some("join"), None, None) => ChangeKind::Join,
            (Some("drain"), Some(worker), None) => ChangeKind::Leave(Change::Drain(worker)),
            (Some("fail"), Some(worker), None) => ChangeKind::Leave(Change::Fail(worker)),
            _ => return Err(wrong()),
        };
        Ok(Self { at, change })
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (1e-3..=1e3).contains(&number) {
        Ok(number)
    } else {
        Err("must be from 0.001 to 1000".into())
    }
}

fn millis(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    Duration::try_from_secs_f64(number / 1e3).map_err(|_| "must be milliseconds, 0 or more".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(arguments: &[&str]) -> Result<ReplayOptions, String> {
        let arguments = ["runtime", "replay"].iter().chain(arguments);
        match Cli::try_parse_from(arguments) {
            Ok(cli) => match cli.command {
                Command::Replay(command) => match command.action {
                    Some(ReplayAction::Tune(options)) => Ok(options.replay),
                    None => Ok(command.options),
                },
                other => Err(format!("{other:?}")),
            },
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn changes_of_workers_are_read() {
        let options = parse(&["t", "--at", "1.5:join", "--at", "2:drain:3", "--at", "4:fail:0"]).unwrap();
        let changes: Vec<_> = options.changes.iter().map(|change| change.change).collect();
        assert_eq!(options.changes[0].at, Duration::from_millis(1_500));
        let leave = ChangeKind::Leave;
        assert_eq!(
            changes,
            [ChangeKind::Join, leave(Change::Drain(3)), leave(Change::Fail(0))]
        );
        for wrong in [
            "join",
            "1:join:2",
            "1:fail",
            "x:join",
            "-1:join",
            "1:fail:a",
            "1:stop:2",
            "1:fail:2:3",
        ] {
            assert!(
                parse(&["t", &format!("--at={wrong}")])
                    .unwrap_err()
                    .contains("SECONDS:fail:N"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_trace_or_a_workload_is_needed_and_not_both() {
        assert!(parse(&[]).unwrap_err().contains("TRACE"));
        assert!(
            parse(&["t", "--generate", "rate=1"])
                .unwrap_err()
                .contains("--generate")
        );
        assert!(
            parse(&["--generate", "rate=fast"])
                .unwrap_err()
                .contains("rate=fast")
        );
        assert_eq!(
            parse(&["--generate", "rate=3"]).unwrap().generate.unwrap().rate,
            3.0
        );
    }

    #[test]
    fn a_search_takes_the_options_of_a_replay_and_ranges() {
        let options = parse(&["tune", "t", "--policy=a", "--setting", "x=0..1", "--workers=3"]).unwrap();
        assert_eq!((options.workers, options.trace), (Some(3), Some("t".into())));
        assert!(
            parse(&["tune", "t", "--setting", "x=1..0"])
                .unwrap_err()
                .contains("LOW..HIGH")
        );
        assert!(
            parse(&["tune", "t", "--goal", "speed"])
                .unwrap_err()
                .contains("mean_ttft_ms")
        );
        assert!(parse(&["tune"]).unwrap_err().contains("TRACE"));
    }

    #[test]
    fn several_policies_seeds_and_shapes_can_be_given() {
        let options = parse(&[
            "t",
            "--policy",
            "a",
            "--policy",
            "b",
            "--seed=1",
            "--seed=2",
            "--blocks=1,2",
        ])
        .unwrap();
        assert_eq!(
            (options.policies.len(), options.seeds, options.blocks),
            (2, vec![1, 2], vec![1, 2])
        );
        let default = parse(&["t"]).unwrap();
        assert_eq!(
            (default.policies[0].label.as_str(), default.seeds),
            ("kv-aware", vec![0])
        );
        assert!(
            parse(&["t", "--worker-speed", "1,0"])
                .unwrap_err()
                .contains("0.001")
        );
    }
}
