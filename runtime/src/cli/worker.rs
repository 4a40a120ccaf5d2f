//! Options of a worker: `runtime worker`, and the engines of `runtime up`.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};
use signalbox_protocol::{WorkerId, WorkerRole};
use signalbox_worker::openai::UpstreamUrl;

use super::{listen_address, planes::PlaneOptions};

#[derive(Debug, Args)]
pub(crate) struct WorkerOptions {
    /// A file of settings (TOML); see `runtime config example`.
    #[arg(long, env = "SIGNALBOX_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where to register: `etcd://host:port[,host:port…]`. Without it, routers need the address (`static://`).
    #[arg(long, env = "SIGNALBOX_DISCOVERY", value_name = "URL")]
    pub(crate) discovery: Option<String>,
    #[command(flatten)]
    pub(crate) planes: PlaneOptions,
    /// What carries requests to this worker.
    #[arg(long, env = "SIGNALBOX_REQUEST_PLANE", value_enum, default_value_t = RequestTransport::Tcp)]
    pub(crate) request_plane: RequestTransport,
    /// Address to serve routers at; port 0 takes a free one.
    #[arg(
        long,
        env = "SIGNALBOX_LISTEN",
        default_value = "127.0.0.1:7000",
        value_name = "ADDR",
        value_parser = listen_address
    )]
    pub(crate) listen: SocketAddr,
    /// Address to serve /metrics, /live and /ready at. Without it they are not served.
    #[arg(long, env = "SIGNALBOX_METRICS", value_name = "ADDR", value_parser = listen_address)]
    pub(crate) metrics: Option<SocketAddr>,
    /// The host that routers dial; needed if the worker listens on every address of the machine.
    #[arg(long, env = "SIGNALBOX_ADVERTISE_HOST", value_name = "HOST")]
    pub(crate) advertise_host: Option<String>,
    /// The worker's name, of its own in the fleet and stable over restarts: letters, digits, `-`, `_`. The default is made
    /// of the machine's name (or --advertise-host) and the port of --listen.
    #[arg(long, env = "SIGNALBOX_WORKER_ID", value_name = "NAME")]
    pub(crate) id: Option<WorkerId>,
    /// sim: number of workers to simulate in this process, named NAME-0, NAME-1 and so on, at consecutive ports.
    #[arg(long, env = "SIGNALBOX_SIM_WORKERS", default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4_096))]
    pub(crate) sim_workers: u16,
    /// The worker's role: aggregated, prefill or decode.
    #[arg(long, env = "SIGNALBOX_ROLE", default_value = "aggregated", value_parser = role, value_name = "ROLE")]
    pub(crate) role: WorkerRole,
    /// A label, `key=value`; can be given several times.
    #[arg(long = "label", value_parser = label, value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<(String, String)>,
    /// Seconds that requests under way may take to end after a stop signal.
    #[arg(long, env = "SIGNALBOX_GRACE_S", default_value_t = 30, value_name = "S", value_parser = clap::value_parser!(u32).range(0..=3_600))]
    pub(crate) grace_s: u32,
    /// Started by `runtime up` under this name: settings come on standard input, and options are ignored.
    #[arg(long, hide = true, value_name = "NAME")]
    pub(crate) child: Option<String>,
    #[command(flatten)]
    pub(crate) engine: EngineOptions,
}

/// What carries requests to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RequestTransport {
    /// Routers dial the worker.
    Tcp,
    /// Routers and the worker connect to NATS, for workers that routers cannot dial. Slower.
    Nats,
}

/// Options of an engine and its model.
#[derive(Debug, Clone, Args)]
pub(crate) struct EngineOptions {
    /// What computes the tokens. The default is openai with --upstream; without it llama if this binary has it, else
    /// sim.
    #[arg(long, env = "SIGNALBOX_ENGINE", value_enum)]
    pub(crate) engine: Option<EngineChoice>,
    #[command(flatten)]
    pub(crate) upstream: UpstreamOptions,
    /// The model, a GGUF file.
    #[arg(long, env = "SIGNALBOX_MODEL", value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// The model name that clients use. The default is the file's name without the quantisation, or the name at the
    /// engine of --upstream.
    #[arg(long, env = "SIGNALBOX_MODEL_NAME", value_name = "NAME")]
    pub(crate) model_name: Option<String>,
    /// Tokens per KV block. The default is 16, or what the engine of --upstream states.
    #[arg(long, env = "SIGNALBOX_BLOCK_SIZE", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) block_size: Option<u32>,
    /// Tokens that the KV cache holds.
    #[arg(long, env = "SIGNALBOX_KV_TOKENS", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(64..))]
    pub(crate) kv_tokens: Option<u32>,
    /// Sequences decoded at once.
    #[arg(long, env = "SIGNALBOX_MAX_SEQUENCES", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub(crate) max_sequences: Option<u32>,
    /// llama: threads that compute. The default leaves one core in eight, and at least one, to the rest of the machine; of
    /// `runtime up`, all workers together. Threads wait for each other at every step, so they need cores that are free.
    #[arg(long, env = "SIGNALBOX_ENGINE_THREADS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    /// sim and openai: a folder with the model's Hugging Face tokenizer. The default is the model's own tokenizer if it
    /// is found on this machine, for openai also at the Hugging Face hub; without one, sim has a token for each byte, and
    /// openai routes without KV events.
    #[arg(long, env = "SIGNALBOX_TOKENIZER", value_name = "PATH")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// sim: how many times as fast as the simulated GPU; 0 for no waiting at all.
    #[arg(long, env = "SIGNALBOX_SPEEDUP", default_value_t = 1.0, value_name = "FACTOR", allow_negative_numbers = true, value_parser = speedup)]
    pub(crate) speedup: f64,
    /// sim: seed of the random tokens.
    #[arg(long, env = "SIGNALBOX_SEED", default_value_t = 0, value_name = "N")]
    pub(crate) seed: u64,
    /// sim: abort when a prompt has this token, to test what routers do about a prompt that kills workers.
    #[arg(long, hide = true, value_name = "TOKEN")]
    pub(crate) fatal_token: Option<u32>,
}

/// Options of an engine that runs next door.
#[derive(Clone, Args)]
pub(crate) struct UpstreamOptions {
    /// The address of an engine that runs already (vLLM, SGLang or another OpenAI-compatible server):
    /// `http://host:port` or `https://host:port`. `runtime up` takes several, in the environment separated by spaces.
    #[arg(long, env = "SIGNALBOX_UPSTREAM", value_name = "URL", value_delimiter = ' ')]
    pub(crate) upstream: Vec<UpstreamUrl>,
    /// openai: the engine's API key.
    #[arg(
        long,
        env = "SIGNALBOX_UPSTREAM_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub(crate) upstream_key: Option<String>,
    /// openai: certificate authorities (PEM) to trust beside the machine's, for an engine at `https://`.
    #[arg(long, env = "SIGNALBOX_UPSTREAM_CA", value_name = "FILE")]
    pub(crate) upstream_ca: Option<PathBuf>,
    /// openai: where the engine publishes KV events, `tcp://host:port`, if it does not state that itself. Each further
    /// data-parallel rank has the next port.
    #[arg(long, env = "SIGNALBOX_KV_EVENTS", value_name = "ADDR", value_parser = zmq_address)]
    pub(crate) kv_events: Option<String>,
    /// openai: where the engine replays KV events, `tcp://host:port`, if it does not state that itself.
    #[arg(long, env = "SIGNALBOX_KV_REPLAY", value_name = "ADDR", value_parser = zmq_address)]
    pub(crate) kv_replay: Option<String>,
    /// openai: most tokens of prompt and answer together, if the engine does not state it.
    #[arg(long, env = "SIGNALBOX_CONTEXT_LENGTH", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) context_length: Option<u32>,
    /// openai: the cache of the Hugging Face hub, where the model's tokenizer is looked for. The default is the folder
    /// `hub` of --hf-home.
    #[arg(long, env = "HF_HUB_CACHE", value_name = "FOLDER")]
    pub(crate) hf_hub_cache: Option<PathBuf>,
    /// openai: the folder of Hugging Face's libraries. The default is `~/.cache/huggingface`.
    #[arg(long, env = "HF_HOME", value_name = "FOLDER")]
    pub(crate) hf_home: Option<PathBuf>,
    /// openai: the Hugging Face hub, where the model's tokenizer is fetched if it is not on this machine. The default is
    /// `https://huggingface.co`.
    #[arg(long, env = "HF_ENDPOINT", value_name = "URL")]
    pub(crate) hf_endpoint: Option<String>,
    /// openai: a user's token at the hub, for models that are not public.
    #[arg(long, env = "HF_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) hf_token: Option<String>,
    /// openai: fetch nothing from the hub.
    #[arg(long, env = "HF_HUB_OFFLINE", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) hf_hub_offline: bool,
}

impl UpstreamOptions {
    /// The cache of the Hugging Face hub; `None` if this user has no home folder.
    pub(crate) fn hub_cache(&self) -> Option<PathBuf> {
        if self.hf_hub_cache.is_some() {
            return self.hf_hub_cache.clone();
        }
        let of_user = || Some(std::env::home_dir()?.join(".cache").join("huggingface"));
        let hf_home = self.hf_home.clone().or_else(of_user)?;
        Some(hf_home.join("hub"))
    }
}

impl std::fmt::Debug for UpstreamOptions {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamOptions")
            .field("upstream", &self.upstream)
            .finish_non_exhaustive()
    }
}

fn zmq_address(text: &str) -> Result<String, String> {
    let address = text.strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':'));
    match address {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Ok(text.into())
        }
        _ => Err("give tcp://host:port".into()),
    }
}

/// What computes the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineChoice {
    /// A real model (GGUF), computed by llama.cpp in the worker's process.
    Llama,
    /// A simulated GPU: real paging, batching and KV events, random tokens.
    Sim,
    /// An engine that runs already, at the address of --upstream.
    Openai,
}

fn speedup(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if factor.is_finite() && factor >= 0.0 => Ok(factor),
        _ => Err("give a number of 0 or more".into()),
    }
}

fn role(text: &str) -> Result<WorkerRole, String> {
    match text {
        "aggregated" => Ok(WorkerRole::Aggregated),
        "prefill" => Ok(WorkerRole::Prefill),
        "decode" => Ok(WorkerRole::Decode),
        _ => Err("give aggregated, prefill or decode".into()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("give key=value".into()),
    }
}
