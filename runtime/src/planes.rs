//! From settings to planes: what carries membership, events and policies for this process.
//!
//! Nothing here waits for a server. A NATS or etcd that is away is dialled for ever, and what the process knows
//! otherwise is served meanwhile; each change of a plane's state is logged once and shown by a gauge.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, bail, ensure};
use signalbox_discovery::{EtcdConfig, EtcdDiscovery, EtcdTls};
use signalbox_event_plane::{
    Broadcast, DirectoryStore, EventPlane, MemoryPlane, MemoryStore, NatsBroadcast, NatsPlane,
    NatsPlaneConfig, NatsStore, Retention, SharedStore,
};
use signalbox_nats::{NatsConfig, NatsConnection};
use signalbox_protocol::{PlaneState, PlaneStatus};
use tokio::sync::watch;

use crate::cli::PlaneOptions;

/// How a plane is doing, now and from now on.
pub(crate) type Status = watch::Receiver<PlaneStatus>;

/// Where workers are found and register.
#[derive(Debug, Default)]
pub(crate) struct Membership {
    /// Those known by address.
    pub(crate) addresses: Vec<String>,
    pub(crate) etcd: Option<Arc<EtcdDiscovery>>,
}

impl Membership {
    /// From `--discovery`, given any number of times.
    pub(crate) async fn start(urls: &[String], options: &PlaneOptions) -> anyhow::Result<Self> {
        let mut membership = Self::default();
        for url in urls.iter().filter(|url| !url.is_empty()) {
            if let Some(list) = url.strip_prefix("static://") {
                membership.addresses.extend(addresses(list)?);
            } else if let Some(list) = url.strip_prefix("etcd://") {
                ensure!(
                    membership.etcd.is_none(),
                    "--discovery names etcd twice; give the servers of one cluster with commas between: \
                     etcd://a:2379,b:2379"
                );
                membership.etcd = Some(EtcdDiscovery::start(etcd_config(list, options)?).await?);
            } else {
                bail!(
                    "--discovery {url:?} is not known; give static://host:port[,host:port…] or \
                     etcd://host:port[,host:port…]"
                );
            }
        }
        Ok(membership)
    }
}

/// What carries events, and whatever else goes the same way.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) plane: Arc<dyn EventPlane>,
    /// The connection, where they go over NATS.
    pub(crate) nats: Option<NatsConnection>,
}

impl Events {
    /// From `--events`; `name` is what the server calls this process.
    pub(crate) async fn start(options: &PlaneOptions, name: &str) -> anyhow::Result<Self> {
        if options.events == "memory" {
            return Ok(Self::in_process());
        }
        let is_nats = |url: &str| url.starts_with("nats://") || url.starts_with("tls://");
        ensure!(
            is_nats(&options.events),
            "--events must be memory or nats://host:port[,nats://host:port…]"
        );
        let config = NatsConfig {
            url: options.events.clone(),
            credentials: options.nats_creds.clone(),
            ca: options.nats_ca.clone(),
            client_certificate: options.nats_cert.clone().zip(options.nats_key.clone()),
        };
        let connection = NatsConnection::start(&config, name).await?;
        let plane = NatsPlaneConfig {
            namespace: options.namespace.clone(),
            replicas: options.nats_replicas.into(),
            ..NatsPlaneConfig::default()
        };
        Ok(Self {
            plane: NatsPlane::start(connection.clone(), plane),
            nats: Some(connection),
        })
    }

    /// Within this process.
    pub(crate) fn in_process() -> Self {
        Self {
            plane: MemoryPlane::with_retention(Retention::OF_A_ROUTER),
            nats: None,
        }
    }

    /// Carries messages among routers, where there can be others.
    pub(crate) fn broadcast(&self, namespace: &str) -> Option<Arc<dyn Broadcast>> {
        let nats = self.nats.clone()?;
        Some(NatsBroadcast::start(nats, namespace))
    }

    /// Where uploaded policies are kept: with NATS for all routers, in a folder, or nowhere else.
    pub(crate) fn policy_store(
        &self,
        namespace: &str,
        folder: Option<&Path>,
    ) -> anyhow::Result<Arc<dyn SharedStore>> {
        match (&self.nats, folder) {
            (Some(_), Some(_)) => bail!(
                "--policy-dir is for routers without NATS; with --events nats://… NATS keeps the policies"
            ),
            (Some(nats), None) => Ok(NatsStore::start(nats.clone(), namespace)),
            (None, Some(folder)) => Ok(DirectoryStore::open(folder)?),
            (None, None) => Ok(MemoryStore::new()),
        }
    }
}

/// Logs each change of a plane's state and keeps its gauge, until the plane is dropped.
pub(crate) fn report(name: &'static str, mut status: Status) {
    actix_rt::spawn(async move {
        let mut told = PlaneState::Connecting;
        let mut told_reason = false;
        loop {
            let now = status.borrow_and_update().clone();
            let gauge = metrics::gauge!("signalbox_plane_up", "plane" => name, "kind" => now.kind.clone());
            gauge.set(if now.state == PlaneState::Up { 1.0 } else { 0.0 });
            let is_news = now.state != told
                || (now.state == PlaneState::Connecting && now.has_reason() && !told_reason);
            match now.state {
                PlaneState::Up if is_news && !told_reason => {
                    tracing::info!(plane = name, kind = now.kind, "plane works")
                }
                // As loud as its trouble was.
                PlaneState::Up if is_news => {
                    tracing::warn!(plane = name, kind = now.kind, "plane works again")
                }
                state if is_news => tracing::warn!(
                    plane = name, kind = now.kind, %state, reason = now.detail,
                    "plane does not work; serving goes on with what is known, and it is tried again"
                ),
                _ => {}
            }
            told = now.state;
            told_reason = now.state != PlaneState::Up && now.has_reason();
            if status.changed().await.is_err() {
                return;
            }
        }
    });
}

/// The status of what lives within the process. Its sender is gone: nothing will ever change.
pub(crate) fn always_up(kind: &str) -> Status {
    watch::channel(PlaneStatus::in_process(kind)).1
}

/// `host:port[,host:port…]`
fn addresses(list: &str) -> anyhow::Result<Vec<String>> {
    let is_address = |address: &&str| match address.rsplit_once(':') {
        Some((host, port)) => !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0),
        None => false,
    };
    let addresses: Vec<&str> = list.split(',').map(str::trim).collect();
    if let Some(wrong) = addresses.iter().find(|address| !is_address(address)) {
        bail!("--discovery names {wrong:?}; give host:port");
    }
    Ok(addresses.into_iter().map(String::from).collect())
}

fn etcd_config(list: &str, options: &PlaneOptions) -> anyhow::Result<EtcdConfig> {
    let has_tls = options.etcd_ca.is_some() || options.etcd_cert.is_some();
    let scheme = if has_tls { "https" } else { "http" };
    let endpoints = addresses(list).context("the address of etcd is not right")?;
    Ok(EtcdConfig {
        endpoints: endpoints
            .iter()
            .map(|endpoint| format!("{scheme}://{endpoint}"))
            .collect(),
        namespace: options.namespace.clone(),
        lease_ttl: Duration::from_secs(options.lease_s.into()),
        user: options.etcd_user.clone().zip(options.etcd_password.clone()),
        tls: has_tls.then(|| EtcdTls {
            ca: options.etcd_ca.clone(),
            certificate: options.etcd_cert.clone().zip(options.etcd_key.clone()),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_what_is_wrong() {
        assert_eq!(addresses("a:1, b:2").unwrap(), ["a:1", "b:2"]);
        for (list, wrong) in [("a:1,b", "\"b\""), ("", "\"\""), ("a:0", "a:0"), (":1", ":1")] {
            let message = addresses(list).unwrap_err().to_string();
            assert!(message.contains(wrong), "{message}");
        }
    }
}
