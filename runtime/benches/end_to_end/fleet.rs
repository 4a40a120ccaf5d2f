//! What is measured: our router in front of simulated workers, and peers that already run.

use std::path::PathBuf;

use signalbox_integration_tests::{Cluster, Worker, fleet::follows, workspace_root};

use crate::proc::Watched;

/// The model name that the workers serve, equal to that of the peers' mock workers.
pub(crate) const MODEL: &str = "mock";

/// A running router.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) process: Watched,
    pub(crate) model: String,
}

/// Our router, and the process of its workers.
pub(crate) struct Fleet {
    pub(crate) router: Cluster,
    pub(crate) addresses: Vec<String>,
    _workers: Worker,
}

/// The tokenizer that `make bench` fetches; `None` if it is missing, then workers use a tokenizer with a token per byte.
pub(crate) fn tokenizer() -> Option<PathBuf> {
    Some(workspace_root().join(".local/tokenizers/qwen3")).filter(|folder| folder.is_dir())
}

impl Fleet {
    /// Starts a router and `workers` workers, which are `speedup` times as fast as the simulated GPU; 0: without waiting.
    pub(crate) async fn start(workers: usize, speedup: f64) -> anyhow::Result<Self> {
        Self::start_with(workers, speedup, &[], &[]).await
    }

    /// Like [`start`](Self::start), with additional options.
    pub(crate) async fn start_with(
        workers: usize,
        speedup: f64,
        of_workers: &[&str],
        of_router: &[&str],
    ) -> anyhow::Result<Self> {
        let mut options = vec![
            format!("--sim-workers={workers}"),
            format!("--model-name={MODEL}"),
            format!("--speedup={speedup}"),
        ];
        options.extend(tokenizer().map(|folder| format!("--tokenizer={}", folder.display())));
        options.extend(of_workers.iter().map(|option| (*option).to_owned()));
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let worker = Worker::sim("w", &options).await?;
        let addresses: Vec<String> = worker.address.split(',').map(str::to_owned).collect();
        let discovery = format!("--discovery=static://{}", worker.address);
        let router = Cluster::serve_with(&[&[discovery.as_str()], of_router].concat()).await?;
        follows(&router, workers).await?;
        Ok(Self {
            router,
            addresses,
            _workers: worker,
        })
    }

    pub(crate) fn target(&self) -> Target {
        Target {
            name: "signalbox".to_owned(),
            url: self.router.api.base().to_owned(),
            process: Watched(self.router.process.pid()),
            model: MODEL.to_owned(),
        }
    }
}
