//! Answers the calls of routers.

use std::time::Duration;

use bytes::Bytes;
use signalbox_event_plane::{EventLog, NotRetained, encode_snapshot};
use signalbox_protocol::{Call, ErrorKind, Parity, StreamSummary, WireError, WorkerEpoch, WorkerReport};
use signalbox_request_plane::{CallHandler, CallParts, CallerGone, Responder};
use tokio::runtime::Handle;

use crate::runner::{RunnerHandle, engine_stopped};

/// Shortest interval between two load reports. Load changes with every step, and more frequent reports do not improve
/// routing.
const MIN_LOAD_INTERVAL: Duration = Duration::from_millis(10);

/// Longest interval between two load reports. Longer ones are reduced to it.
const MAX_LOAD_INTERVAL: Duration = Duration::from_secs(60);

/// Answers the calls of routers. Generations go to the engine's thread. Each other call has a task of its own, which
/// reads shared state and ends with the call.
#[derive(Debug)]
pub(super) struct WorkerService {
    runner: RunnerHandle,
    log: EventLog,
    artifacts_digest: String,
    artifacts: Bytes,
    tasks: Handle,
}

impl WorkerService {
    /// Call it inside a tokio runtime. The calls' tasks run on that runtime.
    pub(super) fn new(
        runner: RunnerHandle,
        log: EventLog,
        artifacts_digest: String,
        artifacts: Bytes,
    ) -> Self {
        Self {
            runner,
            log,
            artifacts_digest,
            artifacts,
            tasks: Handle::current(),
        }
    }

    fn fetch_artifacts(&self, digest: &str, responder: Responder) {
        if digest != self.artifacts_digest {
            let message = format!(
                "the worker's artifacts have the digest {}, not {digest}",
                self.artifacts_digest
            );
            return responder.fail(WireError::new(ErrorKind::NotFound, message));
        }
        let artifacts = self.artifacts.clone();
        self.tasks
            .spawn(async move { send_whole(&artifacts, responder).await });
    }

    fn fetch_kv_snapshot(&self, responder: Responder) {
        let log = self.log.clone();
        self.tasks.spawn(async move {
            // Sorting a million blocks takes most of a second, during which this thread must send tokens.
            match tokio::task::spawn_blocking(move || encode_snapshot(&log.snapshot())).await {
                Ok(snapshot) => send_whole(&snapshot, responder).await,
                Err(error) => responder.fail(WireError::new(ErrorKind::Internal, error.to_string())),
            }
        });
    }

    fn watch_kv_events(&self, after: Option<(WorkerEpoch, u64)>, responder: Responder) {
        let mut reader = match self.log.read(after) {
            Ok(reader) => reader,
            Err(error) => return responder.fail(not_retained(&error)),
        };
        self.tasks.spawn(async move {
            loop {
                let batch = tokio::select! {
                    () = responder.cancelled() => return,
                    batch = reader.next() => batch,
                };
                match batch {
                    Ok(batch) => {
                        if let Err(CallerGone) = responder.send(&batch).await {
                            return;
                        }
                    }
                    Err(error) => return responder.fail(not_retained(&error)),
                }
            }
        });
    }

    fn watch_load(&self, interval: Duration, responder: Responder) {
        let interval = interval.clamp(MIN_LOAD_INTERVAL, MAX_LOAD_INTERVAL);
        let mut load = self.runner.load();
        let log = self.log.clone();
        self.tasks.spawn(async move {
            loop {
                let report = WorkerReport {
                    load: *load.borrow_and_update(),
                    next_kv_batch: log.next_sequence(),
                    parity: Parity::default(),
                };
                let Ok(json) = serde_json::to_vec(&report) else {
                    return;
                };
                if let Err(CallerGone) = responder.send(&json).await {
                    return;
                }
                let next = async {
                    tokio::time::sleep(interval).await;
                    load.changed().await
                };
                let changed = tokio::select! {
                    () = responder.cancelled() => return,
                    changed = next => changed,
                };
                if changed.is_err() {
                    return responder.fail(engine_stopped());
                }
            }
        });
    }
}

impl CallHandler for WorkerService {
    fn call(&self, parts: CallParts, responder: Responder) {
        match parts.call {
            Call::Generate(request) => self.runner.submit(&request, parts.tokens, responder),
            Call::FetchArtifacts { digest } => self.fetch_artifacts(&digest, responder),
            Call::FetchKvSnapshot => self.fetch_kv_snapshot(responder),
            Call::WatchKvEvents { after } => self.watch_kv_events(after, responder),
            Call::WatchLoad { interval_ms } => self.watch_load(Duration::from_millis(interval_ms), responder),
        }
    }
}

async fn send_whole(bytes: &[u8], responder: Responder) {
    if responder.send(bytes).await.is_ok() {
        responder.end(StreamSummary::default());
    }
}

/// The error for events that the log no longer has: the caller has to fetch a snapshot.
fn not_retained(error: &NotRetained) -> WireError {
    WireError::new(ErrorKind::NotFound, error.to_string())
}
