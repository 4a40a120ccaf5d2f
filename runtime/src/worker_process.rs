//! A worker process: one engine behind the request plane, or many simulated ones.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use crate::{
    cli::{EngineKind, EngineOptions, RequestTransport, WorkerOptions},
    console,
    model::ServedModel,
    planes::{self, Events, Membership},
    shutdown,
};
use anyhow::{Context, ensure};
use futures_util::future::{join_all, select_all};
use serde::{Deserialize, Serialize};
use signalbox_discovery::{Discovery, Registration};
use signalbox_protocol::WorkerId;
use signalbox_request_plane::{NatsTransport, ServerConfig};
use signalbox_tokenize::ModelText;
use signalbox_worker::{
    engine::StepEngine,
    runner::EngineThread,
    service::{self, ModelFiles, RunningWorker, WorkerConfig},
    sim::{SimConfig, SimEngine, ordinary_tokens},
};

/// What a child tells its parent, a JSON document a line on standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum ChildNotice {
    /// The model is being loaded.
    Loading {
        /// How far.
        percent: u8,
    },
    /// Requests are taken.
    Ready {
        /// `host:port` of the request plane.
        address: String,
    },
    /// It cannot work; the process ends.
    Failed {
        /// Why, in a sentence.
        reason: String,
    },
}

impl ChildNotice {
    fn send(&self) {
        if let Ok(line) = serde_json::to_string(self) {
            console::line(format_args!("{line}"));
        }
    }
}

/// `runtime worker`.
pub(crate) async fn run(options: WorkerOptions) -> anyhow::Result<()> {
    let child = options.child;
    match serve(options).await {
        // The parent tells the person; saying it here too would say it twice.
        Err(error) if child => {
            ChildNotice::Failed {
                reason: format!("{error:#}"),
            }
            .send();
            std::process::exit(1)
        }
        outcome => outcome,
    }
}

async fn serve(options: WorkerOptions) -> anyhow::Result<()> {
    let grace = Duration::from_secs(options.grace_s.into());
    let membership = Membership::start(options.discovery.as_slice(), &options.planes).await?;
    ensure!(
        membership.addresses.is_empty(),
        "--discovery of a worker is where it registers; give etcd://host:port[,host:port…], or nothing: routers with \
         --discovery static://… dial it"
    );
    let events = Events::start(&options.planes, options.id.as_str()).await?;
    let nats = match options.request_plane {
        RequestTransport::Tcp => None,
        RequestTransport::Nats => {
            let connection = events.nats.clone();
            let connection =
                connection.context("--request-plane nats goes over the NATS of --events nats://host:port")?;
            Some(NatsTransport::new(connection, &options.planes.namespace)?)
        }
    };
    let model = ServedModel::resolve(&options.engine)?;
    let workers = start_workers(&options, model, nats).await?;
    let told = shutdown::requested()?;
    let card = workers[0].card();
    if events.nats.is_some() {
        planes::report("events", events.plane.status());
        for worker in &workers {
            actix_rt::spawn(service::publish_events(
                worker.card().id.clone(),
                worker.event_log().clone(),
                events.plane.clone(),
            ));
        }
    }
    let registrations: Vec<Registration> = match &membership.etcd {
        Some(etcd) => {
            planes::report("discovery", etcd.status());
            let register = |worker: &RunningWorker| etcd.register(worker.card().clone());
            workers.iter().map(register).collect::<Result<_, _>>()?
        }
        None => Vec::new(),
    };
    let addresses: Vec<&str> = workers
        .iter()
        .map(|worker| worker.card().address.as_str())
        .collect();
    let address = addresses.join(",");
    if options.child {
        ChildNotice::Ready { address }.send();
    } else {
        console::line(format_args!(
            "worker {} serves {} ({}) to routers at {address}",
            options.id, card.model, card.engine
        ));
    }
    tokio::select! {
        () = told => {}
        () = parent_gone(), if options.child => {}
        _ = select_all(workers.iter().map(|worker| Box::pin(worker.failed()))) => {
            anyhow::bail!("the engine failed; its last words are in the log")
        }
    }
    // Routers hear of it on their links too; new ones do not come any more.
    drop(registrations);
    let leave = async {
        if let Some(etcd) = membership.etcd {
            etcd.withdraw().await;
        }
    };
    tokio::join!(leave, join_all(workers.iter().map(|worker| worker.drain(grace))));
    Ok(())
}

/// One worker, or as many simulated ones as were asked for.
async fn start_workers(
    options: &WorkerOptions,
    model: ServedModel,
    nats: Option<NatsTransport>,
) -> anyhow::Result<Vec<RunningWorker>> {
    let text = Arc::new(ModelText::load(&model.artifacts)?);
    let files = ModelFiles::new(&model.artifacts, text.clone());
    let config = |id: WorkerId, listen: SocketAddr| WorkerConfig {
        id,
        listen,
        nats: nats.clone(),
        advertise_host: options.advertise_host.clone(),
        model: model.name.clone(),
        role: options.role,
        labels: options.labels.iter().cloned().collect(),
        server: ServerConfig::default(),
    };
    if model.engine == EngineKind::Llama {
        ensure!(
            options.sim_workers == 1,
            "--sim-workers {} is for --engine sim; a real engine has a process of its own",
            options.sim_workers
        );
        let engine = llama(&options.engine, &model, options.child)?;
        let config = config(options.id.clone(), options.listen);
        let thread = engine_thread("llama")?;
        return Ok(vec![service::run(config, engine, files, &thread).await?]);
    }
    // Simulated engines hardly compute: more threads than cores would only be switched between.
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads: Vec<_> = (0..cores.min(usize::from(options.sim_workers)))
        .map(|_| engine_thread("sim"))
        .collect::<Result<_, _>>()?;
    let vocabulary = ordinary_tokens(&text);
    let mut workers = Vec::new();
    for (number, thread) in (0..options.sim_workers).zip(threads.iter().cycle()) {
        let (id, listen) = nth_worker(options, number)?;
        let engine = sim(&options.engine, &model, vocabulary.clone())?;
        let config = config(id, listen);
        workers.push(service::run(config, Box::new(engine), files.clone(), thread).await?);
    }
    Ok(workers)
}

fn engine_thread(engine: &str) -> anyhow::Result<EngineThread> {
    EngineThread::start(engine).context("there is no thread for the engine")
}

/// What a simulated worker is called and where it listens.
fn nth_worker(options: &WorkerOptions, number: u16) -> anyhow::Result<(WorkerId, SocketAddr)> {
    if options.sim_workers == 1 {
        return Ok((options.id.clone(), options.listen));
    }
    let mut listen = options.listen;
    if listen.port() != 0 {
        let port = listen.port().checked_add(number);
        listen.set_port(port.with_context(|| {
            format!(
                "--sim-workers {} from port {} on need ports past 65535",
                options.sim_workers,
                listen.port()
            )
        })?);
    }
    Ok((format!("{}-{number}", options.id).parse()?, listen))
}

fn sim(options: &EngineOptions, model: &ServedModel, vocabulary: Arc<[u32]>) -> anyhow::Result<SimEngine> {
    let mut config = SimConfig {
        block_size: options.block_size,
        speedup: options.speedup,
        seed: options.seed,
        ..SimConfig::default()
    };
    if let Some(tokens) = options.kv_tokens {
        config.kv_blocks = tokens / options.block_size;
    }
    if let Some(sequences) = options.max_sequences {
        config.max_sequences = sequences;
    }
    if let Some(tokens) = model.context_length {
        config.context_length = tokens;
    }
    Ok(SimEngine::new(config, vocabulary)?)
}

#[cfg(feature = "llama")]
fn llama(
    options: &EngineOptions,
    model: &ServedModel,
    is_child: bool,
) -> anyhow::Result<Box<dyn StepEngine>> {
    use signalbox_worker::llama::{LlamaConfig, LlamaEngine};

    let path = model
        .path
        .as_deref()
        .ok_or_else(|| anyhow::anyhow!("the llama engine needs a model file"))?;
    let mut config = LlamaConfig::new(path);
    config.block_size = options.block_size;
    config.kv_tokens = options.kv_tokens;
    config.threads = options.threads;
    if let Some(sequences) = options.max_sequences {
        config.max_sequences = sequences;
    }
    let mut told = None;
    let progress = move |done: f32| {
        let percent = (done.clamp(0.0, 1.0) * 100.0) as u8;
        if is_child && told.replace(percent) != Some(percent) {
            ChildNotice::Loading { percent }.send();
        }
    };
    Ok(Box::new(LlamaEngine::load(&config, progress)?))
}

#[cfg(not(feature = "llama"))]
fn llama(_: &EngineOptions, _: &ServedModel, _: bool) -> anyhow::Result<Box<dyn StepEngine>> {
    // `ServedModel::resolve` said so before.
    anyhow::bail!("this binary was built without the llama engine")
}

/// Standard input ends when the parent does, however it ends. Read on a thread that nobody waits for: a read of
/// standard input cannot be cancelled.
async fn parent_gone() {
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    let reader = std::thread::Builder::new()
        .name("parent-watch".into())
        .spawn(move || {
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            drop(ended);
        });
    if reader.is_err() {
        return std::future::pending().await;
    }
    // The sender is never used but to be dropped.
    let _ = end.await;
}
