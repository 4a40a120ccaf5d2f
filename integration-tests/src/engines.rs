//! `runtime up` in front of fake engines.

use anyhow::Context;
use serde_json::{Value, json};

use crate::{
    Cluster, eventually,
    fake_engine::{EngineOptions, FakeEngine, ModelFolder},
};

/// Fake engines that load their tokenizer from one folder, and a router with an adapter for each of them, which find
/// the tokenizer there too.
#[derive(Debug)]
pub struct NextDoor {
    /// The engines.
    pub engines: Vec<FakeEngine>,
    /// `runtime up --upstream …`.
    pub cluster: Cluster,
    /// What `/v1/models` of the engines names as the model's root.
    pub folder: ModelFolder,
}

impl NextDoor {
    /// Starts engines with these settings, but for the tokenizer, and `runtime up` in front of them. Returns once it is
    /// ready.
    pub async fn start(options: &[EngineOptions]) -> anyhow::Result<Self> {
        Self::start_with(options, &[]).await
    }

    /// As [`Self::start`], with more arguments of `runtime up`.
    pub async fn start_with(options: &[EngineOptions], arguments: &[&str]) -> anyhow::Result<Self> {
        let folder = ModelFolder::new()?;
        let mut engines = Vec::new();
        for options in options {
            engines.push(FakeEngine::start(folder.serve(options.clone())?).await?);
        }
        Self::in_front_of(engines, folder, arguments).await
    }

    /// Starts `runtime up` in front of engines that were started before.
    pub async fn in_front_of(
        engines: Vec<FakeEngine>,
        folder: ModelFolder,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let upstreams: Vec<String> = engines
            .iter()
            .map(|engine| format!("--upstream={}", engine.url()))
            .collect();
        let upstreams: Vec<&str> = upstreams.iter().map(String::as_str).collect();
        let cluster = Cluster::up(&[upstreams.as_slice(), arguments].concat()).await?;
        Ok(Self {
            engines,
            cluster,
            folder,
        })
    }

    /// The name of the worker of engine `number`.
    pub fn worker(&self, number: usize) -> String {
        self.engines[number].worker_name()
    }

    /// The number of the engine whose worker has this name.
    pub fn engine_of(&self, worker: &str) -> anyhow::Result<usize> {
        let found = self
            .engines
            .iter()
            .position(|engine| engine.worker_name() == worker);
        found.with_context(|| format!("no engine has the worker {worker:?}"))
    }

    /// What the router shows of the worker of engine `number`; null while it has no such worker.
    pub async fn worker_view(&self, number: usize) -> anyhow::Result<Value> {
        let name = self.worker(number);
        let workers = self.cluster.workers().await?;
        let found = workers.into_iter().find(|worker| worker["card"]["id"] == name);
        Ok(found.unwrap_or_default())
    }

    /// The parity of engine `number`, as the router shows it: state and cause. Both are empty without the worker.
    pub async fn parity(&self, number: usize) -> anyhow::Result<(String, String)> {
        let kv = self.worker_view(number).await?["kv"].clone();
        let text = |name: &str| kv[name].as_str().unwrap_or_default().to_owned();
        Ok((text("state"), text("cause")))
    }

    /// Waits until the router shows engine `number` in this state of parity; returns the cause.
    pub async fn reaches(&self, number: usize, state: &str) -> anyhow::Result<String> {
        let last = std::cell::RefCell::default();
        eventually(&format!("engine {number} is {state}"), || async {
            let (found, cause) = self.parity(number).await?;
            last.replace(format!("{found}: {cause}"));
            Ok((found == state).then_some(cause))
        })
        .await
        .with_context(|| format!("{}\n{}", last.borrow(), self.cluster.process.output()))
    }

    /// A chat about `content`.
    pub fn chat(&self, content: &str) -> Value {
        json!({
            "model": self.cluster.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 8,
            "ignore_eos": true,
        })
    }

    /// Waits until the index holds as many blocks of each engine as the engine holds.
    pub async fn indexed(&self) -> anyhow::Result<()> {
        eventually("the index holds what the engines hold", || async {
            let index = self.cluster.index().await?;
            let is_equal = self.engines.iter().all(|engine| {
                let blocks = &index["workers"][engine.worker_name()]["blocks"];
                blocks.as_u64().unwrap_or(0) == engine.held_blocks() as u64
            });
            Ok(is_equal.then_some(()))
        })
        .await
        .with_context(|| self.cluster.process.output())
    }
}
