//! A worker's life: bind, serve, drain.
//!
//! [`run`] puts an engine behind a request-plane server and answers every [`Call`](signalbox_protocol::Call). It promises that a worker that
//! runs is reachable under the address on its card, and that after [`RunningWorker::drain`] nothing of it is left.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use signalbox_event_plane::EventLog;
use signalbox_protocol::{WorkerCard, WorkerEpoch, WorkerId, WorkerRole};
use signalbox_request_plane::{NatsTransport, Server, ServerConfig, ServerHandle};
use signalbox_tokenize::{ModelArtifacts, ModelText};

use crate::{
    engine::StepEngine,
    runner::{EngineThread, RunnerHandle, RunnerState},
};

use self::calls::WorkerService;

mod calls;
mod publish;

pub use publish::publish_events;

/// As many as a worker's card may carry.
const MAX_LABELS: usize = 32;

/// What a worker is called and where it listens.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Its name, stable over restarts.
    pub id: WorkerId,
    /// Where its request plane listens; port 0 picks a free one.
    pub listen: SocketAddr,
    /// The host routers dial. Needed where `listen` is every address of the machine; otherwise its own.
    pub advertise_host: Option<String>,
    /// Serve routers over NATS instead of at `listen`: where they cannot dial this machine.
    pub nats: Option<NatsTransport>,
    /// The model's name, as clients ask for it.
    pub model: String,
    /// What it does in a disaggregated deployment.
    pub role: WorkerRole,
    /// The operator's own words about it, at most 32.
    pub labels: BTreeMap<String, String>,
    /// Bounds of the request plane.
    pub server: ServerConfig,
}

/// What a worker needs of its model besides the engine; workers of one process share it.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    text: Arc<ModelText>,
    /// What routers fetch, so that they need no files of the model.
    artifacts: Bytes,
    digest: String,
}

impl ModelFiles {
    /// `text` is `artifacts` loaded.
    pub fn new(artifacts: &ModelArtifacts, text: Arc<ModelText>) -> Self {
        Self {
            text,
            artifacts: artifacts.to_bytes(),
            digest: artifacts.digest(),
        }
    }
}

/// Why a worker did not come up.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The address cannot be listened on.
    #[error("worker cannot listen on {address}")]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
    /// NATS cannot be listened on.
    #[error("worker cannot listen on NATS")]
    Nats(#[source] io::Error),
    /// Routers could not dial it.
    #[error("worker listens on every address ({0}): name the host that routers should dial")]
    NoAdvertisedHost(SocketAddr),
    /// The card would be refused.
    #[error("worker has {0} labels; at most {MAX_LABELS} are carried")]
    TooManyLabels(usize),
}

/// A worker that serves. Dropping it leaves it running: see [`Self::drain`].
#[derive(Debug)]
pub struct RunningWorker {
    card: Arc<WorkerCard>,
    log: EventLog,
    server: ServerHandle,
    runner: RunnerHandle,
}

/// Brings a worker up whose engine is stepped on `thread`; call it inside a tokio runtime.
///
/// # Errors
/// See [`WorkerError`]; nothing is left running then.
pub async fn run(
    config: WorkerConfig,
    engine: Box<dyn StepEngine>,
    files: ModelFiles,
    thread: &EngineThread,
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
    let info = engine.info();
    let card = Arc::new(WorkerCard {
        id: config.id,
        epoch: epoch_now(),
        model: config.model,
        address,
        engine: info.name.to_owned(),
        block_size: info.block_size,
        context_length: info.context_length,
        artifacts_digest: files.digest,
        role: config.role,
        capacity: info.capacity,
        kv_events: true,
        labels: config.labels,
    });
    let log = EventLog::new(card.epoch);
    let runner = thread.run(engine, &card.model, files.text, log.clone());
    let service = WorkerService::new(
        runner.clone(),
        log.clone(),
        card.artifacts_digest.clone(),
        files.artifacts,
    );
    let server = server.serve(card.clone(), Arc::new(service));
    tracing::info!(
        worker.id = %card.id, worker.address = %card.address, worker.engine = card.engine, model = card.model,
        "worker serves"
    );
    Ok(RunningWorker {
        card,
        log,
        server,
        runner,
    })
}

impl RunningWorker {
    /// What it says of itself, with the port it really listens on.
    pub fn card(&self) -> &Arc<WorkerCard> {
        &self.card
    }

    /// What its KV cache holds, for event planes beside the request plane.
    pub fn event_log(&self) -> &EventLog {
        &self.log
    }

    /// Returns when the engine has panicked. The worker answers nothing any more: the process should end with exit
    /// code 1 and be started again.
    pub async fn failed(&self) {
        let mut state = self.runner.state();
        if state
            .wait_for(|state| *state == RunnerState::Failed)
            .await
            .is_err()
        {
            // The thread ended as it was told to: there will be no failure.
            std::future::pending::<()>().await;
        }
    }

    /// Leaves politely: routers send nothing new, what is open may finish for at most `grace`, then everything ends.
    pub async fn drain(&self, grace: Duration) {
        self.server.drain(grace).await;
        self.runner.stop().await;
    }
}

/// A clock before 1970 gives epoch 0: every later life is newer then.
fn epoch_now() -> WorkerEpoch {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WorkerEpoch(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
