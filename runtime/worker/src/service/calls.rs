//! Answers the calls of routers.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use signalbox_event_plane::{EventLog, NotRetained, encode_snapshot};
use signalbox_protocol::{Call, ErrorKind, LoraAdapter, StreamSummary, WireError, WorkerEpoch, WorkerReport};
use signalbox_request_plane::{CallHandler, CallParts, CallerGone, Responder};
use tokio::runtime::Handle;

use crate::backend::{Backend, BackendRequest};

/// Shortest interval between two load reports. Load changes with every step, and more frequent reports do not improve
/// routing.
const MIN_LOAD_INTERVAL: Duration = Duration::from_millis(10);

/// Longest interval between two load reports. Longer ones are reduced to it.
const MAX_LOAD_INTERVAL: Duration = Duration::from_secs(60);

/// Answers the calls of routers. Generations go to the backend. Each other call has a task of its own, which
/// reads shared state and ends with the call.
#[derive(Debug)]
pub(super) struct WorkerService {
    backend: Arc<dyn Backend>,
    log: EventLog,
    artifacts_digest: String,
    artifacts: Bytes,
    tasks: Handle,
}

impl WorkerService {
    /// Call it inside a tokio runtime. The calls' tasks run on that runtime.
    pub(super) fn new(
        backend: Arc<dyn Backend>,
        log: EventLog,
        artifacts_digest: String,
        artifacts: Bytes,
    ) -> Self {
        Self {
            backend,
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

    fn watch_kv_events(&self, from: Option<(WorkerEpoch, u64)>, responder: Responder) {
        let mut reader = match self.log.read(from) {
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
        let mut load = self.backend.load();
        let mut parity = self.backend.parity();
        let mut adapters = self.backend.adapters();
        let mut reported_adapters: Option<Arc<[LoraAdapter]>> = None;
        let log = self.log.clone();
        let mut published = log.published();
        self.tasks.spawn(async move {
            loop {
                published.borrow_and_update();
                let position = log.position();
                let adapters_now = adapters.borrow_and_update().clone();
                let are_new = reported_adapters.as_ref() != Some(&adapters_now);
                let report = WorkerReport {
                    load: *load.borrow_and_update(),
                    next_kv_batch: position.next_sequence,
                    kv_digest: Some(position.held),
                    parity: parity.borrow_and_update().clone(),
                    adapters: are_new.then(|| adapters_now.to_vec()),
                };
                reported_adapters = Some(adapters_now);
                let Ok(json) = serde_json::to_vec(&report) else {
                    return;
                };
                if let Err(CallerGone) = responder.send(&json).await {
                    return;
                }
                let next = async {
                    tokio::time::sleep(interval).await;
                    tokio::select! {
                        changed = load.changed() => changed,
                        // A backend whose verdict is final drops the sender, and the load goes on.
                        Ok(()) = parity.changed() => Ok(()),
                        Ok(()) = adapters.changed() => Ok(()),
                        // The last batch of a step may come after its load.
                        Ok(()) = published.changed() => Ok(()),
                    }
                };
                let changed = tokio::select! {
                    () = responder.cancelled() => return,
                    changed = next => changed,
                };
                if changed.is_err() {
                    return responder.fail(backend_ended());
                }
            }
        });
    }
}

impl CallHandler for WorkerService {
    fn call(&self, parts: CallParts, responder: Responder) {
        match parts.call {
            Call::Generate(generate) => {
                let request = BackendRequest {
                    generate,
                    tokens: parts.tokens,
                    body: parts.body,
                };
                self.backend.generate(request, responder);
            }
            Call::FetchArtifacts { digest } => self.fetch_artifacts(&digest, responder),
            Call::FetchKvSnapshot => self.fetch_kv_snapshot(responder),
            Call::WatchKvEvents { from } => self.watch_kv_events(from, responder),
            Call::WatchLoad { interval_ms } => self.watch_load(Duration::from_millis(interval_ms), responder),
        }
    }
}

async fn send_whole(bytes: &[u8], responder: Responder) {
    if responder.send(bytes).await.is_ok() {
        responder.end(StreamSummary::default());
    }
}

/// The error for watches of a worker whose backend has ended.
fn backend_ended() -> WireError {
    WireError::new(ErrorKind::Unavailable, "the worker's engine has stopped")
}

/// The error for events that the log no longer has: the caller has to fetch a snapshot.
fn not_retained(error: &NotRetained) -> WireError {
    WireError::new(ErrorKind::NotFound, error.to_string())
}

#[cfg(test)]
mod tests;
