//! What all connections of a server share, and how the server drains.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use hashbrown::HashMap;
use parking_lot::Mutex;
use signalbox_protocol::WorkerCard;
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    config::ServerConfig, generating::Generating, responder::CallHandler, router_connection::RouterConnection,
};

/// After the grace of a drain: the time to write what is queued and for routers to close their side. Two round trips over
/// any network, and short enough for a supervisor that kills after 10 s.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Refusals sent at the same time. Connections beyond them are closed without a reason.
const MAX_REFUSALS: usize = 16;

/// How long the server waits for a silent router.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// From the start of the connection to the end of its hello.
    pub(crate) hello: Duration,
    /// Between two frames. Routers ping every few seconds, so a router silent for this long is gone and its streams are
    /// cancelled.
    pub(crate) silence: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(5),
            silence: Duration::from_secs(30),
        }
    }
}

/// What all connections of a server share.
pub(super) struct ServerState {
    pub(super) config: ServerConfig,
    pub(super) timeouts: Timeouts,
    pub(super) card: Arc<WorkerCard>,
    pub(super) handler: Arc<dyn CallHandler>,
    pub(super) tasks: TaskTracker,
    /// A permit for each connection that may be open.
    pub(super) connection_permits: Arc<Semaphore>,
    /// A permit for each refusal that may be in progress.
    pub(super) refusal_permits: Arc<Semaphore>,
    pub(super) generating: Arc<Generating>,
    /// Cancelled when the server accepts no more connections.
    pub(super) stop_accepting: CancellationToken,
    /// Cancelled when connections shall write what is queued and close.
    pub(super) close: CancellationToken,
    /// Cancelled when connections shall end at once.
    pub(super) abandon: CancellationToken,
    draining: AtomicBool,
    connections: Mutex<HashMap<u64, Arc<RouterConnection>>>,
    last_connection: AtomicU64,
}

impl ServerState {
    pub(super) fn new(
        config: ServerConfig,
        timeouts: Timeouts,
        card: Arc<WorkerCard>,
        handler: Arc<dyn CallHandler>,
    ) -> Self {
        Self {
            connection_permits: Arc::new(Semaphore::new(config.max_connections.min(Semaphore::MAX_PERMITS))),
            refusal_permits: Arc::new(Semaphore::new(MAX_REFUSALS)),
            config,
            timeouts,
            card,
            handler,
            tasks: TaskTracker::new(),
            generating: Arc::default(),
            stop_accepting: CancellationToken::new(),
            close: CancellationToken::new(),
            abandon: CancellationToken::new(),
            draining: AtomicBool::new(false),
            connections: Mutex::default(),
            last_connection: AtomicU64::new(0),
        }
    }

    /// Registers a connection until the guard is dropped. A drain sends a Drain frame to every registered connection, and a
    /// connection registered during a drain receives one at once.
    pub(super) fn register(self: &Arc<Self>, connection: &Arc<RouterConnection>) -> Registration {
        let id = self.last_connection.fetch_add(1, Ordering::Relaxed);
        self.connections.lock().insert(id, connection.clone());
        if self.is_draining() {
            connection.send_drain();
        }
        Registration {
            server: self.clone(),
            id,
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        // SeqCst, as the count of `Generating`: a stream is either refused or waited for.
        self.draining.load(Ordering::SeqCst)
    }

    pub(super) async fn drain(&self, grace: Duration) {
        self.draining.store(true, Ordering::SeqCst);
        self.stop_accepting.cancel();
        let connections: Vec<_> = self.connections.lock().values().cloned().collect();
        tracing::info!(
            connections = connections.len(),
            streams = self.generating.count(),
            "draining"
        );
        for connection in connections {
            connection.send_drain();
        }
        if timeout(grace, self.generating.idle()).await.is_err() {
            tracing::warn!(
                streams = self.generating.count(),
                "closing, although streams are still generating after the grace"
            );
        }
        self.close.cancel();
        self.tasks.close();
        if timeout(CLOSE_TIMEOUT, self.tasks.wait()).await.is_err() {
            self.abandon.cancel();
            // A handler that blocks its reader, against its contract, must not keep the process.
            let _ = timeout(CLOSE_TIMEOUT, self.tasks.wait()).await;
        }
    }
}

/// A connection's entry in the server. Dropping it removes the entry.
pub(super) struct Registration {
    server: Arc<ServerState>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.server.connections.lock().remove(&self.id);
    }
}
