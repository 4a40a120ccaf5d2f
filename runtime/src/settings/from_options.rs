//! From parsed options to settings. Each option is right by itself; here options are checked against each other.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::{Context, bail, ensure};
use signalbox_discovery::{EtcdConfig, EtcdTls};
use signalbox_http::HttpConfig;
use signalbox_nats::{NatsConfig, without_secrets};
use signalbox_protocol::WorkerId;
use signalbox_router::{BreakerConfig, TokenTimeouts};
use signalbox_worker::{
    hub::{HubConfig, PUBLIC_HUB},
    openai::UpstreamUrl,
};

use super::{
    DecisionSettings, EngineKind, EngineSettings, NatsSettings, PlaneSettings, RouterSettings, UpSettings,
    UpWorkers, UpstreamSettings, WorkerPlace, WorkerSettings, worker_name::worker_name,
};
use crate::cli::{
    EngineChoice, EngineOptions, FrontendOptions, PlaneOptions, RequestTransport, ServeOptions, Switch,
    UpOptions, UpstreamOptions, WorkerOptions,
};

const MIB: usize = 1024 * 1024;

/// Workers of `runtime up` with an engine of this binary.
const DEFAULT_WORKERS: u16 = 2;

/// Most engines of one `runtime up`: each is a process on this machine.
const MAX_UPSTREAMS: usize = 64;

impl TryFrom<UpOptions> for UpSettings {
    type Error = anyhow::Error;

    fn try_from(options: UpOptions) -> anyhow::Result<Self> {
        let UpOptions {
            workers,
            mut engine,
            frontend,
        } = options;
        let upstreams = std::mem::take(&mut engine.upstream.upstream);
        let workers = if upstreams.is_empty() {
            let number = workers.unwrap_or(DEFAULT_WORKERS);
            let is_engine_chosen = engine.engine.is_some();
            let mut engine = EngineSettings::try_from(engine)?;
            engine.threads.get_or_insert_with(|| threads_of_each(number));
            UpWorkers::Alike {
                number,
                engine: Box::new(engine),
                is_engine_chosen,
            }
        } else {
            ensure!(
                workers.is_none(),
                "--workers is for engines that `runtime up` starts itself; with --upstream there is one worker for each \
                 engine"
            );
            UpWorkers::NextDoor(next_door(upstreams, &engine)?)
        };
        let planes = PlaneSettings::default();
        Ok(Self {
            router: router("router".into(), planes, false, frontend)?,
            workers,
        })
    }
}

/// A worker for each engine that runs already.
fn next_door(
    upstreams: Vec<UpstreamUrl>,
    options: &EngineOptions,
) -> anyhow::Result<Vec<(WorkerId, EngineSettings)>> {
    ensure!(
        upstreams.len() <= MAX_UPSTREAMS,
        "--upstream is given {} times; one `runtime up` serves at most {MAX_UPSTREAMS} engines: run workers of their own \
         with `runtime worker --upstream` and `runtime serve`",
        upstreams.len()
    );
    ensure!(
        upstreams.len() == 1 || options.upstream.kv_events.is_none() && options.upstream.kv_replay.is_none(),
        "--kv-events and --kv-replay are addresses of one engine, and --upstream names {}; engines that state their own \
         addresses need neither",
        upstreams.len()
    );
    check_ca(options.upstream.upstream_ca.as_ref(), &upstreams)?;
    let mut names = BTreeSet::new();
    let worker = |url: UpstreamUrl| {
        let name = url.as_name();
        ensure!(names.insert(name.clone()), "--upstream names {url} twice");
        let mut options = options.clone();
        // Some of several engines may have TLS.
        options.upstream.upstream_ca.take_if(|_| !url.is_tls());
        options.upstream.upstream = vec![url];
        Ok((name.parse()?, EngineSettings::try_from(options)?))
    };
    upstreams.into_iter().map(worker).collect()
}

/// Workers on one machine share its cores, and leave room for the router. Workers that each took all of them would wait for
/// each other at every step.
fn threads_of_each(workers: u16) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let for_engines = signalbox_worker::engine::default_threads(cores);
    u32::try_from(for_engines / usize::from(workers)).map_or(1, |threads| threads.max(1))
}

impl TryFrom<ServeOptions> for RouterSettings {
    type Error = anyhow::Error;

    fn try_from(options: ServeOptions) -> anyhow::Result<Self> {
        ensure!(
            !options.discovery.is_empty(),
            "--discovery is missing; give static://host:port[,host:port…] or etcd://host:port[,host:port…], or run \
             `runtime up`, which starts workers itself"
        );
        let planes = planes(&options.discovery, options.planes)?;
        let replica_sync = options.replica_sync == Switch::On;
        router(options.router_id, planes, replica_sync, options.frontend)
    }
}

fn router(
    router_id: String,
    planes: PlaneSettings,
    replica_sync: bool,
    options: FrontendOptions,
) -> anyhow::Result<RouterSettings> {
    ensure!(
        planes.nats.is_none() || options.policy_dir.is_none(),
        "--policy-dir is for routers without NATS; with --events nats://… NATS keeps the policies"
    );
    ensure!(
        options.body_memory_mib >= options.max_body_mib,
        "--body-memory-mib is {} and --max-body-mib is {}: the largest body must fit",
        options.body_memory_mib,
        options.max_body_mib
    );
    ensure!(
        planes.nats.is_some() || !options.decision_publish,
        "--decision-publish uses the NATS of --events; give --events nats://host:port"
    );
    let most_bytes = u64::from(options.decision_log_mib) * MIB as u64;
    let decisions = DecisionSettings {
        file: options.decision_log.map(|path| (path, most_bytes)),
        publishes: options.decision_publish,
        share: options.decision_sample,
    };
    let mut http = HttpConfig {
        public: options.http,
        admin: options.admin,
        max_body_bytes: options.max_body_mib as usize * MIB,
        body_budget_bytes: options.body_memory_mib as usize * MIB,
        request_timeout: seconds(options.request_timeout_s),
        ping_after: (options.ping_after_s > 0).then(|| seconds(options.ping_after_s)),
        cors_origins: options.cors_origin,
        public_metrics: options.public_metrics,
        admin_token: options.admin_token,
        namespace: planes.namespace.clone(),
        policy_headers: options.policy_headers,
        tenant_header: Some(options.tenant_header).filter(|header| !header.is_empty()),
        ..HttpConfig::default()
    };
    if let Some(threads) = options.http_threads {
        http.threads = threads.into();
    }
    Ok(RouterSettings {
        router_id,
        planes,
        replica_sync,
        http,
        max_connections: options.max_connections.map(|most| most as usize),
        max_connections_per_address: options.max_connections_per_address.map(|most| most as usize),
        policy: options.policy,
        policy_dir: options.policy_dir,
        audit_log: options.audit_log,
        decisions,
        index_bytes: options.index_mib as usize * MIB,
        breakers: BreakerConfig {
            failures: options.eject_failures,
            ..BreakerConfig::default()
        },
        token_timeouts: TokenTimeouts {
            first: token_timeout(options.first_token_timeout_ms),
            next: token_timeout(options.next_token_timeout_ms),
        },
        grace: seconds(options.grace_s),
    })
}

impl TryFrom<WorkerOptions> for WorkerSettings {
    type Error = anyhow::Error;

    fn try_from(options: WorkerOptions) -> anyhow::Result<Self> {
        let name = worker_name(&options)?;
        let workers = places(&name, &options)?;
        let planes = planes(options.discovery.as_slice(), options.planes)?;
        ensure!(
            planes.static_workers.is_empty(),
            "--discovery of a worker is where it registers; give etcd://host:port[,host:port…], or nothing: routers \
             with --discovery static://… dial it"
        );
        let requests_over_nats = options.request_plane == RequestTransport::Nats;
        ensure!(
            !requests_over_nats || planes.nats.is_some(),
            "--request-plane nats uses the NATS of --events; give --events nats://host:port"
        );
        let engine = EngineSettings::try_from(options.engine)?;
        ensure!(
            workers.len() == 1 || engine.kind == EngineKind::Sim,
            "--sim-workers {} is for --engine sim; a real engine needs a process of its own",
            workers.len()
        );
        Ok(Self {
            name,
            workers,
            advertise_host: options.advertise_host,
            metrics: options.metrics,
            role: options.role,
            labels: options.labels.into_iter().collect(),
            engine,
            requests_over_nats,
            planes,
            grace: seconds(options.grace_s),
        })
    }
}

/// The names and addresses of a process's workers. Several workers have numbered names and consecutive ports.
fn places(id: &WorkerId, options: &WorkerOptions) -> anyhow::Result<Vec<WorkerPlace>> {
    let listen = options.listen;
    if options.sim_workers == 1 {
        let id = id.clone();
        return Ok(vec![WorkerPlace { id, listen }]);
    }
    let place = |number: u16| {
        let id: WorkerId = format!("{id}-{number}").parse()?;
        let mut listen = listen;
        if listen.port() != 0 {
            let port = listen.port().checked_add(number);
            listen.set_port(port.with_context(|| {
                format!(
                    "--sim-workers {} from port {} on need ports past 65535",
                    options.sim_workers,
                    listen.port()
                )
            })?);
        }
        Ok(WorkerPlace { id, listen })
    };
    (0..options.sim_workers).map(place).collect()
}

/// Refuses certificate authorities if no engine has TLS: the operator expects TLS then.
pub(super) fn check_ca(ca: Option<&PathBuf>, upstreams: &[UpstreamUrl]) -> anyhow::Result<()> {
    ensure!(
        ca.is_none() || upstreams.iter().any(UpstreamUrl::is_tls),
        "--upstream-ca is for an engine with TLS, and http:// is without; give --upstream https://host:port"
    );
    Ok(())
}

impl TryFrom<EngineOptions> for EngineSettings {
    type Error = anyhow::Error;

    fn try_from(options: EngineOptions) -> anyhow::Result<Self> {
        let kind = engine_kind(options.engine, &options.upstream)?;
        ensure!(
            kind != EngineKind::Llama || options.tokenizer.is_none(),
            "--tokenizer is for --engine sim and --upstream; a GGUF file has a tokenizer of its own"
        );
        if kind == EngineKind::Openai {
            for (is_given, flag) in [
                (options.model.is_some(), "--model"),
                (options.threads.is_some(), "--threads"),
            ] {
                ensure!(
                    !is_given,
                    "{flag} is for engines of this binary; an engine at --upstream has its own settings"
                );
            }
        }
        let upstream = upstream(kind, options.upstream)?;
        Ok(Self {
            kind,
            model: options.model,
            model_name: options.model_name,
            block_size: options.block_size,
            kv_tokens: options.kv_tokens,
            max_sequences: options.max_sequences,
            threads: options.threads,
            tokenizer: options.tokenizer,
            speedup: options.speedup,
            seed: options.seed,
            fatal_token: options.fatal_token,
            upstream,
        })
    }
}

/// The engine that runs already; `None` for engines of this binary.
fn upstream(kind: EngineKind, options: UpstreamOptions) -> anyhow::Result<Option<UpstreamSettings>> {
    if kind != EngineKind::Openai {
        for (is_given, flag) in [
            (options.upstream_key.is_some(), "--upstream-key"),
            (options.upstream_ca.is_some(), "--upstream-ca"),
            (options.kv_events.is_some(), "--kv-events"),
            (options.kv_replay.is_some(), "--kv-replay"),
            (options.context_length.is_some(), "--context-length"),
        ] {
            ensure!(
                !is_given,
                "{flag} is for an engine that runs already; give its address with --upstream"
            );
        }
        return Ok(None);
    }
    let [url] = options.upstream.as_slice() else {
        bail!(
            "a worker drives one engine and --upstream names {}; run a worker for each, or `runtime up`",
            options.upstream.len()
        );
    };
    check_ca(options.upstream_ca.as_ref(), &options.upstream)?;
    let hub_cache = options.hub_cache();
    let hub = hub(&options)?;
    Ok(Some(UpstreamSettings {
        url: url.to_string(),
        key: options.upstream_key,
        ca: options.upstream_ca,
        kv_events: options.kv_events,
        kv_replay: options.kv_replay,
        context_length: options.context_length,
        hub_cache,
        hub,
    }))
}

/// The hub to fetch from; `None` with `--hf-hub-offline`.
pub(super) fn hub(options: &UpstreamOptions) -> anyhow::Result<Option<HubConfig>> {
    if options.hf_hub_offline {
        return Ok(None);
    }
    // A variable that is empty is often one that was not set where it is passed on.
    let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let hub = HubConfig {
        endpoint: given(&options.hf_endpoint).unwrap_or_else(|| PUBLIC_HUB.into()),
        token: given(&options.hf_token),
    };
    hub.check()?;
    Ok(Some(hub))
}

/// The chosen engine, or the one at `--upstream`, or the best one of this binary.
fn engine_kind(chosen: Option<EngineChoice>, upstream: &UpstreamOptions) -> anyhow::Result<EngineKind> {
    let has_llama = cfg!(feature = "llama");
    let has_upstream = !upstream.upstream.is_empty();
    match chosen {
        Some(EngineChoice::Openai) if !has_upstream => bail!(
            "--engine openai needs the address of an engine that runs already; give --upstream http://host:port"
        ),
        Some(EngineChoice::Openai) => Ok(EngineKind::Openai),
        None if has_upstream => Ok(EngineKind::Openai),
        Some(_) if has_upstream => {
            bail!("--upstream is for --engine openai; leave --engine out to drive the engine at that address")
        }
        Some(EngineChoice::Llama) if !has_llama => bail!(
            "this binary was built without the llama engine; build it with --features llama, or run --engine sim"
        ),
        Some(EngineChoice::Llama) => Ok(EngineKind::Llama),
        None if has_llama => Ok(EngineKind::Llama),
        Some(EngineChoice::Sim) | None => Ok(EngineKind::Sim),
    }
}

/// From `--discovery`, given any number of times, and the options of the planes.
pub(super) fn planes(urls: &[String], options: PlaneOptions) -> anyhow::Result<PlaneSettings> {
    let mut settings = PlaneSettings {
        nats: nats(&options)?,
        ..PlaneSettings::default()
    };
    for url in urls.iter().filter(|url| !url.is_empty()) {
        if let Some(list) = url.strip_prefix("static://") {
            settings.static_workers.extend(addresses(list)?);
        } else if let Some(list) = url.strip_prefix("etcd://") {
            ensure!(
                settings.etcd.is_none(),
                "--discovery names etcd twice; give the servers of one cluster with commas between: \
                 etcd://a:2379,b:2379"
            );
            settings.etcd = Some(etcd(list, &options)?);
        } else {
            bail!(
                "--discovery {:?} is not known; give static://host:port[,host:port…] or etcd://host:port[,host:port…]",
                without_secrets(url)
            );
        }
    }
    settings.namespace = options.namespace;
    Ok(settings)
}

/// From `--events`; `None` for `memory`.
fn nats(options: &PlaneOptions) -> anyhow::Result<Option<NatsSettings>> {
    if options.events == "memory" {
        return Ok(None);
    }
    ensure!(
        options.events.starts_with("nats://") || options.events.starts_with("tls://"),
        "--events must be memory or nats://host:port[,nats://host:port…]"
    );
    Ok(Some(NatsSettings {
        connection: NatsConfig {
            url: options.events.clone(),
            token: options.nats_token.clone(),
            nkey: options.nats_nkey.clone(),
            credentials: options.nats_creds.clone(),
            ca: options.nats_ca.clone(),
            client_certificate: options.nats_cert.clone().zip(options.nats_key.clone()),
        },
        replicas: options.nats_replicas.map(usize::from),
    }))
}

fn etcd(list: &str, options: &PlaneOptions) -> anyhow::Result<EtcdConfig> {
    let has_tls = options.etcd_ca.is_some() || options.etcd_cert.is_some();
    let scheme = if has_tls { "https" } else { "http" };
    let endpoints = addresses(list).context("the address of etcd is wrong")?;
    Ok(EtcdConfig {
        endpoints: endpoints
            .iter()
            .map(|endpoint| format!("{scheme}://{endpoint}"))
            .collect(),
        namespace: options.namespace.clone(),
        lease_ttl: seconds(options.lease_s.into()),
        user: options.etcd_user.clone().zip(options.etcd_password.clone()),
        tls: has_tls.then(|| EtcdTls {
            ca: options.etcd_ca.clone(),
            certificate: options.etcd_cert.clone().zip(options.etcd_key.clone()),
        }),
    })
}

/// `host:port[,host:port…]`
fn addresses(list: &str) -> anyhow::Result<Vec<String>> {
    let is_address = |address: &&str| match address.rsplit_once(':') {
        Some((host, port)) => !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0),
        None => false,
    };
    ensure!(
        !list.contains('@'),
        "--discovery {:?} has a user; etcd's user and password are --etcd-user and SIGNALBOX_ETCD_PASSWORD",
        without_secrets(list)
    );
    let addresses: Vec<&str> = list.split(',').map(str::trim).collect();
    if let Some(wrong) = addresses.iter().find(|address| !is_address(address)) {
        bail!("--discovery names {wrong:?}; give host:port");
    }
    Ok(addresses.into_iter().map(String::from).collect())
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into())
}

/// 0 is no timeout.
fn token_timeout(ms: u32) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms.into()))
}

#[cfg(test)]
mod tests;
