//! Being told to stop.

use std::future::Future;

use tokio::signal::unix::{SignalKind, signal};

/// Listens for Ctrl-C (SIGINT) and SIGTERM from now on; the future waits for the first. A second one while stopping
/// ends the process at once. To be called before anybody is told that the process runs: until then a signal ends it
/// without a word.
pub(crate) fn requested() -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        actix_rt::spawn(async move {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            tracing::warn!("told to stop a second time: not waiting for anything");
            std::process::exit(130);
        });
    })
}
