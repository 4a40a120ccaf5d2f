//! An inference engine without a model: the API, the KV cache and the KV events of vLLM or SGLang, in this process.
//!
//! It is what Signalbox is tested against where a real engine would take minutes to start. Its answers have the shapes
//! that a vLLM 0.32 was captured with, down to the order of members; its prefix cache, its eviction and its events follow
//! vLLM's code; what it "generates" depends on all tokens before and on nothing else. [`Faults`] break one thing at a
//! time.
//!
//! Real in it: tokenizer, chat template, paged prefix cache with LRU eviction, admission and waiting, prefill and decode
//! times, ZeroMQ events with replay, sequence numbers, cancelled requests. Made up: the tokens, log probabilities,
//! embeddings and scores.
//!
//! ```no_run
//! use signalbox_integration_tests::fake_engine::{EngineOptions, FakeEngine};
//!
//! # async fn two_engines() -> anyhow::Result<()> {
//! let mut engine = FakeEngine::start(EngineOptions::default()).await?;
//! println!("{}", engine.url());
//! engine.set_faults(|faults| faults.events_stopped = true);
//! engine.kill().await;
//! engine.restart().await?;
//! # Ok(())
//! # }
//! ```

mod adapters;
mod cache;
mod chat;
mod completions;
mod engine;
mod faults;
mod folder;
mod generation;
mod identity;
mod info;
mod log;
mod logprobs;
mod messages;
mod options;
mod payload;
mod phase;
mod pooling;
mod publisher;
mod request;
mod responses;
mod routes;
mod server;
mod sglang;
mod stream;
mod text;
mod tools;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context;
use parking_lot::Mutex;
use signalbox_tokenize::MessagePreparation;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::Instant};

pub use engine::SeenRequest;
pub use faults::{Faults, StreamFault, StreamFaultKind};
pub use folder::ModelFolder;
pub use options::{EngineOptions, Flavour};

use engine::Engine;
use phase::Phase;
use publisher::{EventPorts, Publisher};
use text::Text;

/// How long the port of an engine that has just ended is waited for.
const BINDING: Duration = Duration::from_secs(5);
/// Between two attempts to bind.
const BIND_EVERY: Duration = Duration::from_millis(20);

/// A fake engine. Dropping it kills it.
#[derive(Debug)]
pub struct FakeEngine {
    options: EngineOptions,
    faults: Arc<Mutex<Faults>>,
    address: SocketAddr,
    event_ports: Arc<[EventPorts]>,
    run: Run,
}

/// One run of the engine.
#[derive(Debug)]
struct Run {
    engine: Arc<Engine>,
    phase: watch::Sender<Phase>,
    tasks: Vec<JoinHandle<()>>,
}

impl FakeEngine {
    /// Starts an engine on free ports of the loopback interface. It answers when this returns.
    ///
    /// # Errors
    /// The tokenizer cannot be loaded, or a port cannot be bound.
    pub async fn start(options: EngineOptions) -> anyhow::Result<Self> {
        let faults = Arc::default();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (run, address, event_ports) = Run::start(&options, &faults, any, &[]).await?;
        Ok(Self {
            options,
            faults,
            address,
            event_ports,
            run,
        })
    }

    /// `http://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The name that `runtime up` gives the worker of this engine.
    pub fn worker_name(&self) -> String {
        format!("127-0-0-1-{}", self.address.port())
    }

    /// The settings.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// The endpoints of live events and of replay of rank 0, for subscribers on this machine.
    pub fn event_endpoints(&self) -> Option<(String, Option<String>)> {
        let ports = self.event_ports.first()?;
        let local = |port: u16| format!("tcp://127.0.0.1:{port}");
        Some((local(ports.live), ports.replay.map(local)))
    }

    /// Breaks or mends something.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults.lock());
    }

    /// The last requests with a body that reached the engine, oldest first.
    pub fn seen(&self) -> Vec<SeenRequest> {
        self.run.engine.seen()
    }

    /// Different KV blocks that requests would find, on all ranks.
    pub fn held_blocks(&self) -> usize {
        self.run.engine.ranks.iter().map(|rank| rank.held_blocks()).sum()
    }

    /// Requests that run or wait.
    pub fn requests(&self) -> u32 {
        let ranks = self.run.engine.ranks.iter();
        ranks
            .map(|rank| rank.running.load(Ordering::Relaxed) + rank.waiting.load(Ordering::Relaxed))
            .sum()
    }

    /// The number of the next batch of events of rank 0.
    pub fn next_batch(&self) -> u64 {
        *self.run.engine.ranks[0].log.watch().borrow()
    }

    /// Ends it as SIGKILL does: all connections are reset, and the cache is gone. Returns once its ports are free.
    pub async fn kill(&mut self) {
        self.run.end().await;
    }

    /// Ends it as SIGTERM ends a vLLM without `--shutdown-timeout`: new connections are refused, and open streams hang
    /// until their client closes them. [`Self::kill`] ends those too.
    pub fn terminate(&self) {
        self.run.phase.send_replace(Phase::Terminated);
    }

    /// Starts it again on the same ports, with an empty cache and events from number 0 on.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.run.end().await;
        let (run, _, _) = Run::start(&self.options, &self.faults, self.address, &self.event_ports).await?;
        self.run = run;
        Ok(())
    }

    /// As [`Self::restart`], with other settings: another model at the same address.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn restart_as(&mut self, options: EngineOptions) -> anyhow::Result<()> {
        self.options = options;
        self.restart().await
    }
}

impl Run {
    async fn start(
        options: &EngineOptions,
        faults: &Arc<Mutex<Faults>>,
        address: SocketAddr,
        earlier: &[EventPorts],
    ) -> anyhow::Result<(Self, SocketAddr, Arc<[EventPorts]>)> {
        let phase = watch::Sender::new(Phase::Serving);
        let preparation = match options.flavour {
            Flavour::Vllm => MessagePreparation::Vllm,
            Flavour::Sglang => MessagePreparation::Sglang,
        };
        let text = Text::load(&options.artifacts.clone().with_preparation(preparation))?;
        let engine = Arc::new(Engine::new(
            options.clone(),
            text,
            faults.clone(),
            phase.subscribe(),
        ));
        let listener = listen(address).await?;
        let address = listener.local_addr()?;
        let (mut ports, mut tasks) = (Vec::new(), Vec::new());
        if options.events {
            for (number, rank) in engine.ranks.iter().enumerate() {
                let publisher = Publisher::bind(earlier.get(number).copied(), options.replay).await?;
                ports.push(publisher.ports());
                tasks.push(tokio::spawn(publisher.run(rank.log.clone(), phase.subscribe())));
            }
        }
        let ports: Arc<[EventPorts]> = ports.into();
        tasks.push(tokio::spawn(server::serve(
            listener,
            engine.clone(),
            ports.clone(),
            phase.subscribe(),
        )));
        let run = Self { engine, phase, tasks };
        Ok((run, address, ports))
    }

    async fn end(&mut self) {
        self.phase.send_replace(Phase::Dead);
        for task in self.tasks.drain(..) {
            // A task that panicked has printed why.
            let _ = task.await;
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Dead);
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let began = Instant::now();
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) if began.elapsed() > BINDING => {
                return Err(error).with_context(|| format!("cannot listen on {address}"));
            }
            Err(_) => tokio::time::sleep(BIND_EVERY).await,
        }
    }
}
