//! `runtime up`: a router and its workers on this machine, with nothing else to install or start.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::bail;
use signalbox_protocol::WorkerId;
use signalbox_router::{EventState, InstanceView, Router, WorkerPhase};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    child_worker::{ChildReport, ChildWorker},
    console,
    model::ServedModel,
    reload::Hangups,
    router_process::RouterProcess,
    settings::{EngineKind, EngineSettings, LogSettings, UpSettings, UpWorkers, WorkerSettings},
    shutdown,
};

/// Reports of children that may wait to be printed.
const REPORTS: usize = 64;

/// How often the router's view is read until it has all workers that reported to be ready.
const READY_POLL: Duration = Duration::from_millis(10);

/// How long the other engines get to be taken in, once enough are. Engines that run already are found within a second of
/// each other, and a request right after the greeting should have the choice among all of them. One that is down, or loads
/// its model, delays the greeting by no more than this.
const REST_GRACE: Duration = Duration::from_secs(2);

/// Runs until the process is asked to stop.
pub(crate) async fn run(settings: UpSettings, log: LogSettings, hangups: Hangups) -> anyhow::Result<()> {
    hangups.ignore("`runtime up` has no file of settings");
    let started = Instant::now();
    let UpSettings { router, workers } = settings;
    let (grace, policy) = (router.grace, router.policy.clone());
    let plan = Plan::of(workers)?;
    let mut process = RouterProcess::start(router).await?;
    let stop_requested = shutdown::requested()?;
    plan.introduce();
    process.introduce();
    console::line(format_args!("policy       {policy}"));

    let stop = CancellationToken::new();
    let (reports, mut received) = mpsc::channel(REPORTS);
    let mut children = tokio::task::JoinSet::new();
    let mut progress = Progress::new(plan.enough);
    let all = plan.workers.len();
    for (name, engine) in plan.workers {
        let child = ChildWorker {
            settings: WorkerSettings::of_child(name, engine, grace),
            log: log.clone(),
            workers: process.workers.clone(),
            reports: reports.clone(),
            stop: stop.clone(),
        };
        children.spawn_local(child.supervise());
    }

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
                if progress.enough_ready() {
                    let model = taken_in(&router, plan.enough, all).await;
                    greet(address, &model, started.elapsed());
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

/// The children to start.
struct Plan {
    workers: Vec<(WorkerId, EngineSettings)>,
    /// How many must take requests until the user is told that it works: all that this command starts, but one of the
    /// engines that run already, because one that is down may stay down.
    enough: usize,
    introduction: Vec<String>,
}

impl Plan {
    fn of(workers: UpWorkers) -> anyhow::Result<Self> {
        match workers {
            UpWorkers::Alike {
                number,
                engine,
                is_engine_chosen,
            } => {
                let model = ServedModel::resolve(&engine)?;
                let introduction = introduction(&model, is_engine_chosen);
                // What was found once is not searched for again by each child.
                let engine = EngineSettings {
                    model: model.path,
                    model_name: Some(model.name),
                    ..*engine
                };
                let named = |number| anyhow::Ok((format!("worker-{number}").parse()?, engine.clone()));
                Ok(Self {
                    workers: (0..number).map(named).collect::<Result<_, _>>()?,
                    enough: number.into(),
                    introduction,
                })
            }
            UpWorkers::NextDoor(workers) => {
                let address = |(name, engine): &(WorkerId, EngineSettings)| {
                    let url = engine.upstream.as_ref().map_or("", |upstream| &upstream.url);
                    format!("engine       {url} (worker {name})")
                };
                Ok(Self {
                    introduction: workers.iter().map(address).collect(),
                    enough: 1,
                    workers,
                })
            }
        }
    }

    fn introduce(&self) {
        for line in &self.introduction {
            console::line(format_args!("{line}"));
        }
    }
}

fn introduction(model: &ServedModel, is_engine_chosen: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if model.engine == EngineKind::Sim && !is_engine_chosen {
        lines.push(
            "engine       sim: this binary was built without a real engine (--features llama); it generates random tokens"
                .into(),
        );
    }
    let (engine, source) = match (model.engine, &model.path) {
        (EngineKind::Llama, Some(path)) => ("llama", format!("from {}", path.display())),
        (EngineKind::Llama, None) => ("llama", String::new()),
        (EngineKind::Sim, _) => ("sim", "simulated GPU".into()),
        (EngineKind::Openai, _) => ("openai", "next door".into()),
    };
    lines.push(format!("model        {} ({engine}, {source})", model.name));
    lines
}

/// Returns once the router can route to `all` workers, or to `enough` for some time, with the model of the first.
async fn taken_in(router: &Router, enough: usize, all: usize) -> String {
    let mut grace_until = None;
    let is_in = |instance: &&InstanceView| {
        instance.state == WorkerPhase::Ready && instance.events != EventState::Resyncing
    };
    loop {
        let instances = router.instances();
        let taken_in: Vec<_> = instances.iter().filter(is_in).collect();
        if let Some(first) = taken_in.first()
            && taken_in.len() >= enough
        {
            let until = *grace_until.get_or_insert_with(|| Instant::now() + REST_GRACE);
            if taken_in.len() >= all || Instant::now() >= until {
                return first.card.model.clone();
            }
        }
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
    /// How many children must take requests.
    enough: usize,
    percent: BTreeMap<String, u8>,
    /// The names of the children that take requests.
    ready: BTreeSet<String>,
    was_announced: bool,
}

impl Progress {
    fn new(enough: usize) -> Self {
        Self {
            enough,
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
            ChildReport::Waiting { name, reason } => {
                console::line(format_args!("waiting      {name}: {reason}"));
            }
            ChildReport::Found { name, lines } => {
                for line in lines {
                    console::line(format_args!("found        {name}: {line}"));
                }
            }
            ChildReport::Ready { name } => _ = self.ready.insert(name),
            ChildReport::Away { name, reason } => {
                self.ready.remove(&name);
                console::line(format_args!("away         {name}: {reason}"));
            }
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

    /// Returns true once: when enough workers are ready for the first time.
    fn enough_ready(&mut self) -> bool {
        let is_first = self.ready.len() >= self.enough && !self.was_announced;
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
            assert!(!progress.enough_ready());
        }
        progress.take(ready("a")).unwrap();
        assert!(progress.enough_ready());
        assert!(!progress.enough_ready(), "it is announced once");
    }
}
