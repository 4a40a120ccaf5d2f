//! Several routers and workers on a real NATS and a real etcd.

use std::{cell::RefCell, collections::BTreeMap};

use anyhow::Context;
use signalbox_test_servers::{EtcdServer, NatsServer};

use crate::{Cluster, Worker, eventually};

/// Short, so that a lease ends within a test. Still several times longer than a loaded machine delays a keep-alive.
const LEASE_S: u32 = 3;

/// The servers of a cluster, which end when this is dropped.
#[derive(Debug)]
pub struct Fleet {
    /// Carries events, replica sync and policies.
    pub nats: NatsServer,
    /// Carries discovery.
    pub etcd: EtcdServer,
}

/// Epoch, blocks and digest of each worker in a router's index.
pub type IndexDigests = BTreeMap<String, (u64, u64, String)>;

impl Fleet {
    /// Starts both servers.
    pub fn start() -> Self {
        Self {
            nats: NatsServer::started(),
            etcd: EtcdServer::started(),
        }
    }

    /// The options that routers and workers have in common.
    pub fn options(&self) -> Vec<String> {
        vec![
            format!("--events={}", self.nats.url()),
            format!("--discovery={}", self.etcd.url()),
            format!("--lease-s={LEASE_S}"),
        ]
    }

    /// Starts `runtime serve`; returns once it listens, with or without workers.
    pub async fn router(&self, arguments: &[&str]) -> anyhow::Result<Cluster> {
        let options = self.options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        Cluster::router(&[&["serve"], options.as_slice(), arguments].concat()).await
    }

    /// Like [`router`](Self::router); returns once it routes to that many workers and follows their KV caches.
    pub async fn router_of(&self, workers: usize, arguments: &[&str]) -> anyhow::Result<Cluster> {
        let router = self.router(arguments).await?;
        follows(&router, workers).await?;
        router.named().await
    }

    /// Starts `runtime worker --engine sim` with this name.
    pub async fn worker(&self, id: &str, arguments: &[&str]) -> anyhow::Result<Worker> {
        let options = self.options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        Worker::sim(id, &[options.as_slice(), arguments].concat()).await
    }
}

/// Waits until the router has exactly that many workers, all ready, and follows their KV caches.
pub async fn follows(router: &Cluster, workers: usize) -> anyhow::Result<()> {
    eventually(&format!("the router follows {workers} workers"), || async {
        let known = router.workers().await?;
        let ready = known
            .iter()
            .filter(|worker| worker["state"] == "ready" && worker["kv_events"] == "following");
        Ok((known.len() == workers && ready.count() == workers).then_some(()))
    })
    .await
    .with_context(|| router.process.output())
}

/// Reads what the router's index holds of each worker.
pub async fn index_digests(router: &Cluster) -> anyhow::Result<IndexDigests> {
    let index = router.index().await?;
    let workers = index["workers"]
        .as_object()
        .with_context(|| format!("no workers in {index}"))?;
    let figures = workers.iter().map(|(id, worker)| {
        let number = |name: &str| worker[name].as_u64().unwrap_or_default();
        let digest = worker["digest"].as_str().unwrap_or_default();
        (id.clone(), (number("epoch"), number("blocks"), digest.to_owned()))
    });
    Ok(figures.collect())
}

/// Waits until the indexes of all these routers are equal; returns their content.
pub async fn same_index(routers: &[&Cluster]) -> anyhow::Result<IndexDigests> {
    let last = RefCell::default();
    eventually("the indexes of all routers are equal", || async {
        let mut all = Vec::new();
        for router in routers {
            all.push(index_digests(router).await?);
        }
        let first = all.first().cloned().unwrap_or_default();
        let is_settled = all.iter().all(|digests| *digests == first);
        last.replace(all);
        Ok((is_settled && !first.is_empty()).then_some(first))
    })
    .await
    .with_context(|| {
        format!(
            "the indexes hold {:?}\n{}",
            last.borrow(),
            routers[0].process.output()
        )
    })
}
