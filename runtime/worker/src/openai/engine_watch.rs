//! Polls an engine once a second: whether it still runs and is the same, its load, and its LoRA adapters.

use std::{sync::Arc, time::Duration};

use hyper::StatusCode;
use signalbox_protocol::LoraAdapter;
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    engine_phase::{EnginePhase, Poll, PollHistory},
    facts::{EngineFlavour, StartTime},
    load::{self, EngineLoad},
    probe::{FoundEngine, ModelList},
    prometheus,
    upstream::{Upstream, UpstreamError},
};

/// Time between two polls. Load that is older than a second misleads a router that has several.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// Polls between two looks at the models. A base model is not replaced without a restart, which shows sooner where an
/// engine states its start. LoRA adapters come and go while it runs, by hand of its operator: 10 s are soon enough.
const MODELS_EVERY: u32 = 10;

/// Polls one engine until it is dropped.
#[derive(Debug)]
pub(crate) struct EngineWatch {
    phase: watch::Receiver<EnginePhase>,
    loads: watch::Receiver<Arc<[Option<EngineLoad>]>>,
    adapters: watch::Receiver<Arc<[LoraAdapter]>>,
    task: AbortHandle,
}

impl EngineWatch {
    /// Watches an engine that was just found. Needs a tokio runtime.
    pub(crate) fn start(upstream: Upstream, found: &FoundEngine) -> Self {
        let (phase_sender, phase) = watch::channel(EnginePhase::Up);
        let (load_sender, loads) = watch::channel(Arc::from([]));
        let (adapter_sender, adapters) = watch::channel(Arc::from(found.facts.adapters.as_slice()));
        let poller = Poller {
            upstream,
            health_route: found.health_route,
            flavour: found.facts.flavour,
            ranks: found.facts.ranks,
            model: found.served_model.clone(),
            history: PollHistory::new(found.facts.started_at),
            phase: phase_sender,
            loads: load_sender,
            adapters: adapter_sender,
        };
        let task = tokio::spawn(poller.run()).abort_handle();
        Self {
            phase,
            loads,
            adapters,
            task,
        }
    }

    /// Whether the engine runs.
    pub(crate) fn phase(&self) -> watch::Receiver<EnginePhase> {
        self.phase.clone()
    }

    /// The load of each rank as last reported; empty before the first report.
    pub(crate) fn loads(&self) -> watch::Receiver<Arc<[Option<EngineLoad>]>> {
        self.loads.clone()
    }

    /// The LoRA adapters that the engine listed last.
    pub(crate) fn adapters(&self) -> watch::Receiver<Arc<[LoraAdapter]>> {
        self.adapters.clone()
    }
}

impl Drop for EngineWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Poller {
    upstream: Upstream,
    health_route: &'static str,
    flavour: EngineFlavour,
    ranks: u32,
    /// The engine's own name of the model.
    model: String,
    history: PollHistory,
    phase: watch::Sender<EnginePhase>,
    loads: watch::Sender<Arc<[Option<EngineLoad>]>>,
    adapters: watch::Sender<Arc<[LoraAdapter]>>,
}

impl Poller {
    /// Ends when the engine is gone.
    async fn run(mut self) {
        let mut ticks = interval(POLL_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut polls = 0_u32;
        loop {
            ticks.tick().await;
            polls = polls.wrapping_add(1);
            let poll = self.poll(polls.is_multiple_of(MODELS_EVERY)).await;
            let phase = self.history.take(poll, Instant::now());
            let is_gone = matches!(phase, EnginePhase::Gone(_));
            self.phase.send_if_modified(|last| {
                let is_new = *last != phase;
                *last = phase;
                is_new
            });
            if is_gone {
                return;
            }
        }
    }

    async fn poll(&self, looks_at_models: bool) -> Poll {
        match self.upstream.get(self.health_route).await {
            Ok(answer) if answer.status.is_success() => {}
            // An engine that requires a key for its models is healthy.
            Ok(answer) if matches!(answer.status.as_u16(), 401 | 403) => {}
            Ok(answer) => return Poll::Unhealthy(answer.status.as_u16()),
            Err(UpstreamError::TimedOut(..)) => return Poll::Silent,
            Err(_) => return Poll::Refused,
        }
        if looks_at_models
            && let Ok(answer) = self.upstream.get("/v1/models").await
            && let Some(models) = ModelList::parse(&answer.body)
        {
            if models.base.id != self.model {
                return Poll::OtherModel(models.base.id);
            }
            self.take_adapters(&models.adapters);
        }
        Poll::Healthy(self.look_at_load().await)
    }

    fn take_adapters(&self, listed: &[LoraAdapter]) {
        self.adapters.send_if_modified(|last| {
            let is_new = **last != *listed;
            if is_new {
                *last = listed.into();
                let names: Vec<&str> = last.iter().map(|adapter| adapter.name.as_str()).collect();
                tracing::info!(adapters = names.join(", "), "the engine's LoRA adapters changed");
            }
            is_new
        });
    }

    /// Publishes the engine's load. Returns when the engine started, if the same answer states it.
    async fn look_at_load(&self) -> Option<StartTime> {
        let ranks = 0..self.ranks;
        match self.flavour {
            EngineFlavour::Vllm => {
                let metrics = self.text("/metrics").await?;
                let loads = ranks.map(|rank| load::from_vllm_metrics(&metrics, rank));
                self.loads.send_replace(loads.collect());
                prometheus::value(&metrics, "process_start_time_seconds").and_then(StartTime::from_seconds)
            }
            EngineFlavour::Sglang => {
                let json = self.text("/v1/loads?include=core").await?;
                let loads = ranks.map(|rank| load::from_sglang_loads(json.as_bytes(), rank));
                self.loads.send_replace(loads.collect());
                let metrics = self.text("/metrics").await?;
                prometheus::value(&metrics, "process_start_time_seconds").and_then(StartTime::from_seconds)
            }
            EngineFlavour::OpenAi => None,
        }
    }

    async fn text(&self, path: &str) -> Option<String> {
        let answer = self.upstream.get(path).await.ok()?;
        (answer.status == StatusCode::OK).then(|| String::from_utf8_lossy(&answer.body).into_owned())
    }
}
