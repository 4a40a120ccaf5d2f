//! A worker process: one engine behind the request plane, or several simulated ones.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use futures_util::future::{join_all, select_all};
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

use crate::{
    child_protocol::{self, ChildNotice},
    console,
    model::ServedModel,
    planes::{self, Events},
    settings::{EngineKind, EngineSettings, WorkerSettings},
    shutdown,
};

/// `runtime worker`.
pub(crate) async fn run(settings: WorkerSettings) -> anyhow::Result<()> {
    serve(settings, false).await
}

/// A worker of `runtime up`: its settings come from the parent, and so does its end.
pub(crate) async fn run_child() -> anyhow::Result<()> {
    let outcome = match child_protocol::read_settings() {
        Ok(settings) => serve(settings, true).await,
        Err(error) => Err(error),
    };
    let Err(error) = outcome else {
        return Ok(());
    };
    // The parent prints the reason; an error printed here too would appear twice.
    ChildNotice::Failed {
        reason: format!("{error:#}"),
    }
    .send();
    std::process::exit(1)
}

async fn serve(settings: WorkerSettings, is_child: bool) -> anyhow::Result<()> {
    let etcd = planes::start_etcd(&settings.planes).await?;
    let events = Events::start(&settings.planes, settings.name.as_str()).await?;
    let nats = match &events.nats {
        Some(connection) if settings.requests_over_nats => Some(NatsTransport::new(
            connection.clone(),
            &settings.planes.namespace,
        )?),
        _ => None,
    };
    let model = ServedModel::resolve(&settings.engine)?;
    let workers = start_workers(&settings, model, nats, is_child).await?;
    let stop_requested = shutdown::requested()?;
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
    let registrations: Vec<Registration> = match &etcd {
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
    if is_child {
        ChildNotice::Ready { address }.send();
    } else {
        console::line(format_args!(
            "worker {} serves {} ({}) to routers at {address}",
            settings.name, card.model, card.engine
        ));
    }
    tokio::select! {
        () = stop_requested => {}
        () = child_protocol::parent_gone(), if is_child => {}
        _ = select_all(workers.iter().map(|worker| Box::pin(worker.failed()))) => {
            anyhow::bail!("the engine failed; the log has the reason")
        }
    }
    // Routers with an open link also get a drain message; this keeps new routers from connecting.
    drop(registrations);
    let withdraw = async {
        if let Some(etcd) = etcd {
            etcd.withdraw().await;
        }
    };
    let drains = workers.iter().map(|worker| worker.drain(settings.grace));
    tokio::join!(withdraw, join_all(drains));
    Ok(())
}

/// Starts the one worker, or all simulated ones.
async fn start_workers(
    settings: &WorkerSettings,
    model: ServedModel,
    nats: Option<NatsTransport>,
    is_child: bool,
) -> anyhow::Result<Vec<RunningWorker>> {
    let text = Arc::new(ModelText::load(&model.artifacts)?);
    let files = ModelFiles::new(&model.artifacts, text.clone());
    let config = |id: &WorkerId, listen: SocketAddr| WorkerConfig {
        id: id.clone(),
        listen,
        nats: nats.clone(),
        advertise_host: settings.advertise_host.clone(),
        model: model.name.clone(),
        role: settings.role,
        labels: settings.labels.clone(),
        server: ServerConfig::default(),
    };
    let mut workers = Vec::new();
    if model.engine == EngineKind::Llama {
        // Settings name one worker for a real engine.
        for place in &settings.workers {
            let engine = llama(&settings.engine, &model, is_child)?;
            let thread = engine_thread("llama")?;
            let config = config(&place.id, place.listen);
            workers.push(service::run(config, engine, files.clone(), &thread).await?);
        }
        return Ok(workers);
    }
    // Simulated engines compute little: more threads than cores would only add context switches.
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads: Vec<_> = (0..cores.min(settings.workers.len()))
        .map(|_| engine_thread("sim"))
        .collect::<Result<_, _>>()?;
    let vocabulary = ordinary_tokens(&text);
    for (place, thread) in settings.workers.iter().zip(threads.iter().cycle()) {
        let engine = sim(&settings.engine, &model, vocabulary.clone())?;
        let config = config(&place.id, place.listen);
        workers.push(service::run(config, Box::new(engine), files.clone(), thread).await?);
    }
    Ok(workers)
}

fn engine_thread(engine: &str) -> anyhow::Result<EngineThread> {
    EngineThread::start(engine).context("the thread of the engine cannot start")
}

fn sim(settings: &EngineSettings, model: &ServedModel, vocabulary: Arc<[u32]>) -> anyhow::Result<SimEngine> {
    let mut config = SimConfig {
        block_size: settings.block_size,
        speedup: settings.speedup,
        seed: settings.seed,
        ..SimConfig::default()
    };
    if let Some(tokens) = settings.kv_tokens {
        config.kv_blocks = tokens / settings.block_size;
    }
    if let Some(sequences) = settings.max_sequences {
        config.max_sequences = sequences;
    }
    if let Some(tokens) = model.context_length {
        config.context_length = tokens;
    }
    Ok(SimEngine::new(config, vocabulary)?)
}

#[cfg(feature = "llama")]
fn llama(
    settings: &EngineSettings,
    model: &ServedModel,
    is_child: bool,
) -> anyhow::Result<Box<dyn StepEngine>> {
    use signalbox_worker::llama::{LlamaConfig, LlamaEngine};

    let path = model
        .path
        .as_deref()
        .ok_or_else(|| anyhow::anyhow!("the llama engine needs a model file"))?;
    let mut config = LlamaConfig::new(path);
    config.block_size = settings.block_size;
    config.kv_tokens = settings.kv_tokens;
    config.threads = settings.threads;
    if let Some(sequences) = settings.max_sequences {
        config.max_sequences = sequences;
    }
    let mut reported = None;
    let progress = move |done: f32| {
        let percent = (done.clamp(0.0, 1.0) * 100.0) as u8;
        if is_child && reported.replace(percent) != Some(percent) {
            ChildNotice::Loading { percent }.send();
        }
    };
    Ok(Box::new(LlamaEngine::load(&config, progress)?))
}

#[cfg(not(feature = "llama"))]
fn llama(_: &EngineSettings, _: &ServedModel, _: bool) -> anyhow::Result<Box<dyn StepEngine>> {
    // Settings for this engine are refused before.
    anyhow::bail!("this binary was built without the llama engine")
}
