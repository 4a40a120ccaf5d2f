//! Starts the workers of an engine that runs next door: one for each of its data-parallel ranks.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use signalbox_discovery::EtcdDiscovery;
use signalbox_protocol::WorkerId;
use signalbox_request_plane::{NatsTransport, ServerConfig};
use signalbox_tokenize::ModelText;
use signalbox_worker::{
    openai::{
        CheckedTokenizer, Engine, EngineFacts, FoundEngine, StatedFacts, TokenFacts, Upstream, find_engine,
        start_adapter,
    },
    service::{self, ModelFiles, RunningWorker, WorkerConfig},
};

use crate::{
    child_protocol::ChildNotice,
    console,
    settings::{EngineSettings, UpstreamSettings, WorkerPlace, WorkerSettings},
    tokenizer_files::{FoundTokenizer, TokenizerPlaces},
    worker_process::incarnation::last_epochs,
};

/// Waits for the engine, finds out what it is, and starts its workers.
pub(super) async fn start_workers(
    settings: &WorkerSettings,
    nats: Option<NatsTransport>,
    etcd: Option<&EtcdDiscovery>,
    is_child: bool,
) -> anyhow::Result<Vec<RunningWorker>> {
    let own = settings
        .engine
        .upstream
        .as_ref()
        .context("the engine's address is missing")?;
    let upstream = Upstream::new(own.url.parse()?, own.key.as_deref(), own.ca.as_deref())?;
    let waiting = |reason: &str| report_wait(settings, reason, is_child);
    let found = find_engine(&upstream, &stated_facts(&settings.engine, own), waiting).await?;
    let tokenizer = find_tokenizer(&settings.engine, own, &found.facts, &found.served_model).await?;
    let (tokenizer, checked) = check_tokenizer(&upstream, &found, tokenizer, &settings.engine).await?;
    report_found(settings, &found.facts, &tokenizer, &checked.facts, is_child);
    let files = ModelFiles::new(&checked.artifacts, Arc::new(checked.text));
    let model = found.facts.model.clone();
    let engine = Engine::watch(upstream, found);
    let mut workers = Vec::new();
    let places = places(settings, engine.facts().ranks)?;
    let last_epochs = last_epochs(etcd, &model, &places).await;
    for (rank, place) in (0_u32..).zip(places) {
        let config = WorkerConfig {
            last_epoch: last_epochs.get(&place.id).copied(),
            id: place.id,
            listen: place.listen,
            nats: nats.clone(),
            advertise_host: settings.advertise_host.clone(),
            model: model.clone(),
            role: settings.role,
            labels: settings.labels.clone(),
            server: ServerConfig::default(),
        };
        let (engine, tokens) = (engine.clone(), checked.facts.clone());
        let info = engine.info();
        let worker = service::run_backend(config, info, files.clone(), |card, log| {
            start_adapter(engine, rank, tokens, card, log)
        });
        workers.push(worker.await?);
    }
    Ok(workers)
}

fn stated_facts(engine: &EngineSettings, upstream: &UpstreamSettings) -> StatedFacts {
    StatedFacts {
        model: engine.model_name.clone(),
        context_length: upstream.context_length,
        block_size: engine.block_size,
        kv_tokens: engine.kv_tokens,
        max_sequences: engine.max_sequences,
        events: upstream.kv_events.clone(),
        replay: upstream.kv_replay.clone(),
    }
}

async fn find_tokenizer(
    engine: &EngineSettings,
    upstream: &UpstreamSettings,
    facts: &EngineFacts,
    served_model: &str,
) -> anyhow::Result<FoundTokenizer> {
    TokenizerPlaces {
        folder: engine.tokenizer.as_deref(),
        model_root: facts.model_root.as_deref(),
        model: served_model,
        hub_cache: upstream.hub_cache.as_deref(),
        hub: upstream.hub.as_ref(),
    }
    .find()
    .await
}

/// Loads the tokenizer and compares its tokens with the engine's. One that was found and cannot be loaded counts as none;
/// one that the user names is an error then.
async fn check_tokenizer(
    upstream: &Upstream,
    found: &FoundEngine,
    tokenizer: FoundTokenizer,
    engine: &EngineSettings,
) -> anyhow::Result<(FoundTokenizer, CheckedTokenizer)> {
    if tokenizer.not_found.is_none() {
        let preparation = found.facts.flavour.preparation();
        let artifacts = tokenizer.artifacts.clone().with_preparation(preparation);
        match CheckedTokenizer::check(upstream, &found.served_model, artifacts).await {
            Ok(checked) => return Ok((tokenizer, checked)),
            Err(error) if engine.tokenizer.is_some() => {
                return Err(error)
                    .with_context(|| format!("--tokenizer {} cannot be used", tokenizer.source));
            }
            Err(error) => {
                let error = anyhow::Error::from(error);
                let problem = format!("the tokenizer in {} cannot be used: {error:#}", tokenizer.source);
                return without_tokenizer(FoundTokenizer::none(&problem));
            }
        }
    }
    without_tokenizer(tokenizer)
}

fn without_tokenizer(tokenizer: FoundTokenizer) -> anyhow::Result<(FoundTokenizer, CheckedTokenizer)> {
    let checked = CheckedTokenizer {
        artifacts: tokenizer.artifacts.clone(),
        text: ModelText::load(&tokenizer.artifacts)?,
        facts: TokenFacts {
            no_tokenizer: tokenizer.not_found.clone(),
            ..TokenFacts::default()
        },
    };
    Ok((tokenizer, checked))
}

/// The names and addresses of the ranks' workers: numbered, at consecutive ports, if there are several.
fn places(settings: &WorkerSettings, ranks: u32) -> anyhow::Result<Vec<WorkerPlace>> {
    // Settings name one worker for an engine that is not simulated.
    let place = settings.workers.first().context("the settings name no worker")?;
    if ranks == 1 {
        return Ok(vec![place.clone()]);
    }
    let of_rank = |rank: u32| {
        let id: WorkerId = format!("{}-dp{rank}", place.id).parse()?;
        let mut listen: SocketAddr = place.listen;
        if listen.port() != 0 {
            let port = u32::from(listen.port()) + rank;
            listen.set_port(u16::try_from(port).with_context(|| {
                format!(
                    "the engine has {ranks} data-parallel ranks, and ports from {} on do not suffice for them",
                    place.listen.port()
                )
            })?);
        }
        Ok(WorkerPlace { id, listen })
    };
    (0..ranks).map(of_rank).collect()
}

fn report_wait(settings: &WorkerSettings, reason: &str, is_child: bool) {
    tracing::info!(worker.id = %settings.name, reason, "waiting for the engine");
    if is_child {
        let reason = reason.into();
        ChildNotice::Waiting { reason }.send();
    } else {
        console::line(format_args!("waiting: {reason}"));
    }
}

/// Reports what the engine is, what it lacks, and whether its tokens are the router's.
fn report_found(
    settings: &WorkerSettings,
    facts: &EngineFacts,
    tokenizer: &FoundTokenizer,
    tokens: &TokenFacts,
    is_child: bool,
) {
    let mut lines = vec![describe(facts, tokenizer)];
    lines.extend(facts.missing());
    lines.extend(tokens.no_tokenizer.clone());
    lines.extend(tokens.no_chats.clone());
    lines.extend(tokens.first_difference.clone());
    for lack in &lines[1..] {
        tracing::warn!(worker.id = %settings.name, lack, "the engine lacks something");
    }
    if is_child {
        ChildNotice::Found { lines }.send();
    } else {
        for line in lines {
            console::line(format_args!("engine: {line}"));
        }
    }
}

/// The engine in one line.
fn describe(facts: &EngineFacts, tokenizer: &FoundTokenizer) -> String {
    let mut parts = vec![format!("{} {}", facts.flavour, facts.version).trim().to_owned()];
    parts.push(format!("model {}", facts.model));
    if let Some(tokens) = facts.context_length {
        parts.push(format!("context of {tokens} tokens"));
    }
    if let (Some(blocks), Some(size)) = (facts.kv_blocks, facts.block_size) {
        parts.push(format!("{blocks} KV blocks of {size} tokens"));
    }
    if facts.ranks > 1 {
        parts.push(format!("{} data-parallel ranks", facts.ranks));
    }
    if !facts.adapters.is_empty() {
        parts.push(format!("LoRA adapters {}", facts.adapter_names().join(", ")));
    }
    if let Some(endpoint) = facts.events.first() {
        parts.push(format!("KV events at {}", endpoint.events));
    }
    parts.push(format!("tokenizer from {}", tokenizer.source));
    parts.join(", ")
}
