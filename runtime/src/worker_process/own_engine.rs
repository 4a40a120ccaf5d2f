//! The engines of this binary: llama.cpp, or one or several simulated GPUs.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use signalbox_discovery::EtcdDiscovery;
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
    model::ServedModel,
    settings::{DEFAULT_BLOCK_SIZE, EngineKind, EngineSettings, WorkerSettings},
    worker_process::incarnation::last_epochs,
};

/// Starts the one worker, or all simulated ones.
pub(super) async fn start_workers(
    settings: &WorkerSettings,
    nats: Option<NatsTransport>,
    etcd: Option<&EtcdDiscovery>,
    is_child: bool,
) -> anyhow::Result<Vec<RunningWorker>> {
    let model = ServedModel::resolve(&settings.engine)?;
    let text = Arc::new(ModelText::load(&model.artifacts)?);
    let files = ModelFiles::new(&model.artifacts, text.clone());
    let last_epochs = last_epochs(etcd, &model.name, &settings.workers).await;
    let config = |id: &WorkerId, listen: SocketAddr| WorkerConfig {
        id: id.clone(),
        listen,
        nats: nats.clone(),
        advertise_host: settings.advertise_host.clone(),
        model: model.name.clone(),
        last_epoch: last_epochs.get(id).copied(),
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
    let block_size = settings.block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
    let mut config = SimConfig {
        block_size,
        speedup: settings.speedup,
        seed: settings.seed,
        fatal_token: settings.fatal_token,
        ..SimConfig::default()
    };
    if let Some(tokens) = settings.kv_tokens {
        config.kv_blocks = tokens / block_size;
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

    use crate::child_protocol::ChildNotice;

    let path = model
        .path
        .as_deref()
        .ok_or_else(|| anyhow::anyhow!("the llama engine needs a model file"))?;
    let mut config = LlamaConfig::new(path);
    config.block_size = settings.block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
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
