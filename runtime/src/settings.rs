//! What a process is set to do, as plain values.
//!
//! Settings are made once from the parsed command line, in [`from_options`], which refuses whatever cannot be right.
//! All other code takes settings, never options.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use signalbox_discovery::EtcdConfig;
use signalbox_http::HttpConfig;
use signalbox_nats::NatsConfig;
use signalbox_protocol::{WorkerId, WorkerRole};
use signalbox_router::{BreakerConfig, TokenTimeouts};
use signalbox_worker::hub::HubConfig;

mod doctor;
mod from_options;
mod worker_name;

pub(crate) use doctor::{DoctorSettings, EngineExam};

/// What is logged to standard error.
#[derive(Debug, Clone)]
pub(crate) struct LogSettings {
    /// A level or `tracing` directives.
    pub(crate) filter: String,
    /// A JSON document per line.
    pub(crate) json: bool,
}

/// `runtime up`: a router, and workers as child processes.
#[derive(Debug)]
pub(crate) struct UpSettings {
    pub(crate) router: RouterSettings,
    pub(crate) workers: UpWorkers,
}

/// The workers of `runtime up`.
#[derive(Debug)]
pub(crate) enum UpWorkers {
    /// Some that all run the same engine of this binary.
    Alike {
        number: u16,
        engine: Box<EngineSettings>,
        /// The engine was chosen by the user; otherwise it is the best one of this binary.
        is_engine_chosen: bool,
    },
    /// One for each engine that runs already, under the names that the addresses give.
    NextDoor(Vec<(WorkerId, EngineSettings)>),
}

/// A router process.
#[derive(Debug)]
pub(crate) struct RouterSettings {
    /// The router's name; each incarnation adds a number.
    pub(crate) router_id: String,
    pub(crate) planes: PlaneSettings,
    /// Routers report to each other what they have in flight; only over NATS.
    pub(crate) replica_sync: bool,
    pub(crate) http: HttpConfig,
    /// Most connections of clients; `None` for as many as threads and files allow.
    pub(crate) max_connections: Option<usize>,
    /// Most connections from one address: 0 for no limit, `None` for half of all.
    pub(crate) max_connections_per_address: Option<usize>,
    /// The policy that decides until another one is activated.
    pub(crate) policy: String,
    /// A folder that keeps policies over restarts; `None` if NATS keeps them, or nothing does.
    pub(crate) policy_dir: Option<PathBuf>,
    /// A file for the audit log of policies.
    pub(crate) audit_log: Option<PathBuf>,
    /// Where decisions go beside the admin API.
    pub(crate) decisions: DecisionSettings,
    /// Bound on the KV index's memory.
    pub(crate) index_bytes: usize,
    /// When workers that fail get no requests.
    pub(crate) breakers: BreakerConfig,
    /// How long requests wait for tokens of a worker that may be stuck.
    pub(crate) token_timeouts: TokenTimeouts,
    /// How long requests under way may take to end once the process is stopped.
    pub(crate) grace: Duration,
}

/// Which decisions leave a router, and where to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DecisionSettings {
    /// A file, and the most bytes of it and its predecessor; `None` for none.
    pub(crate) file: Option<(PathBuf, u64)>,
    /// They are published to NATS.
    pub(crate) publishes: bool,
    /// The share of decisions, from 0 to 1.
    pub(crate) share: f64,
}

/// A worker process. Serialised, it is what `runtime up` sends to a child.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WorkerSettings {
    /// The process's name for people and for NATS.
    pub(crate) name: WorkerId,
    /// The workers of this process: one, or several simulated ones.
    pub(crate) workers: Vec<WorkerPlace>,
    /// The host that routers dial, if it is not the one listened on.
    pub(crate) advertise_host: Option<String>,
    /// Where `/metrics`, `/live` and `/ready` are served; `None` for nowhere.
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) role: WorkerRole,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) engine: EngineSettings,
    /// Requests arrive over NATS instead of connections of the routers.
    pub(crate) requests_over_nats: bool,
    /// Not sent to a child: its parent finds it by its address and no server is involved, so no secret is sent either.
    #[serde(skip)]
    pub(crate) planes: PlaneSettings,
    /// How long requests under way may take to end once the process is stopped.
    pub(crate) grace: Duration,
}

/// A worker's name and the address where it serves routers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerPlace {
    pub(crate) id: WorkerId,
    /// Port 0 takes a free one.
    pub(crate) listen: SocketAddr,
}

impl WorkerSettings {
    /// A worker of `runtime up`: on loopback, without any server.
    pub(crate) fn of_child(name: WorkerId, engine: EngineSettings, grace: Duration) -> Self {
        Self {
            workers: vec![WorkerPlace {
                id: name.clone(),
                listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            }],
            name,
            advertise_host: None,
            metrics: None,
            role: WorkerRole::Aggregated,
            labels: BTreeMap::new(),
            engine,
            requests_over_nats: false,
            planes: PlaneSettings::default(),
            grace,
        }
    }
}

/// What computes the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EngineKind {
    /// A GGUF model, computed by llama.cpp in the worker's process.
    Llama,
    /// A simulated GPU.
    Sim,
    /// An engine that runs already and speaks the OpenAI API.
    Openai,
}

/// An engine and its model. Where a number is `None`, the engine's own default counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EngineSettings {
    pub(crate) kind: EngineKind,
    /// A GGUF file; `None` for the default model, or for none at the simulated engine.
    pub(crate) model: Option<PathBuf>,
    /// The name that clients use; `None` for the file's name without its quantisation.
    pub(crate) model_name: Option<String>,
    /// Tokens per KV block.
    pub(crate) block_size: Option<u32>,
    /// Tokens that the KV cache holds.
    pub(crate) kv_tokens: Option<u32>,
    /// Sequences decoded at once.
    pub(crate) max_sequences: Option<u32>,
    /// llama: threads that compute.
    pub(crate) threads: Option<u32>,
    /// sim and openai: a folder with a Hugging Face tokenizer.
    pub(crate) tokenizer: Option<PathBuf>,
    /// sim: how many times as fast as the simulated GPU; 0 for no waiting.
    pub(crate) speedup: f64,
    /// sim: the seed of the generated tokens.
    pub(crate) seed: u64,
    /// sim: the token at which the process aborts, for tests.
    pub(crate) fatal_token: Option<u32>,
    /// openai: the engine that runs already. Always there for it, and never for another engine.
    pub(crate) upstream: Option<UpstreamSettings>,
}

/// An engine that runs already.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct UpstreamSettings {
    /// `http://host:port` or `https://host:port`, checked.
    pub(crate) url: String,
    /// Its API key.
    pub(crate) key: Option<String>,
    /// A file of certificate authorities (PEM) to trust beside the machine's.
    pub(crate) ca: Option<PathBuf>,
    /// `tcp://host:port` of its KV events, instead of what it states.
    pub(crate) kv_events: Option<String>,
    /// `tcp://host:port` of its replays, instead of what it states.
    pub(crate) kv_replay: Option<String>,
    /// Most tokens of prompt and answer together, instead of what it states.
    pub(crate) context_length: Option<u32>,
    /// The cache of the Hugging Face hub; `None` if this user has no home folder.
    pub(crate) hub_cache: Option<PathBuf>,
    /// Where a tokenizer that is not on this machine is fetched; `None` for nowhere.
    pub(crate) hub: Option<HubConfig>,
}

impl std::fmt::Debug for UpstreamSettings {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamSettings")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// Tokens per KV block of the engines of this binary, if the user gives no number.
pub(crate) const DEFAULT_BLOCK_SIZE: u32 = 16;

/// What carries membership and events. The default is a process without servers.
#[derive(Debug, Clone)]
pub(crate) struct PlaneSettings {
    /// Separates clusters that share NATS and etcd.
    pub(crate) namespace: String,
    /// `host:port` of each worker that is known by address.
    pub(crate) static_workers: Vec<String>,
    /// Where workers and routers register.
    pub(crate) etcd: Option<EtcdConfig>,
    /// What carries events between processes; `None`: each worker's own connection to each router.
    pub(crate) nats: Option<NatsSettings>,
}

/// A NATS cluster and what is kept there.
#[derive(Debug, Clone)]
pub(crate) struct NatsSettings {
    pub(crate) connection: NatsConfig,
    /// The number of servers that keep a copy of events and policies; `None` leaves it as it is.
    pub(crate) replicas: Option<usize>,
}

impl Default for PlaneSettings {
    fn default() -> Self {
        Self {
            namespace: "default".into(),
            static_workers: Vec::new(),
            etcd: None,
            nats: None,
        }
    }
}
