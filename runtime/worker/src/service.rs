//! Runs a worker: bind, serve, drain.
//!
//! [`run`] puts an engine behind a request-plane server and answers every [`Call`](signalbox_protocol::Call);
//! [`run_backend`] does so with anything else that computes answers. A running worker is reachable under the address on
//! its card. After [`RunningWorker::drain`] its server and its backend have ended.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use signalbox_event_plane::EventLog;
use signalbox_protocol::{WorkerCard, WorkerEpoch, WorkerId, WorkerRole};
use signalbox_request_plane::{NatsTransport, Server, ServerConfig, ServerHandle};
use signalbox_tokenize::{ModelArtifacts, ModelText};

use crate::{
    backend::{Backend, BackendInfo},
    engine::StepEngine,
    runner::EngineThread,
};

use self::calls::WorkerService;

mod calls;
mod publish;

pub use publish::publish_events;

/// Most labels of a worker's card.
const MAX_LABELS: usize = 32;

/// The identity and the addresses of a worker.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The worker's id, stable over restarts.
    pub id: WorkerId,
    /// The address on which the request plane listens. Port 0 takes a free port.
    pub listen: SocketAddr,
    /// The host that routers dial. Required if `listen` is the unspecified address; otherwise the default is its host.
    pub advertise_host: Option<String>,
    /// Serves routers over NATS and not at `listen`: for routers that cannot dial this machine.
    pub nats: Option<NatsTransport>,
    /// The model's name in clients' requests.
    pub model: String,
    /// The epoch of the worker's last incarnation, if it is known: this one's is greater, whatever the clock shows.
    pub last_epoch: Option<WorkerEpoch>,
    /// The worker's role in a disaggregated deployment.
    pub role: WorkerRole,
    /// The operator's labels, at most 32.
    pub labels: BTreeMap<String, String>,
    /// Bounds of the request plane.
    pub server: ServerConfig,
}

/// The tokenizer and artifacts of a worker's model. The workers of a process share them.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    text: Arc<ModelText>,
    /// The container that routers fetch, so that they need no model files.
    artifacts: Bytes,
    digest: String,
}

impl ModelFiles {
    /// `text` must be loaded from `artifacts`.
    pub fn new(artifacts: &ModelArtifacts, text: Arc<ModelText>) -> Self {
        Self {
            text,
            artifacts: artifacts.to_bytes(),
            digest: artifacts.digest(),
        }
    }
}

/// Why a worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The worker cannot listen on its address.
    #[error("the worker cannot listen on {address}")]
    Bind {
        /// The configured address.
        address: SocketAddr,
        /// The operating system's error.
        source: io::Error,
    },
    /// The worker cannot listen on NATS.
    #[error("the worker cannot listen on NATS")]
    Nats(#[source] io::Error),
    /// Routers cannot dial an unspecified address.
    #[error("the worker listens on every address ({0}); name the host that routers should dial")]
    NoAdvertisedHost(SocketAddr),
    /// The worker's card has too many labels.
    #[error("the worker has {0} labels; the limit is {MAX_LABELS}")]
    TooManyLabels(usize),
}

/// A running worker. It continues after this value is dropped: see [`Self::drain`].
#[derive(Debug)]
pub struct RunningWorker {
    card: Arc<WorkerCard>,
    log: EventLog,
    server: ServerHandle,
    backend: Arc<dyn Backend>,
}

/// Starts a worker whose engine is stepped on `thread`. Call it inside a tokio runtime.
///
/// # Errors
/// See [`WorkerError`]. After an error nothing of the worker runs.
pub async fn run(
    config: WorkerConfig,
    engine: Box<dyn StepEngine>,
    files: ModelFiles,
    thread: &EngineThread,
) -> Result<RunningWorker, WorkerError> {
    let info = engine.info().into();
    let text = files.text.clone();
    let start = |card: &WorkerCard, log: &EventLog| -> Arc<dyn Backend> {
        Arc::new(thread.run(engine, &card.model, text, log.clone()))
    };
    run_backend(config, info, files, start).await
}

/// Starts a worker with the backend that `start` returns. `start` is called once the worker's address is bound, with
/// the worker's card and the log to which the backend publishes its KV events. Call it inside a tokio runtime.
///
/// # Errors
/// See [`WorkerError`]. After an error nothing of the worker runs.
pub async fn run_backend(
    config: WorkerConfig,
    info: BackendInfo,
    files: ModelFiles,
    start: impl FnOnce(&WorkerCard, &EventLog) -> Arc<dyn Backend>,
) -> Result<RunningWorker, WorkerError> {
    if config.labels.len() > MAX_LABELS {
        return Err(WorkerError::TooManyLabels(config.labels.len()));
    }
    let server = match config.nats {
        Some(nats) => Server::on_nats(nats, config.id.clone(), config.server)
            .await
            .map_err(WorkerError::Nats)?,
        None if config.listen.ip().is_unspecified() && config.advertise_host.is_none() => {
            return Err(WorkerError::NoAdvertisedHost(config.listen));
        }
        None => Server::bind(config.listen, config.server)
            .await
            .map_err(|source| WorkerError::Bind {
                address: config.listen,
                source,
            })?,
    };
    let address = match (config.advertise_host, server.local_addr()) {
        (Some(host), Some(local)) => format!("{host}:{}", local.port()),
        _ => server.address(),
    };
    let card = Arc::new(WorkerCard {
        id: config.id,
        epoch: next_epoch(config.last_epoch),
        model: config.model,
        address,
        engine: info.engine,
        block_size: info.block_size,
        context_length: info.context_length,
        artifacts_digest: files.digest,
        role: config.role,
        capacity: info.capacity,
        engine_version: info.engine_version,
        reads_body: info.reads_body,
        continues_answers: info.continues_answers,
        abilities: info.abilities,
        kv_events: info.kv_events,
        labels: config.labels,
    });
    let log = EventLog::new(card.epoch);
    let backend = start(&card, &log);
    let service = WorkerService::new(
        backend.clone(),
        log.clone(),
        card.artifacts_digest.clone(),
        files.artifacts,
    );
    let server = server.serve(card.clone(), Arc::new(service));
    tracing::info!(
        worker.id = %card.id, worker.address = %card.address, worker.engine = card.engine, model = card.model,
        "the worker serves"
    );
    Ok(RunningWorker {
        card,
        log,
        server,
        backend,
    })
}

impl RunningWorker {
    /// The worker's card, with the port on which the worker listens.
    pub fn card(&self) -> &Arc<WorkerCard> {
        &self.card
    }

    /// The log of the worker's KV events, for an event plane that does not read it over the request plane.
    pub fn event_log(&self) -> &EventLog {
        &self.log
    }

    /// Returns the reason when the backend has failed. The worker answers no more requests: drain it, and start another
    /// incarnation or exit with code 1 to be restarted.
    pub async fn failed(&self) -> String {
        self.backend.failed().await
    }

    /// Drains the worker: routers send no new requests, and open requests have `grace` to finish. Then the server and
    /// the backend end.
    pub async fn drain(&self, grace: Duration) {
        self.server.drain(grace).await;
        self.backend.stop().await;
    }
}

/// The epoch of this incarnation: the milliseconds since 1970, or more where an incarnation before it, in this process or
/// by the caller's knowledge, has a greater one. A clock may go backwards.
fn next_epoch(last: Option<WorkerEpoch>) -> WorkerEpoch {
    /// The greatest epoch of this process.
    static GREATEST: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let least = last.map_or(0, |last| last.0.saturating_add(1)).max(now);
    let before = GREATEST.fetch_update(Relaxed, Relaxed, |before| {
        Some(least.max(before.saturating_add(1)))
    });
    WorkerEpoch(least.max(before.unwrap_or_default().saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_epoch_is_greater_than_those_before_it() {
        let first = next_epoch(None);
        assert!(next_epoch(None) > first, "in one process");
        let ahead = WorkerEpoch(first.0 + 3_600_000);
        let after = next_epoch(Some(ahead));
        assert!(after > ahead, "by the caller's knowledge");
        assert!(next_epoch(None) > after);
    }
}
