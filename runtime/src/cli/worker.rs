//! Options of a worker: `runtime worker`, and the engines of `runtime up`.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};
use signalbox_protocol::{WorkerId, WorkerRole};

use super::planes::PlaneOptions;

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
        value_name = "ADDR"
    )]
    pub(crate) listen: SocketAddr,
    /// The host that routers dial; needed if the worker listens on every address of the machine.
    #[arg(long, env = "SIGNALBOX_ADVERTISE_HOST", value_name = "HOST")]
    pub(crate) advertise_host: Option<String>,
    /// The worker's name, stable over restarts: letters, digits, `-`, `_`.
    #[arg(
        long,
        env = "SIGNALBOX_WORKER_ID",
        default_value = "worker",
        value_name = "NAME"
    )]
    pub(crate) id: WorkerId,
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
    /// What computes the tokens. The default is llama if this binary has it, else sim.
    #[arg(long, env = "SIGNALBOX_ENGINE", value_enum)]
    pub(crate) engine: Option<EngineChoice>,
    /// The model, a GGUF file.
    #[arg(long, env = "SIGNALBOX_MODEL", value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// The model name that clients use. The default is the file's name without the quantisation.
    #[arg(long, env = "SIGNALBOX_MODEL_NAME", value_name = "NAME")]
    pub(crate) model_name: Option<String>,
    /// Tokens per KV block.
    #[arg(long, env = "SIGNALBOX_BLOCK_SIZE", default_value_t = 16, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) block_size: u32,
    /// Tokens that the KV cache holds.
    #[arg(long, env = "SIGNALBOX_KV_TOKENS", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(64..))]
    pub(crate) kv_tokens: Option<u32>,
    /// Sequences decoded at once.
    #[arg(long, env = "SIGNALBOX_MAX_SEQUENCES", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub(crate) max_sequences: Option<u32>,
    /// llama: threads that compute.
    #[arg(long, env = "SIGNALBOX_ENGINE_THREADS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    /// sim: a Hugging Face tokenizer folder. The default is the model's tokenizer, or one with a token for each byte.
    #[arg(long, env = "SIGNALBOX_TOKENIZER", value_name = "PATH")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// sim: how many times as fast as the simulated GPU; 0 for no waiting at all.
    #[arg(long, env = "SIGNALBOX_SPEEDUP", default_value_t = 1.0, value_name = "FACTOR", allow_negative_numbers = true, value_parser = speedup)]
    pub(crate) speedup: f64,
    /// sim: seed of the random tokens.
    #[arg(long, env = "SIGNALBOX_SEED", default_value_t = 0, value_name = "N")]
    pub(crate) seed: u64,
}

/// What computes the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineChoice {
    /// A real model (GGUF), computed by llama.cpp in the worker's process.
    Llama,
    /// A simulated GPU: real paging, batching and KV events, random tokens.
    Sim,
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
