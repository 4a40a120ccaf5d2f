//! Sessions with etcd, one after the other, for ever.
//!
//! A session is one connection to one server, over which the registrar and the watcher do their work at the same
//! time. Whatever fails ends it for both: then there is one place that waits, one that dials, and one that says how
//! etcd is doing.

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

/// First wait after a session, doubled after each one that was short.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// Longest wait: an etcd that is back is used within two seconds. A session that lasted longer than this was a good
/// one.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// How etcd is doing, told only when that changes.
#[derive(Debug)]
pub(crate) struct Status(watch::Sender<PlaneStatus>);

/// Never ends.
pub(crate) async fn keep_up(
    keys: Keyspace,
    endpoints: Vec<Endpoint>,
    mut registrar: Registrar,
    mut watcher: Watcher,
    status: Status,
) {
    let mut pause = MIN_PAUSE;
    // The next server each time: the one we had may be the one that is unwell.
    for endpoint in endpoints.iter().cycle() {
        let began = Instant::now();
        // Boxed: it has 35 KB, mostly the client's, which would be moved about with this future.
        let session = Box::pin(hold(&keys, endpoint, &mut registrar, &mut watcher, &status));
        let Err(outage) = session.await;
        status.down(endpoint, &outage);
        if began.elapsed() > MAX_PAUSE {
            pause = MIN_PAUSE;
        }
        // Not all at the same moment: all processes lost the same server.
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// One session.
async fn hold(
    keys: &Keyspace,
    endpoint: &Endpoint,
    registrar: &mut Registrar,
    watcher: &mut Watcher,
    status: &Status,
) -> Result<Infallible, Outage> {
    let mut client = bounded("connecting", endpoint.connect()).await?;
    probe(&mut client, keys).await?;
    status.up(endpoint);
    tokio::select! {
        ended = registrar.run(client.clone()) => ended,
        ended = watcher.run(client) => ended,
    }
}

impl Status {
    pub(crate) fn new() -> (Self, watch::Receiver<PlaneStatus>) {
        let (sender, receiver) = watch::channel(PlaneStatus::connecting("etcd"));
        (Self(sender), receiver)
    }

    fn up(&self, endpoint: &Endpoint) {
        if self.0.send_if_modified(PlaneStatus::up) {
            tracing::info!(%endpoint, "etcd is up");
        }
    }

    /// The status says it to people, once.
    fn down(&self, endpoint: &Endpoint, outage: &Outage) {
        self.0
            .send_if_modified(|status| status.down(format!("{endpoint}: {outage}")));
        tracing::debug!(%endpoint, reason = %outage, "etcd is away; trying again and again");
    }
}
