//! What all connections of a server share, and how it leaves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hashbrown::HashMap;
use parking_lot::Mutex;
use signalbox_protocol::WorkerCard;
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{CallHandler, ServerConfig, connection::RouterConnection};

/// After the grace: time for what is queued to be written and for routers to close their side. Two round trips over
/// any network, and short enough for a supervisor that kills after 10 s.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Connections told at the same time why they are refused; more are closed without a word.
const MAX_REFUSALS: usize = 16;

/// How long a silent router is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// From the connection to the end of its hello.
    pub(crate) hello: Duration,
    /// Between two frames. Routers ping every few seconds; one this silent is gone, and its streams are cancelled.
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
    pub(super) room: Arc<Semaphore>,
    pub(super) refusals: Arc<Semaphore>,
    pub(super) generating: Arc<Generating>,
    /// No new connections.
    pub(super) stop_accepting: CancellationToken,
    /// Connections write what they have and close.
    pub(super) close: CancellationToken,
    /// Connections end where they are.
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
            room: Arc::new(Semaphore::new(config.max_connections.min(Semaphore::MAX_PERMITS))),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
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

    /// Counts a connection in until the guard is dropped. One that comes while the server drains is told so.
    pub(super) fn enter(self: &Arc<Self>, connection: &Arc<RouterConnection>) -> Entered {
        let id = self.last_connection.fetch_add(1, Ordering::Relaxed);
        self.connections.lock().insert(id, connection.clone());
        if self.is_draining() {
            connection.tell_draining();
        }
        Entered {
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
            connection.tell_draining();
        }
        if timeout(grace, self.generating.none_left()).await.is_err() {
            tracing::warn!(
                streams = self.generating.count(),
                "still generating after the grace; closing"
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

/// Keeps a connection among those that a drain tells.
pub(super) struct Entered {
    server: Arc<ServerState>,
    id: u64,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.server.connections.lock().remove(&self.id);
    }
}

/// Counts open Generate streams.
#[derive(Debug, Default)]
pub(super) struct Generating {
    count: AtomicUsize,
    changed: Notify,
}

impl Generating {
    pub(super) fn enter(self: &Arc<Self>) -> GeneratingGuard {
        self.count.fetch_add(1, Ordering::SeqCst);
        GeneratingGuard(self.clone())
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    async fn none_left(&self) {
        loop {
            let changed = self.changed.notified();
            if self.count() == 0 {
                return;
            }
            changed.await;
        }
    }
}

/// One open Generate stream.
#[derive(Debug)]
pub(super) struct GeneratingGuard(Arc<Generating>);

impl Drop for GeneratingGuard {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}
