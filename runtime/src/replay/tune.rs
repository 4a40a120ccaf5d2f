//! `runtime replay tune`: searches for settings, prints what it found and writes them. The work is in `signalbox-replay`.

use std::{sync::atomic::AtomicUsize, thread};

use anyhow::{Context as _, bail};
use signalbox_replay::{Guards, Plan, Search, ServiceLimits, SettingRange, tune_table};

use super::{Traffic, cluster, with_progress};
use crate::{cli::TuneOptions, console};

pub(super) fn run(options: &TuneOptions) -> anyhow::Result<()> {
    let replay = &options.replay;
    let [policy] = replay.policies.as_slice() else {
        bail!("a search is for one policy; {} are given", replay.policies.len());
    };
    if replay.json || replay.html.is_some() {
        bail!("a search prints a table; --json and --html are for replays");
    }
    let traffic = Traffic::read(replay)?;
    let cluster = cluster(replay, &traffic);
    let ended = AtomicUsize::new(0);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let ranges = if options.settings.is_empty() {
        SettingRange::of_builtin(policy.name())
    } else {
        options.settings.clone()
    };
    let plan = Plan {
        cluster: &cluster,
        limits: ServiceLimits::default(),
        policies: &[],
        seeds: &replay.seeds,
        threads: replay.jobs.map_or(cores, usize::from),
        ended: &ended,
    };
    let search = Search {
        policy,
        ranges: &ranges,
        goal: options.goal,
        guards: Guards::default(),
        trials: usize::from(options.trials),
        plan: &plan,
    };
    // Each trial takes half of the traffic, and so do the few that are judged on the other half.
    let total = traffic.requests() * replay.seeds.len() * (usize::from(options.trials) + 6) / 2;
    let tuned = with_progress(&ended, total, || {
        search.run(|seed| traffic.of_seed(seed, replay.speed))
    })?;
    console::line(format_args!("{}", tune_table(&tuned, options.goal).trim_end()));
    if let Some(path) = &options.write {
        let settings = serde_json::to_string_pretty(&tuned.trials[tuned.chosen].settings)?;
        std::fs::write(path, settings + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
