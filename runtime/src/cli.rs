//! The command line. Every option can also be set by the environment variable its help names, and those of `serve` and
//! `worker` in a file: a flag wins over the environment, the environment over the file, the file over the default.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use signalbox_protocol::{WorkerId, WorkerRole};

/// Routes LLM inference: an OpenAI API in front of GPU workers, with the routing decided by WASM policies.
#[derive(Debug, Parser)]
#[command(name = "runtime", version, propagate_version = true, max_term_width = 110, after_help = EXAMPLES)]
pub struct Cli {
    /// What is logged to standard error: a level, or tracing directives such as `warn,signalbox_router=debug`.
    #[arg(
        long,
        global = true,
        env = "SIGNALBOX_LOG",
        default_value = "warn",
        value_name = "FILTER"
    )]
    pub log: String,
    /// Log in JSON, a document a line.
    #[arg(long, global = true, env = "SIGNALBOX_LOG_JSON")]
    pub log_json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "Examples:
  runtime up                                      a model on two workers at http://127.0.0.1:8000
  runtime up --engine sim --workers 4             the same with simulated GPUs
  runtime worker --engine sim --listen 127.0.0.1:7001
  runtime serve --discovery static://127.0.0.1:7001,127.0.0.1:7002
  runtime serve --discovery etcd://etcd:2379 --events nats://nats:4222
  runtime config example                          a file of all settings, explained
  runtime policy check policy.wasm                what an upload would be told";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model on this machine: the router, and its workers as child processes.
    Up(Box<UpOptions>),
    /// Route to workers that run elsewhere.
    Serve(Box<ServeOptions>),
    /// Drive one engine and serve it to routers over TCP.
    Worker(Box<WorkerOptions>),
    /// Work on policies.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Look at settings: those in effect, those in a file, all there are.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the settings in effect, each with where it comes from.
    Show {
        /// Whose settings.
        #[arg(value_enum)]
        command: Configurable,
        /// The options the command would be given, `--config FILE` among them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Say whether a file of settings is right, and what is wrong with it.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print a file of all settings, explained and at their defaults.
    Example,
}

/// A command that takes its settings from a file too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Configurable {
    /// `runtime serve`
    Serve,
    /// `runtime worker`
    Worker,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Say whether a policy component would be accepted, and why not.
    Check {
        /// The component.
        file: PathBuf,
        /// Its settings, in JSON.
        #[arg(long, default_value = "")]
        settings: String,
    },
}

/// What computes the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineKind {
    /// A real model (GGUF), computed by llama.cpp in the worker's process.
    Llama,
    /// A simulated GPU: real paging, batching and KV events, made-up tokens.
    Sim,
}

#[derive(Debug, Args)]
pub(crate) struct UpOptions {
    /// Workers to start.
    #[arg(long, env = "SIGNALBOX_WORKERS", default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) workers: u16,
    #[command(flatten)]
    pub(crate) engine: EngineOptions,
    #[command(flatten)]
    pub(crate) frontend: FrontendOptions,
}

#[derive(Debug, Args)]
pub(crate) struct ServeOptions {
    /// A file of settings (TOML); see `runtime config example`.
    #[arg(long, env = "SIGNALBOX_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where the workers are found: `static://host:port[,host:port…]`, `etcd://host:port[,host:port…]`; may be given
    /// again, in the environment with a space between.
    #[arg(long, env = "SIGNALBOX_DISCOVERY", value_name = "URL", value_delimiter = ' ')]
    pub(crate) discovery: Vec<String>,
    #[command(flatten)]
    pub(crate) planes: PlaneOptions,
    /// This router's name: letters, digits, `-`, `_`. Each life of it adds a number.
    #[arg(
        long,
        env = "SIGNALBOX_ROUTER_ID",
        default_value = "router",
        value_name = "NAME",
        value_parser = router_name
    )]
    pub(crate) router_id: String,
    /// Whether routers tell each other over NATS what they have in flight.
    #[arg(long, env = "SIGNALBOX_REPLICA_SYNC", value_enum, default_value_t = Switch::On)]
    pub(crate) replica_sync: Switch,
    #[command(flatten)]
    pub(crate) frontend: FrontendOptions,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// What carries events and membership; routers and workers of one cluster agree on it.
#[derive(Clone, Args)]
pub(crate) struct PlaneOptions {
    /// What carries KV events: `memory` (each worker's own connection to each router) or
    /// `nats://host:port[,host:port…]`, with `user:password@` before the host where the server asks for it.
    #[arg(
        long,
        env = "SIGNALBOX_EVENTS",
        default_value = "memory",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub(crate) events: String,
    /// Sets clusters apart that share NATS and etcd: letters, digits, `-`, `_`.
    #[arg(
        long,
        env = "SIGNALBOX_NAMESPACE",
        default_value = "default",
        value_name = "NAME",
        value_parser = namespace
    )]
    pub(crate) namespace: String,
    /// NATS: a file of credentials (`.creds`).
    #[arg(long, env = "SIGNALBOX_NATS_CREDS", value_name = "FILE")]
    pub(crate) nats_creds: Option<PathBuf>,
    /// NATS: certificate authorities to trust (PEM).
    #[arg(long, env = "SIGNALBOX_NATS_CA", value_name = "FILE")]
    pub(crate) nats_ca: Option<PathBuf>,
    /// NATS: this process's certificate (PEM).
    #[arg(long, env = "SIGNALBOX_NATS_CERT", value_name = "FILE", requires = "nats_key")]
    pub(crate) nats_cert: Option<PathBuf>,
    /// NATS: the certificate's key (PEM).
    #[arg(long, env = "SIGNALBOX_NATS_KEY", value_name = "FILE", requires = "nats_cert")]
    pub(crate) nats_key: Option<PathBuf>,
    /// NATS: servers that keep a copy of the event stream each.
    #[arg(long, env = "SIGNALBOX_NATS_REPLICAS", default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=5))]
    pub(crate) nats_replicas: u8,
    /// etcd: seconds after which a process that says nothing counts as gone.
    #[arg(long, env = "SIGNALBOX_LEASE_S", default_value_t = 10, value_name = "S", value_parser = clap::value_parser!(u16).range(2..=600))]
    pub(crate) lease_s: u16,
    /// etcd: user.
    #[arg(
        long,
        env = "SIGNALBOX_ETCD_USER",
        value_name = "NAME",
        requires = "etcd_password"
    )]
    pub(crate) etcd_user: Option<String>,
    /// etcd: the user's password.
    #[arg(
        long,
        env = "SIGNALBOX_ETCD_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD",
        requires = "etcd_user"
    )]
    pub(crate) etcd_password: Option<String>,
    /// etcd: certificate authorities to trust (PEM); makes the connection TLS.
    #[arg(long, env = "SIGNALBOX_ETCD_CA", value_name = "FILE")]
    pub(crate) etcd_ca: Option<PathBuf>,
    /// etcd: this process's certificate (PEM).
    #[arg(long, env = "SIGNALBOX_ETCD_CERT", value_name = "FILE", requires = "etcd_key")]
    pub(crate) etcd_cert: Option<PathBuf>,
    /// etcd: the certificate's key (PEM).
    #[arg(long, env = "SIGNALBOX_ETCD_KEY", value_name = "FILE", requires = "etcd_cert")]
    pub(crate) etcd_key: Option<PathBuf>,
}

impl std::fmt::Debug for PlaneOptions {
    /// Without addresses and passwords, which hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlaneOptions")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

/// What carries requests to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RequestTransport {
    /// Routers dial the worker.
    Tcp,
    /// Both meet at NATS: for workers that cannot be dialled. Slower.
    Nats,
}

/// The router's side.
#[derive(Debug, Clone, Args)]
pub(crate) struct FrontendOptions {
    /// Address of the OpenAI API.
    #[arg(
        long,
        env = "SIGNALBOX_HTTP",
        default_value = "127.0.0.1:8000",
        value_name = "ADDR"
    )]
    pub(crate) http: SocketAddr,
    /// Address of the admin API and /metrics.
    #[arg(
        long,
        env = "SIGNALBOX_ADMIN",
        default_value = "127.0.0.1:9090",
        value_name = "ADDR"
    )]
    pub(crate) admin: SocketAddr,
    /// Bearer token of the admin API; required off loopback.
    #[arg(
        long,
        env = "SIGNALBOX_ADMIN_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub(crate) admin_token: Option<String>,
    /// The policy that decides until another is made active: kv-aware, round-robin or replica-synced.
    #[arg(
        long,
        env = "SIGNALBOX_POLICY",
        default_value = "kv-aware",
        value_name = "NAME"
    )]
    pub(crate) policy: String,
    /// Where uploaded policies are kept, so that they survive a restart, where NATS does not keep them: a folder of this
    /// router's own.
    #[arg(long, env = "SIGNALBOX_POLICY_DIR", value_name = "FOLDER")]
    pub(crate) policy_dir: Option<PathBuf>,
    /// HTTP threads; as many as there are cores unless given.
    #[arg(long, env = "SIGNALBOX_HTTP_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) http_threads: Option<u16>,
    /// Largest request body, in MiB.
    #[arg(long, env = "SIGNALBOX_MAX_BODY_MIB", default_value_t = 16, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) max_body_mib: u32,
    /// Most seconds from a request to the end of its answer.
    #[arg(long, env = "SIGNALBOX_REQUEST_TIMEOUT_S", default_value_t = 600, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) request_timeout_s: u32,
    /// Most memory of the KV index, in MiB.
    #[arg(long, env = "SIGNALBOX_INDEX_MIB", default_value_t = 1024, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=262_144))]
    pub(crate) index_mib: u32,
    /// Seconds that requests under way have to end when told to stop.
    #[arg(long, env = "SIGNALBOX_GRACE_S", default_value_t = 30, value_name = "S", value_parser = clap::value_parser!(u32).range(0..=3_600))]
    pub(crate) grace_s: u32,
}

/// The engine's side.
#[derive(Debug, Clone, Args)]
pub(crate) struct EngineOptions {
    /// What computes the tokens: llama where this binary has it, sim otherwise.
    #[arg(long, env = "SIGNALBOX_ENGINE", value_enum)]
    pub(crate) engine: Option<EngineKind>,
    /// The model, a GGUF file.
    #[arg(long, env = "SIGNALBOX_MODEL", value_name = "PATH")]
    pub(crate) model: Option<PathBuf>,
    /// The name clients ask for; the file's name, without quantisation, unless given.
    #[arg(long, env = "SIGNALBOX_MODEL_NAME", value_name = "NAME")]
    pub(crate) model_name: Option<String>,
    /// Tokens per KV block.
    #[arg(long, env = "SIGNALBOX_BLOCK_SIZE", default_value_t = 16, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) block_size: u32,
    /// Tokens the KV cache holds.
    #[arg(long, env = "SIGNALBOX_KV_TOKENS", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(64..))]
    pub(crate) kv_tokens: Option<u32>,
    /// Sequences decoded at once.
    #[arg(long, env = "SIGNALBOX_MAX_SEQUENCES", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub(crate) max_sequences: Option<u32>,
    /// llama: threads that compute.
    #[arg(long, env = "SIGNALBOX_ENGINE_THREADS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    /// sim: a Hugging Face tokenizer folder; the model's tokenizer, or one of bytes, unless given.
    #[arg(long, env = "SIGNALBOX_TOKENIZER", value_name = "PATH")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// sim: how much faster than the simulated GPU to answer; 0 for no waiting at all.
    #[arg(long, env = "SIGNALBOX_SPEEDUP", default_value_t = 1.0, value_name = "FACTOR", allow_negative_numbers = true, value_parser = speedup)]
    pub(crate) speedup: f64,
    /// sim: decides the made-up tokens.
    #[arg(long, env = "SIGNALBOX_SEED", default_value_t = 0, value_name = "N")]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct WorkerOptions {
    /// A file of settings (TOML); see `runtime config example`.
    #[arg(long, env = "SIGNALBOX_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where to register: `etcd://host:port[,host:port…]`. Without it routers are told the address (`static://`).
    #[arg(long, env = "SIGNALBOX_DISCOVERY", value_name = "URL")]
    pub(crate) discovery: Option<String>,
    #[command(flatten)]
    pub(crate) planes: PlaneOptions,
    /// What carries requests here.
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
    /// The host that routers dial, where the worker listens on every address of the machine.
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
    /// sim: workers to simulate in this process, NAME-0, NAME-1 and so on, each at a port of its own from the address's on.
    #[arg(long, env = "SIGNALBOX_SIM_WORKERS", default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4_096))]
    pub(crate) sim_workers: u16,
    /// What the worker does: aggregated, prefill or decode.
    #[arg(long, env = "SIGNALBOX_ROLE", default_value = "aggregated", value_parser = role, value_name = "ROLE")]
    pub(crate) role: WorkerRole,
    /// A label, `key=value`; may be given again.
    #[arg(long = "label", value_parser = label, value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<(String, String)>,
    /// Seconds that requests under way have to end when told to stop.
    #[arg(long, env = "SIGNALBOX_GRACE_S", default_value_t = 30, value_name = "S", value_parser = clap::value_parser!(u32).range(0..=3_600))]
    pub(crate) grace_s: u32,
    /// Tell a parent process by JSON lines on standard output, and stop when standard input ends.
    #[arg(long, hide = true)]
    pub(crate) child: bool,
    #[command(flatten)]
    pub(crate) engine: EngineOptions,
}

/// A name that fits NATS subjects and etcd keys.
fn namespace(text: &str) -> Result<String, String> {
    match text.parse::<WorkerId>() {
        Ok(name) => Ok(name.to_string()),
        Err(_) => Err("give 1 to 64 letters, digits, `-` or `_`".into()),
    }
}

/// As a worker's name, with room for the number of a life.
fn router_name(text: &str) -> Result<String, String> {
    const LONGEST: usize = 40;
    match namespace(text) {
        Ok(name) if name.len() <= LONGEST => Ok(name),
        _ => Err(format!("give 1 to {LONGEST} letters, digits, `-` or `_`")),
    }
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_values_are_refused_where_they_stand() {
        for wrong in [
            ["runtime", "up", "--workers", "0"],
            ["runtime", "up", "--speedup", "-1"],
            ["runtime", "worker", "--id", "a.b"],
            ["runtime", "worker", "--label", "zone"],
        ] {
            let error = Cli::try_parse_from(wrong).unwrap_err().to_string();
            assert!(error.contains(wrong[2]), "{error}");
        }
    }
}
