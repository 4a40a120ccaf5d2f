//! Whether a fake engine runs.

use tokio::sync::watch;

/// The state of an engine's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It takes connections and generates.
    Serving,
    /// As vLLM after SIGTERM with its default `--shutdown-timeout 0`: connections are refused, and open streams hang.
    Terminated,
    /// Its sockets are reset.
    Dead,
}

impl Phase {
    /// Returns once the engine no longer takes connections.
    pub(super) async fn not_serving(mut phase: watch::Receiver<Self>) {
        let _ = phase.wait_for(|phase| *phase != Self::Serving).await;
    }

    /// Returns once the engine is dead.
    pub(super) async fn dead(mut phase: watch::Receiver<Self>) {
        let _ = phase.wait_for(|phase| *phase == Self::Dead).await;
    }
}
