//! The binary as a user starts it: `up`, or workers and a router separately.

use anyhow::Context;
use serde_json::Value;

use crate::{
    Api, Metrics, eventually,
    process::{Process, ProcessId},
};

/// A router on free ports, with or without child workers.
#[derive(Debug)]
pub struct Cluster {
    /// The OpenAI API.
    pub api: Api,
    /// The admin API and the metrics.
    pub admin: Api,
    /// The name of the served model.
    pub model: String,
    /// The router's process.
    pub process: Process,
}

/// A worker started separately.
#[derive(Debug)]
pub struct Worker {
    /// `host:port` of its request plane.
    pub address: String,
    /// Its process.
    pub process: Process,
}

impl Cluster {
    /// Starts `runtime up --engine sim` with additional arguments; returns once it is ready.
    pub async fn sim(arguments: &[&str]) -> anyhow::Result<Self> {
        Self::up(&[&["--engine=sim"], arguments].concat()).await
    }

    /// Starts `runtime up` with additional arguments; returns once it is ready.
    pub async fn up(arguments: &[&str]) -> anyhow::Result<Self> {
        let cluster = Self::router(&[&["up"], arguments].concat()).await?;
        cluster.process.line("ready ").await?;
        cluster.named().await
    }

    /// Starts `runtime serve` in front of these workers; returns once all of them are ready.
    pub async fn serve(workers: &[&Worker], arguments: &[&str]) -> anyhow::Result<Self> {
        let addresses: Vec<&str> = workers.iter().map(|worker| worker.address.as_str()).collect();
        let discovery = format!("--discovery=static://{}", addresses.join(","));
        let cluster = Self::router(&[&["serve", &discovery], arguments].concat()).await?;
        eventually("all workers are ready", || async {
            let states = cluster.workers().await?;
            let ready = states.iter().filter(|worker| worker["state"] == "ready").count();
            Ok((ready == workers.len()).then_some(()))
        })
        .await
        .with_context(|| cluster.process.output())?;
        cluster.named().await
    }

    /// Starts `runtime serve` on free ports with these arguments; returns once it listens, with or without workers.
    pub async fn serve_with(arguments: &[&str]) -> anyhow::Result<Self> {
        Self::router(&[&["serve"], arguments].concat()).await
    }

    pub(crate) async fn router(arguments: &[&str]) -> anyhow::Result<Self> {
        let free_ports = ["--http=127.0.0.1:0", "--admin=127.0.0.1:0"];
        let process = Process::start(&[arguments, &free_ports].concat())?;
        let api = Api::new(&process.line("OpenAI API ").await?)?;
        let admin = Api::new(&process.line("admin API ").await?)?;
        Ok(Self {
            api,
            admin,
            model: String::new(),
            process,
        })
    }

    /// Sets the served model, for routers that find their workers after their start.
    pub async fn named(mut self) -> anyhow::Result<Self> {
        let models = self.api.get("/v1/models").await?.json()?;
        self.model = models["data"][0]["id"]
            .as_str()
            .with_context(|| format!("no model in {models}"))?
            .to_owned();
        Ok(self)
    }

    /// The workers in `/admin/v1/workers`.
    pub async fn workers(&self) -> anyhow::Result<Vec<Value>> {
        let body = self.admin.get("/admin/v1/workers").await?.json()?;
        Ok(body["workers"]
            .as_array()
            .with_context(|| format!("no workers in {body}"))?
            .clone())
    }

    /// `/admin/v1/index`.
    pub async fn index(&self) -> anyhow::Result<Value> {
        self.admin.get("/admin/v1/index").await?.json()
    }

    /// `/metrics`.
    pub async fn metrics(&self) -> anyhow::Result<Metrics> {
        Metrics::parse(&self.admin.get("/metrics").await?.text())
    }

    /// Waits until this router counts no request and no load on any worker: every reservation was released exactly
    /// once.
    pub async fn idle(&self) -> anyhow::Result<()> {
        let figures = ["requests", "active_prefill_tokens", "active_decode_blocks"];
        eventually("no request is counted on any worker", || async {
            let workers = self.workers().await?;
            let idle = workers
                .iter()
                .all(|worker| figures.iter().all(|figure| worker[figure] == 0));
            Ok(idle.then_some(()))
        })
        .await
    }

    /// Activates a policy, which decides from the next request on; returns its `name@version`.
    pub async fn activate(&self, policy: &str) -> anyhow::Result<String> {
        let path = format!("/admin/v1/models/{}/policy", self.model);
        let reply = self
            .admin
            .put(&path, &serde_json::json!({"policy": policy}))
            .await?;
        anyhow::ensure!(
            reply.status == 200,
            "cannot activate {policy}: {} {}",
            reply.status,
            reply.text()
        );
        let active = reply.json()?["active"]["policy"].as_str().map(String::from);
        active.with_context(|| format!("no active policy in {}", reply.text()))
    }

    /// The process of a child worker.
    pub fn worker_process(&self, id: &str) -> anyhow::Result<ProcessId> {
        let has_name = |child: &&ProcessId| {
            let words = child.command_line();
            words.windows(2).any(|pair| pair[0] == "--child" && pair[1] == id)
        };
        let children = self.process.children();
        children
            .iter()
            .find(has_name)
            .copied()
            .with_context(|| format!("no child has the name {id}: {children:?}"))
    }
}

impl Worker {
    /// Starts `runtime worker --engine sim` with this name on a free port; returns once it takes requests.
    pub async fn sim(id: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::sim_at("127.0.0.1:0", id, arguments).await
    }

    /// Like [`sim`](Self::sim), at a given address.
    pub async fn sim_at(address: &str, id: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let own = ["worker", "--engine=sim", "--listen", address, "--id", id];
        let process = Process::start(&[&own, arguments].concat())?;
        let line = process.line(&format!("worker {id} serves ")).await?;
        let address = line.rsplit(' ').next().unwrap_or_default().to_owned();
        Ok(Self { address, process })
    }
}
