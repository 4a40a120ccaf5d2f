//! A router process: everything between its clients and its workers.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actix::prelude::*;
use anyhow::{Context, ensure};
use signalbox_discovery::{Discovery, EtcdDiscovery, MemoryDiscovery, Registration};
use signalbox_http::{HttpConfig, HttpServer, RunningHttp};
use signalbox_policy_host::{PolicyEngine, PolicyLimits, PolicyRegistry};
use signalbox_protocol::{RouterCard, RouterId};
use signalbox_request_plane::{LinkConfig, NatsTransport};
use signalbox_router::{ReplicaConfig, Router, RouterConfig};

use crate::{
    cli::{FrontendOptions, ServeOptions, Switch},
    console,
    planes::{self, Events, Membership},
    shutdown,
    static_workers::{AddWorker, StaticWorkers},
    telemetry,
};

/// The parts of a router, bound to their addresses.
pub(crate) struct RouterProcess {
    pub(crate) http: RunningHttp,
    pub(crate) router: Router,
    /// Who the workers are that are known by address.
    pub(crate) workers: Addr<StaticWorkers>,
    membership: Option<(Arc<EtcdDiscovery>, Registration)>,
    grace: Duration,
}

/// What a router stands on.
pub(crate) struct RouterPlanes {
    pub(crate) membership: Membership,
    pub(crate) events: Events,
    /// Whether routers tell each other what they have in flight.
    pub(crate) replica_sync: bool,
    pub(crate) namespace: String,
    /// This router's name; each of its lives adds a number.
    pub(crate) router_id: String,
}

impl RouterPlanes {
    /// Without any server.
    pub(crate) fn in_process() -> Self {
        Self {
            membership: Membership::default(),
            events: Events::in_process(),
            replica_sync: false,
            namespace: "default".into(),
            router_id: "router".into(),
        }
    }
}

impl RouterProcess {
    /// Builds every part, top of the diagram last: policies, planes, router, HTTP.
    pub(crate) async fn start(options: &FrontendOptions, planes: RouterPlanes) -> anyhow::Result<Self> {
        let metrics = telemetry::start_metrics()?;
        let engine = PolicyEngine::new(PolicyLimits::default()).context("the policy engine cannot start")?;
        let policies = PolicyRegistry::new(engine, &options.policy)?;
        let RouterPlanes {
            membership: Membership { addresses, etcd },
            events,
            replica_sync,
            namespace,
            router_id,
        } = planes;
        let id = incarnation_id(&router_id)?;

        let known_by_address = Arc::new(MemoryDiscovery::default());
        let nats = events.nats.clone();
        let links = LinkConfig {
            nats: nats
                .map(|nats| NatsTransport::new(nats, &namespace))
                .transpose()?,
            ..LinkConfig::default()
        };
        let workers = StaticWorkers::new(known_by_address.clone(), links.clone()).start();
        let mut discovery: Vec<Arc<dyn Discovery>> = vec![known_by_address];
        discovery.extend(etcd.clone().map(|etcd| etcd as Arc<dyn Discovery>));
        let membership_status = etcd
            .as_ref()
            .map_or_else(|| planes::always_up("static"), |etcd| etcd.status());
        let status = vec![
            ("discovery", membership_status),
            ("events", events.plane.status()),
        ];
        for (name, status) in &status {
            planes::report(name, status.clone());
        }
        let policy_store = events.policy_store(&namespace, options.policy_dir.as_deref())?;
        let broadcast = events.broadcast(&namespace).filter(|_| replica_sync);
        let router = Router::start(RouterConfig {
            discovery,
            replicas: broadcast.map(|broadcast| ReplicaConfig {
                id: id.clone(),
                broadcast,
            }),
            planes: status,
            // Workers publish to NATS themselves.
            feeds_events: events.nats.is_none(),
            events: events.plane,
            policies,
            policy_store,
            links,
            index_bytes: options.index_mib as usize * 1024 * 1024,
        });
        for address in addresses {
            workers.send(AddWorker(address)).await?;
        }
        let http = HttpServer::bind(http_config(options, &namespace), router.clone(), metrics)?.run()?;
        let card = RouterCard {
            id,
            http: http.public_address().to_string(),
            admin: http.admin_address().to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let membership = etcd.map(|etcd| {
            let registration = etcd.register_router(card);
            (etcd, registration)
        });
        Ok(Self {
            http,
            router,
            workers,
            membership,
            grace: Duration::from_secs(options.grace_s.into()),
        })
    }

    /// Says where it listens.
    pub(crate) fn introduce(&self) {
        console::line(format_args!("OpenAI API   http://{}", self.http.public_address()));
        console::line(format_args!("admin API    http://{}", self.http.admin_address()));
    }

    /// Ends in the order of the arrows: no new requests, those under way, then the links to the workers.
    pub(crate) async fn stop(self) {
        self.http.stop(self.grace).await;
        // Only now: until here it had requests in flight, which the other routers count.
        if let Some((etcd, registration)) = self.membership {
            drop(registration);
            etcd.withdraw().await;
        }
        self.router.stop();
    }
}

/// A name that no other life of this router has.
fn incarnation_id(name: &str) -> anyhow::Result<RouterId> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{name}-{}", started.as_millis()).parse()?)
}

fn http_config(options: &FrontendOptions, namespace: &str) -> HttpConfig {
    let mut config = HttpConfig {
        public: options.http,
        admin: options.admin,
        max_body_bytes: options.max_body_mib as usize * 1024 * 1024,
        request_timeout: Duration::from_secs(options.request_timeout_s.into()),
        admin_token: options.admin_token.clone(),
        namespace: namespace.into(),
        ..HttpConfig::default()
    };
    if let Some(threads) = options.http_threads {
        config.threads = threads.into();
    }
    config
}

/// `runtime serve`.
pub(crate) async fn run(options: ServeOptions) -> anyhow::Result<()> {
    ensure!(
        !options.discovery.is_empty(),
        "where are the workers? Give --discovery static://host:port[,host:port…] or etcd://host:port[,host:port…]; \
         `runtime up` starts some itself"
    );
    let planes = RouterPlanes {
        membership: Membership::start(&options.discovery, &options.planes).await?,
        events: Events::start(&options.planes, &options.router_id).await?,
        replica_sync: options.replica_sync == Switch::On,
        namespace: options.planes.namespace.clone(),
        router_id: options.router_id,
    };
    let mut process = RouterProcess::start(&options.frontend, planes).await?;
    let told = shutdown::requested()?;
    process.introduce();
    tokio::select! {
        () = told => {}
        error = process.http.failed() => return Err(error.into()),
    }
    process.stop().await;
    Ok(())
}
