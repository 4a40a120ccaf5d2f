//! `runtime up`: a router and its workers on this machine, with nothing else to install or start.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::bail;
use signalbox_router::{InstanceView, Router};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    child_worker::{ChildReport, ChildWorker},
    cli::{EngineKind, EngineOptions, UpOptions},
    console,
    model::ServedModel,
    router_process::{RouterPlanes, RouterProcess},
    shutdown,
};

/// Reports of children that may wait to be printed.
const REPORTS: usize = 64;

/// How often it is looked whether the router has taken in the workers that say they are ready.
const READY_POLL: Duration = Duration::from_millis(10);

/// Runs until told to stop.
pub(crate) async fn run(options: UpOptions, log: &str) -> anyhow::Result<()> {
    let started = Instant::now();
    let model = ServedModel::resolve(&options.engine)?;
    let mut process = RouterProcess::start(&options.frontend, RouterPlanes::in_process()).await?;
    let told = shutdown::requested()?;
    introduce(&options, &model, &process);

    let stop = CancellationToken::new();
    let (reports, mut received) = mpsc::channel(REPORTS);
    let mut children = tokio::task::JoinSet::new();
    for number in 0..options.workers {
        let name = format!("worker-{number}");
        let child = ChildWorker {
            arguments: worker_arguments(&options, &model, &name, log),
            name,
            grace: Duration::from_secs(options.frontend.grace_s.into()),
            workers: process.workers.clone(),
            reports: reports.clone(),
            stop: stop.clone(),
        };
        children.spawn_local(child.supervise());
    }

    let mut progress = Progress::new(options.workers.into());
    let (router, address) = (process.router.clone(), process.http.public_address());
    let outcome = tokio::select! {
        () = told => Ok(()),
        error = process.http.failed() => Err(error.into()),
        error = async {
            loop {
                let Some(report) = received.recv().await else { std::future::pending().await };
                if let Err(error) = progress.take(report) {
                    break error;
                }
                if progress.all_ready() {
                    all_taken_in(&router, options.workers.into()).await;
                    greet(address, &model.name, started.elapsed());
                }
            }
        } => Err(error),
    };
    // Clients first: their answers come from the children.
    process.stop().await;
    stop.cancel();
    while children.join_next().await.is_some() {}
    outcome
}

fn introduce(options: &UpOptions, model: &ServedModel, process: &RouterProcess) {
    if model.engine == EngineKind::Sim && options.engine.engine.is_none() {
        console::line(format_args!(
            "engine       sim: this binary was built without a real one (--features llama); the tokens are made up"
        ));
    }
    let (engine, from) = match (model.engine, &model.path) {
        (EngineKind::Llama, Some(path)) => ("llama", format!("from {}", path.display())),
        (EngineKind::Llama, None) => ("llama", String::new()),
        (EngineKind::Sim, _) => ("sim", "simulated GPU".into()),
    };
    console::line(format_args!("model        {} ({engine}, {from})", model.name));
    process.introduce();
    console::line(format_args!("policy       {}", options.frontend.policy));
}

/// Returns once the router would route to all workers.
async fn all_taken_in(router: &Router, workers: usize) {
    let is_in = |instance: &&InstanceView| instance.state == "ready" && instance.events != "resyncing";
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

/// How far the children are.
struct Progress {
    workers: usize,
    percent: BTreeMap<String, u8>,
    ready: usize,
    was_announced: bool,
}

impl Progress {
    fn new(workers: usize) -> Self {
        Self {
            workers,
            percent: BTreeMap::new(),
            ready: 0,
            was_announced: false,
        }
    }

    /// Prints what is worth telling; an error ends the command.
    fn take(&mut self, report: ChildReport) -> anyhow::Result<()> {
        match report {
            ChildReport::Loading { name, percent } => {
                let before = self.percent.insert(name.clone(), percent);
                // A line for each quarter: enough to see that it goes on.
                if before.is_none_or(|before| before / 25 != percent / 25) {
                    console::line(format_args!("loading      {name} {percent} %"));
                }
            }
            ChildReport::Ready => self.ready += 1,
            ChildReport::NeverStarted { name, reason } => bail!("{name} cannot start: {reason}"),
            ChildReport::Died { name, reason } => {
                self.ready -= 1;
                console::line(format_args!(
                    "worker       {name} died: {reason}; starting it again"
                ));
            }
        }
        Ok(())
    }

    /// True once, when the last worker is ready for the first time.
    fn all_ready(&mut self) -> bool {
        let is_first = self.ready == self.workers && !self.was_announced;
        self.was_announced |= is_first;
        is_first
    }
}

/// The command line of one child.
fn worker_arguments(options: &UpOptions, model: &ServedModel, name: &str, log: &str) -> Vec<String> {
    let EngineOptions {
        block_size,
        kv_tokens,
        max_sequences,
        threads,
        tokenizer,
        speedup,
        seed,
        ..
    } = &options.engine;
    let engine = match model.engine {
        EngineKind::Llama => "llama",
        EngineKind::Sim => "sim",
    };
    // The cores are shared: workers that each took all of them would wait for each other at every step.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.map_or_else(
        || (cores / usize::from(options.workers)).max(1),
        |threads| threads as usize,
    );
    let mut arguments: Vec<String> = [
        "--log",
        log,
        "worker",
        "--child",
        "--listen",
        "127.0.0.1:0",
        "--id",
        name,
    ]
    .map(String::from)
    .to_vec();
    let mut add = |flag: &str, value: String| arguments.push(format!("{flag}={value}"));
    add("--engine", engine.into());
    add("--model-name", model.name.clone());
    add("--block-size", block_size.to_string());
    add("--threads", threads.to_string());
    add("--speedup", speedup.to_string());
    add("--seed", seed.to_string());
    add("--grace-s", options.frontend.grace_s.to_string());
    if let Some(path) = &model.path {
        add("--model", path.display().to_string());
    }
    if let Some(tokens) = kv_tokens {
        add("--kv-tokens", tokens.to_string());
    }
    if let Some(sequences) = max_sequences {
        add("--max-sequences", sequences.to_string());
    }
    if let Some(folder) = tokenizer {
        add("--tokenizer", folder.display().to_string());
    }
    arguments
}
