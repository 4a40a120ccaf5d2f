//! What a worker answers to each call.

use std::time::Duration;

use bytes::Bytes;
use signalbox_event_plane::{EventLog, NotRetained, encode_snapshot};
use signalbox_protocol::{Call, ErrorKind, StreamSummary, WireError, WorkerEpoch, WorkerReport};
use signalbox_request_plane::{CallHandler, CallParts, CallerGone, Responder};
use tokio::runtime::Handle;

use crate::runner::RunnerHandle;

/// Load changes with every step; nobody routes better for hearing of it more often than this.
const MIN_LOAD_INTERVAL: Duration = Duration::from_millis(10);

/// A caller that asks for longer than this may as well ask again.
const MAX_LOAD_INTERVAL: Duration = Duration::from_secs(60);

/// Answers the calls of routers: generations go to the engine's thread, everything else is read from shared state
/// by a task of its own, which ends with its call.
#[derive(Debug)]
pub(super) struct WorkerService {
    runner: RunnerHandle,
    log: EventLog,
    artifacts_digest: String,
    artifacts: Bytes,
    tasks: Handle,
}

impl WorkerService {
    /// Inside a tokio runtime, on which it will spawn.
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
                "This worker's tokenizer has the digest {}, not {digest}.",
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
            // Sorting out a million blocks takes a good part of a second, for which no token may wait.
            match tokio::task::spawn_blocking(move || encode_snapshot(&log.snapshot())).await {
                Ok(snapshot) => send_whole(&snapshot, responder).await,
                Err(error) => responder.fail(WireError::new(ErrorKind::Internal, error.to_string())),
            }
        });
    }

    fn watch_kv_events(&self, after: Option<(WorkerEpoch, u64)>, responder: Responder) {
        let mut reader = match self.log.read(after) {
            Ok(reader) => reader,
            Err(error) => return responder.fail(snapshot_is_due(&error)),
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
                    Err(error) => return responder.fail(snapshot_is_due(&error)),
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
                    let error =
                        WireError::new(ErrorKind::Unavailable, "The engine of this worker has stopped.");
                    return responder.fail(error);
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

fn snapshot_is_due(error: &NotRetained) -> WireError {
    WireError::new(ErrorKind::NotFound, error.to_string())
}
