//! `runtime policy new`, `build` and `bench`.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use signalbox_policy_host::{PolicyComponent, PolicyEngine};
use signalbox_policy_kit::{Language, build_folder, measure, write_folder};

use crate::{cli::KitCommand, console};

pub(crate) fn run(command: &KitCommand) -> anyhow::Result<()> {
    match command {
        KitCommand::New { name, lang, folder } => new(name, *lang, folder.as_deref()),
        KitCommand::Build { folder } => build(folder),
        KitCommand::Bench { file, settings } => bench(file, settings),
    }
}

/// A component as an upload takes it, without a router.
pub(crate) fn admitted(file: &Path, settings: &str) -> anyhow::Result<Arc<PolicyComponent>> {
    let wasm = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    PolicyEngine::new(Default::default())?
        .admit(&wasm, settings)
        .with_context(|| format!("{} is refused", file.display()))
}

fn new(name: &str, language: Language, folder: Option<&Path>) -> anyhow::Result<()> {
    let folder = folder.unwrap_or_else(|| Path::new(name));
    write_folder(folder, name, language)?;
    console::line(format_args!(
        "{} has a policy to begin with; {} has the commands",
        folder.display(),
        folder.join("README.md").display()
    ));
    Ok(())
}

fn build(folder: &Path) -> anyhow::Result<()> {
    let file = build_folder(folder)?;
    let policy = admitted(&file, "")?;
    console::line(format_args!(
        "{}: {} {}, {} bytes; a router accepts it",
        file.display(),
        policy.name(),
        policy.version(),
        policy.size_bytes()
    ));
    Ok(())
}

fn bench(file: &Path, settings: &str) -> anyhow::Result<()> {
    let policy = admitted(file, settings)?;
    let bench = measure(&policy)?;
    console::line(format_args!(
        "{} {}: {} bytes; {} KiB of memory; an instance starts in {}",
        policy.name(),
        policy.version(),
        policy.size_bytes(),
        bench.memory_bytes >> 10,
        Microseconds(bench.start)
    ));
    console::line(format_args!(
        "{:>10}  {:>12}  {:>12}  {:>9}",
        "candidates", "median", "p99", "decisions"
    ));
    for timing in &bench.timings {
        console::line(format_args!(
            "{:>10}  {:>12}  {:>12}  {:>9}",
            timing.candidates,
            Microseconds(timing.median).to_string(),
            Microseconds(timing.p99).to_string(),
            timing.decisions
        ));
    }
    Ok(())
}

struct Microseconds(Duration);

impl fmt::Display for Microseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} µs", self.0.as_secs_f64() * 1e6)
    }
}
