//! `runtime up`: a router and its workers on this machine, with nothing else to install or start.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::bail;
use signalbox_router::{EventState, InstanceView, Router, WorkerPhase};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    child_worker::{ChildReport, ChildWorker},
    console,
    model::ServedModel,
    router_process::RouterProcess,
    settings::{EngineKind, EngineSettings, LogSettings, UpSettings, WorkerSettings},
    shutdown,
};

/// Reports of children that may wait to be printed.
const REPORTS: usize = 64;

/// How often the router's view is read until it has all workers that reported to be ready.
const READY_POLL: Duration = Duration::from_millis(10);

/// Runs until the process is asked to stop.
pub(crate) async fn run(settings: UpSettings, log: LogSettings) -> anyhow::Result<()> {
    let started = Instant::now();
    let model = ServedModel::resolve(&settings.engine)?;
    let UpSettings {
        router,
        workers,
        engine,
        is_engine_chosen,
    } = settings;
    let (grace, policy) = (router.grace, router.policy.clone());
    let mut process = RouterProcess::start(router).await?;
    let stop_requested = shutdown::requested()?;
    introduce(&model, is_engine_chosen);
    process.introduce();
    console::line(format_args!("policy       {policy}"));

    // What was found once is not searched for again by each child.
    let engine = EngineSettings {
        model: model.path.clone(),
        model_name: Some(model.name.clone()),
        ..engine
    };
    let stop = CancellationToken::new();
    let (reports, mut received) = mpsc::channel(REPORTS);
    let mut children = tokio::task::JoinSet::new();
    for number in 0..workers {
        let name = format!("worker-{number}").parse()?;
        let child = ChildWorker {
            settings: WorkerSettings::of_child(name, engine.clone(), grace),
            log: log.clone(),
            workers: process.workers.clone(),
            reports: reports.clone(),
            stop: stop.clone(),
        };
        children.spawn_local(child.supervise());
    }

    let mut progress = Progress::new(workers.into());
    let (router, address) = (process.router.clone(), process.http.public_address());
    let outcome = tokio::select! {
        () = stop_requested => Ok(()),
        error = process.http.failed() => Err(error.into()),
        error = async {
            loop {
                let Some(report) = received.recv().await else { std::future::pending().await };
                if let Err(error) = progress.take(report) {
                    break error;
                }
                if progress.all_ready() {
                    all_taken_in(&router, workers.into()).await;
                    greet(address, &model.name, started.elapsed());
                }
            }
        } => Err(error),
    };
    // Nobody reads reports any more, and a child that waits to send one would not see that it is to stop.
    drop(received);
    // The router stops first: the answers of its clients come from the children.
    process.stop().await;
    stop.cancel();
    while children.join_next().await.is_some() {}
    outcome
}

fn introduce(model: &ServedModel, is_engine_chosen: bool) {
    if model.engine == EngineKind::Sim && !is_engine_chosen {
        console::line(format_args!(
            "engine       sim: this binary was built without a real engine (--features llama); it generates random tokens"
        ));
    }
    let (engine, source) = match (model.engine, &model.path) {
        (EngineKind::Llama, Some(path)) => ("llama", format!("from {}", path.display())),
        (EngineKind::Llama, None) => ("llama", String::new()),
        (EngineKind::Sim, _) => ("sim", "simulated GPU".into()),
    };
    console::line(format_args!("model        {} ({engine}, {source})", model.name));
}

/// Returns once the router can route to all workers.
async fn all_taken_in(router: &Router, workers: usize) {
    let is_in = |instance: &&InstanceView| {
        instance.state == WorkerPhase::Ready && instance.events != EventState::Resyncing
    };
    while router.instances().iter().filter(is_in).count() < workers {
        tokio::time::sleep(READY_POLL).await;
    }
}

fn greet(address: SocketAddr, model: &str, took: Duration) {
    console::line(format_args!(
        "ready        in {:.1} s; Ctrl-C stops. Try:",
        took.as_secs_f64()
    ));
    console::line(format_args!(
        "  curl http://{address}/v1/chat/completions -H 'content-type: application/json' \\"
    ));
    let body = serde_json::json!({"model": model, "messages": [{"role": "user", "content": "Hello!"}]});
    console::line(format_args!("    -d '{body}'"));
}

/// What the children have reported so far.
struct Progress {
    workers: usize,
    percent: BTreeMap<String, u8>,
    /// The names of the children that take requests.
    ready: BTreeSet<String>,
    was_announced: bool,
}

impl Progress {
    fn new(workers: usize) -> Self {
        Self {
            workers,
            percent: BTreeMap::new(),
            ready: BTreeSet::new(),
            was_announced: false,
        }
    }

    /// Takes a report and prints it if it matters to the user; an error ends the command.
    fn take(&mut self, report: ChildReport) -> anyhow::Result<()> {
        match report {
            ChildReport::Loading { name, percent } => {
                let before = self.percent.insert(name.clone(), percent);
                // A line for each quarter is enough to see progress.
                if before.is_none_or(|before| before / 25 != percent / 25) {
                    console::line(format_args!("loading      {name} {percent} %"));
                }
            }
            ChildReport::Ready { name } => _ = self.ready.insert(name),
            ChildReport::NeverStarted { name, reason } => bail!("{name} cannot start: {reason}"),
            ChildReport::Exited { name, reason } => {
                self.ready.remove(&name);
                console::line(format_args!(
                    "worker       {name} exited: {reason}; starting it again"
                ));
            }
        }
        Ok(())
    }

    /// Returns true once: when all workers are ready for the first time.
    fn all_ready(&mut self) -> bool {
        let is_first = self.ready.len() == self.workers && !self.was_announced;
        self.was_announced |= is_first;
        is_first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(name: &str) -> ChildReport {
        ChildReport::Ready { name: name.into() }
    }

    fn exited(name: &str) -> ChildReport {
        let (name, reason) = (name.into(), "killed".into());
        ChildReport::Exited { name, reason }
    }

    #[test]
    fn a_child_that_exits_twice_before_it_is_ready_again_counts_once() {
        let mut progress = Progress::new(2);
        for report in [
            ready("a"),
            exited("a"),
            exited("a"),
            ready("b"),
            exited("b"),
            ready("b"),
        ] {
            progress.take(report).unwrap();
            assert!(!progress.all_ready());
        }
        progress.take(ready("a")).unwrap();
        assert!(progress.all_ready());
        assert!(!progress.all_ready(), "it is announced once");
    }
}
