//! Signals that stop the process.

use std::future::Future;

use tokio::signal::unix::{SignalKind, signal};

/// Handles Ctrl-C (SIGINT) and SIGTERM from now on; the future waits for the first signal. A second signal ends the
/// process at once. Call this before the process reports that it runs: before the call a signal kills the process
/// without an orderly stop.
pub(crate) fn requested() -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        actix_rt::spawn(async move {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            tracing::warn!("second signal to stop: exiting without waiting for requests under way");
            std::process::exit(130);
        });
    })
}
