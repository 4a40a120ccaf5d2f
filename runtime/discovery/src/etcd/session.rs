//! Sessions with etcd, one after the other, for ever.
//!
//! A session is one connection to one server, which the registrar and the watcher use at the same time. A failure of
//! either ends the session. So one place waits, dials and reports the state.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use signalbox_protocol::PlaneStatus;
use tokio::sync::watch;

use super::{
    config::Endpoint,
    keyspace::Keyspace,
    outage::{Outage, bounded},
    registrar::{Registrar, probe},
    watcher::Watcher,
};

/// Wait after a session, doubled after each short session up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// Longest wait: an etcd that is back is used within two seconds. A session that lasted longer than this resets the
/// wait.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Reports the state of etcd when it changes.
#[derive(Debug)]
pub(crate) struct StatusSender(watch::Sender<PlaneStatus>);

/// Holds one session after the other, for ever.
pub(crate) async fn keep_up(
    keys: Keyspace,
    endpoints: Vec<Endpoint>,
    mut registrar: Registrar,
    mut watcher: Watcher,
    status: StatusSender,
) {
    let mut pause = MIN_PAUSE;
    // Each session uses the next server, because the last one may be at fault.
    for endpoint in endpoints.iter().cycle() {
        let began = Instant::now();
        // Boxed because it has 35 KB, mostly of the client, which would move with this future.
        let session = Box::pin(hold(&keys, endpoint, &mut registrar, &mut watcher, &status));
        let Err(outage) = session.await;
        status.down(endpoint, &outage);
        if began.elapsed() > MAX_PAUSE {
            pause = MIN_PAUSE;
        }
        // A random wait, so that all processes that lost the same server do not return at the same moment.
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Holds one session.
async fn hold(
    keys: &Keyspace,
    endpoint: &Endpoint,
    registrar: &mut Registrar,
    watcher: &mut Watcher,
    status: &StatusSender,
) -> Result<Infallible, Outage> {
    let mut client = bounded("connecting", endpoint.connect()).await?;
    probe(&mut client, keys).await?;
    status.up(endpoint);
    tokio::select! {
        ended = registrar.run(client.clone()) => ended,
        ended = watcher.run(client) => ended,
    }
}

impl StatusSender {
    pub(crate) fn new() -> (Self, watch::Receiver<PlaneStatus>) {
        let (sender, receiver) = watch::channel(PlaneStatus::connecting("etcd"));
        (Self(sender), receiver)
    }

    fn up(&self, endpoint: &Endpoint) {
        if self.0.send_if_modified(PlaneStatus::up) {
            tracing::info!(%endpoint, "etcd is up");
        }
    }

    /// Operators see the status; the log has each failed attempt at debug level.
    fn down(&self, endpoint: &Endpoint, outage: &Outage) {
        self.0
            .send_if_modified(|status| status.down(format!("{endpoint}: {outage}")));
        tracing::debug!(%endpoint, reason = %outage, "etcd cannot be used; trying again");
    }
}
