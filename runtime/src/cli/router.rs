//! Options of a router: `runtime serve`, and the router of `runtime up`.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};

use super::{
    listen_address,
    planes::{PlaneOptions, namespace},
    worker::EngineOptions,
};

#[derive(Debug, Args)]
pub(crate) struct UpOptions {
    /// Workers to start. The default is 2, or one for each --upstream.
    #[arg(long, env = "SIGNALBOX_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) workers: Option<u16>,
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
    /// Where the workers are found: `static://host:port[,host:port…]`, `etcd://host:port[,host:port…]`; can be given
    /// several times, in the environment separated by spaces.
    #[arg(long, env = "SIGNALBOX_DISCOVERY", value_name = "URL", value_delimiter = ' ')]
    pub(crate) discovery: Vec<String>,
    #[command(flatten)]
    pub(crate) planes: PlaneOptions,
    /// This router's name: letters, digits, `-`, `_`. Each incarnation adds a number.
    #[arg(
        long,
        env = "SIGNALBOX_ROUTER_ID",
        default_value = "router",
        value_name = "NAME",
        value_parser = router_name
    )]
    pub(crate) router_id: String,
    /// Whether routers report to each other over NATS what they have in flight.
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

/// Options of a router's listeners, policy and bounds.
#[derive(Debug, Clone, Args)]
pub(crate) struct FrontendOptions {
    /// Address of the OpenAI API.
    #[arg(
        long,
        env = "SIGNALBOX_HTTP",
        default_value = "127.0.0.1:8000",
        value_name = "ADDR",
        value_parser = listen_address
    )]
    pub(crate) http: SocketAddr,
    /// Address of the admin API and /metrics.
    #[arg(
        long,
        env = "SIGNALBOX_ADMIN",
        default_value = "127.0.0.1:9090",
        value_name = "ADDR",
        value_parser = listen_address
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
    /// The policy that decides until another one is activated: kv-aware, kv-linear, replica-synced, round-robin,
    /// least-loaded, power-of-two, random, session-affinity or prefix-hash.
    #[arg(
        long,
        env = "SIGNALBOX_POLICY",
        default_value = "kv-aware",
        value_name = "NAME"
    )]
    pub(crate) policy: String,
    /// A folder that keeps uploaded policies over restarts. It belongs to this router alone; with NATS, NATS keeps the
    /// policies.
    #[arg(long, env = "SIGNALBOX_POLICY_DIR", value_name = "FOLDER")]
    pub(crate) policy_dir: Option<PathBuf>,
    /// A file that gets a line of JSON for each change of policies: who, when, what. It is created if it is missing, and can
    /// be moved away at any time.
    #[arg(long, env = "SIGNALBOX_AUDIT_LOG", value_name = "PATH")]
    pub(crate) audit_log: Option<PathBuf>,
    /// A header of clients that policies may tell apart, hashed, as the key `header:NAME`; can be given several times.
    #[arg(long = "policy-header", env = "SIGNALBOX_POLICY_HEADERS", value_delimiter = ',', value_parser = header_name, value_name = "NAME")]
    pub(crate) policy_headers: Vec<String>,
    /// The header by which clients name their tenant, which policies may tell apart, hashed, as the key `tenant`. Empty for
    /// none.
    #[arg(long, env = "SIGNALBOX_TENANT_HEADER", default_value = "x-tenant-id", value_parser = header_name_or_none, value_name = "NAME")]
    pub(crate) tenant_header: String,
    /// Write decisions to this file, with the outcomes of their requests, as JSON lines (`runtime/docs/decisions.md`). Half
    /// full, it becomes FILE.1.
    #[arg(long, env = "SIGNALBOX_DECISION_LOG", value_name = "FILE")]
    pub(crate) decision_log: Option<PathBuf>,
    /// Most space of the decision log, FILE and FILE.1 together, in MiB.
    #[arg(long, env = "SIGNALBOX_DECISION_LOG_MIB", default_value_t = 1024, value_name = "MIB", value_parser = clap::value_parser!(u32).range(2..=1_048_576))]
    pub(crate) decision_log_mib: u32,
    /// Publish decisions to NATS, to the subject `signalbox.NAMESPACE.decisions.ROUTER`. Needs --events nats://….
    #[arg(long, env = "SIGNALBOX_DECISION_PUBLISH")]
    pub(crate) decision_publish: bool,
    /// The share of decisions that are written and published, from 0 to 1. Sessions are sampled whole.
    #[arg(long, env = "SIGNALBOX_DECISION_SAMPLE", default_value = "1", value_parser = share, value_name = "SHARE")]
    pub(crate) decision_sample: f64,
    /// HTTP threads. The default is the number of cores.
    #[arg(long, env = "SIGNALBOX_HTTP_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) http_threads: Option<u16>,
    /// Largest request body, in MiB.
    #[arg(long, env = "SIGNALBOX_MAX_BODY_MIB", default_value_t = 16, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) max_body_mib: u32,
    /// Most memory that the bodies of all requests take together until workers begin to answer them, in MiB.
    #[arg(long, env = "SIGNALBOX_BODY_MEMORY_MIB", default_value_t = 512, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=262_144))]
    pub(crate) body_memory_mib: u32,
    /// Most connections to the OpenAI API; further ones wait. The default is 25,000 for each HTTP thread, or three quarters
    /// of the files that the process may open if that is less.
    #[arg(long, env = "SIGNALBOX_MAX_CONNECTIONS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_connections: Option<u32>,
    /// Most connections to the OpenAI API from one address, or from one /64 of IPv6; further ones are refused. 0 is no limit,
    /// for a proxy that all clients come through. The default is half of --max-connections.
    #[arg(long, env = "SIGNALBOX_MAX_CONNECTIONS_PER_ADDRESS", value_name = "N")]
    pub(crate) max_connections_per_address: Option<u32>,
    /// Longest time from a request to the end of its answer, in seconds.
    #[arg(long, env = "SIGNALBOX_REQUEST_TIMEOUT_S", default_value_t = 600, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) request_timeout_s: u32,
    /// How long a stream may have no bytes, in seconds, until its head and a comment are sent, and a comment from then on as
    /// often. Errors after it are events. 0 is never.
    #[arg(long, env = "SIGNALBOX_PING_AFTER_S", default_value_t = 15, value_name = "S", value_parser = clap::value_parser!(u32).range(0..=3_600))]
    pub(crate) ping_after_s: u32,
    /// An origin whose web pages may use the OpenAI API (CORS), such as `https://chat.example`, or * for all; can be given
    /// several times, in the environment separated by spaces.
    #[arg(
        long,
        env = "SIGNALBOX_CORS_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ' '
    )]
    pub(crate) cors_origin: Vec<String>,
    /// Serve /metrics beside the OpenAI API too.
    #[arg(long, env = "SIGNALBOX_PUBLIC_METRICS")]
    pub(crate) public_metrics: bool,
    /// Limit on the memory of the KV index, in MiB. A full index forgets the blocks that were not used for longest.
    #[arg(long, env = "SIGNALBOX_INDEX_MIB", default_value_t = 1024, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=262_144))]
    pub(crate) index_mib: u32,
    /// Failures in a row after which a worker gets no requests until it answers a probe. At most half of a model's workers
    /// are left out. 0 is never.
    #[arg(long, env = "SIGNALBOX_EJECT_FAILURES", default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub(crate) eject_failures: u32,
    /// How long a request waits for its first token, in milliseconds, until it goes to another worker. A worker with a queue
    /// or a long prompt has longer, by its measured speed, and one whose engine makes progress keeps its requests. 0 is
    /// until the request's deadline.
    #[arg(long, env = "SIGNALBOX_FIRST_TOKEN_TIMEOUT_MS", default_value_t = 1_500, value_name = "MS", value_parser = clap::value_parser!(u32).range(0..=3_600_000))]
    pub(crate) first_token_timeout_ms: u32,
    /// As --first-token-timeout-ms, for each further token of a stream. Another worker continues the answer where that is
    /// possible; elsewhere the stream ends with an error, after ten times as long.
    #[arg(long, env = "SIGNALBOX_NEXT_TOKEN_TIMEOUT_MS", default_value_t = 1_500, value_name = "MS", value_parser = clap::value_parser!(u32).range(0..=3_600_000))]
    pub(crate) next_token_timeout_ms: u32,
    /// Seconds that requests under way may take to end after a stop signal.
    #[arg(long, env = "SIGNALBOX_GRACE_S", default_value_t = 30, value_name = "S", value_parser = clap::value_parser!(u32).range(0..=3_600))]
    pub(crate) grace_s: u32,
}

/// The name of a header, in lower case.
fn header_name(text: &str) -> Result<String, String> {
    const LONGEST: usize = 64;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if text.is_empty() || text.len() > LONGEST || !text.chars().all(is_allowed) {
        return Err(format!(
            "give the name of a header: 1 to {LONGEST} letters, digits, `-` or `_`"
        ));
    }
    Ok(text.to_ascii_lowercase())
}

fn header_name_or_none(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    header_name(text)
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err("must be from 0 to 1".into())
    }
}

/// Like a worker's name, with room for the number of an incarnation.
fn router_name(text: &str) -> Result<String, String> {
    const LONGEST: usize = 40;
    match namespace(text) {
        Ok(name) if name.len() <= LONGEST => Ok(name),
        _ => Err(format!("give 1 to {LONGEST} letters, digits, `-` or `_`")),
    }
}
