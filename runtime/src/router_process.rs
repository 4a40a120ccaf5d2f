//! A router process: everything between its clients and its workers.

use std::{
    cell::Cell,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use signalbox_discovery::{Discovery, EtcdDiscovery, MemoryDiscovery, Registration};
use signalbox_http::{HttpServer, RunningHttp};
use signalbox_policy_host::{PolicyEngine, PolicyLimits, PolicyRegistry};
use signalbox_protocol::{RouterCard, RouterId};
use signalbox_request_plane::{LinkConfig, NatsTransport};
use signalbox_router::{AuditLog, DecisionSampler, ReplicaConfig, Router, RouterConfig, decision_feed};

use crate::{
    cli::Command,
    console,
    decision_writer::{self, DecisionWriter, Outputs, Publisher},
    open_files,
    planes::{self, Events},
    reload::{Change, Hangups},
    settings::{DecisionSettings, RouterSettings},
    shutdown,
    static_workers::StaticAddresses,
    telemetry,
};

/// The parts of a router, bound to their addresses.
pub(crate) struct RouterProcess {
    pub(crate) http: RunningHttp,
    pub(crate) router: Router,
    /// The workers that are known by address.
    pub(crate) workers: StaticAddresses,
    registration: Option<(Arc<EtcdDiscovery>, Registration)>,
    /// Writes decisions, if they go anywhere.
    decisions: Option<DecisionWriter>,
    /// It can change while the process runs.
    grace: Rc<Cell<Duration>>,
}

impl RouterProcess {
    /// Builds every part: policies, planes, router, and HTTP last.
    pub(crate) async fn start(settings: RouterSettings) -> anyhow::Result<Self> {
        let metrics = telemetry::start_metrics()?;
        let engine = PolicyEngine::new(PolicyLimits::for_threads(settings.http.threads.max(1)))
            .context("the policy engine cannot start")?;
        let policies = PolicyRegistry::new(engine, &settings.policy)?;
        let RouterSettings {
            router_id, planes, ..
        } = &settings;
        let id = incarnation_id(router_id)?;
        let etcd = planes::start_etcd(planes).await?;
        let events = Events::of_router(planes, router_id).await?;

        let known_by_address = Arc::new(MemoryDiscovery::default());
        let nats = events.nats.clone();
        let links = LinkConfig {
            nats: nats
                .map(|nats| NatsTransport::new(nats, &planes.namespace))
                .transpose()?,
            ..LinkConfig::default()
        };
        let workers = StaticAddresses::new(known_by_address.clone(), links.clone());
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
        let policy_store = events.policy_store(&planes.namespace, settings.policy_dir.as_deref())?;
        let audit = match settings.audit_log.clone() {
            Some(path) => AuditLog::with_file(id.to_string(), path.clone())
                .with_context(|| format!("the audit log {} cannot be written", path.display()))?,
            None => AuditLog::of_router(id.to_string()),
        };
        let broadcast = events
            .broadcast(&planes.namespace)
            .filter(|_| settings.replica_sync);
        let (sampler, decisions) =
            start_decisions(&settings.decisions, &id, &events, &planes.namespace)?.unzip();
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
            audit,
            decisions: sampler,
            links,
            index_bytes: settings.index_bytes,
            breakers: settings.breakers,
            token_timeouts: settings.token_timeouts,
        });
        for address in &planes.static_workers {
            workers.add(address.clone()).await;
        }
        let mut http = settings.http;
        open_files::limit_connections(
            &mut http,
            settings.max_connections,
            settings.max_connections_per_address,
        );
        let http = HttpServer::bind(http, router.clone(), metrics)?.run()?;
        let card = RouterCard {
            id,
            http: http.public_address().to_string(),
            admin: http.admin_address().to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let registration = etcd.map(|etcd| {
            let registration = etcd.register_router(card);
            (etcd, registration)
        });
        Ok(Self {
            http,
            router,
            workers,
            registration,
            decisions,
            grace: Rc::new(Cell::new(settings.grace)),
        })
    }

    /// Prints the addresses of both listeners.
    pub(crate) fn introduce(&self) {
        console::line(format_args!("OpenAI API   http://{}", self.http.public_address()));
        console::line(format_args!("admin API    http://{}", self.http.admin_address()));
    }

    /// Follows SIGHUP.
    fn reload_at(&self, hangups: Hangups) -> anyhow::Result<()> {
        let (token, grace) = (self.http.admin_token(), self.grace.clone());
        let settings = |command| match command {
            Command::Serve(options) => RouterSettings::try_from(*options),
            _ => anyhow::bail!("this process is a router"),
        };
        hangups.follow(settings, move |key, settings: &RouterSettings| {
            match key {
                "admin_token" => {
                    let next = settings.http.admin_token.as_deref();
                    token
                        .replace(next.unwrap_or_default())
                        .map_err(anyhow::Error::msg)?;
                }
                "grace_s" => grace.set(settings.grace),
                _ => return Ok(Change::NeedsRestart),
            }
            Ok(Change::Made)
        })
    }

    /// Stops in the order of the data flow: new requests, requests under way, then the links to the workers.
    pub(crate) async fn stop(self) {
        self.http.stop(self.grace.get()).await;
        // Not before: other routers count the requests in flight of a registered router.
        if let Some((etcd, registration)) = self.registration {
            drop(registration);
            etcd.withdraw().await;
        }
        self.router.stop();
        if let Some(decisions) = self.decisions {
            decisions.stop().await;
        }
    }
}

/// Starts to write decisions, if the settings name an output.
fn start_decisions(
    settings: &DecisionSettings,
    id: &RouterId,
    events: &Events,
    namespace: &str,
) -> anyhow::Result<Option<(DecisionSampler, DecisionWriter)>> {
    let nats = events.nats.clone().filter(|_| settings.publishes);
    if settings.file.is_none() && nats.is_none() {
        return Ok(None);
    }
    let outputs = Outputs {
        file: decision_writer::open_file(settings.file.as_ref())?,
        subject: nats.map(|nats| Publisher::start(nats, format!("signalbox.{namespace}.decisions.{id}"))),
    };
    let (sampler, feed) = decision_feed(id.clone(), settings.share);
    Ok(Some((sampler, DecisionWriter::start(feed, outputs)?)))
}

/// A name that no other incarnation of this router has.
fn incarnation_id(name: &str) -> anyhow::Result<RouterId> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Routers of one deployment have one name and may start at the same moment. The longest name, 40 bytes, leaves room
    // for 13 digits of time and 10 of chance.
    let drawn = rand::random_range(0..10_000_000_000_u64);
    Ok(format!("{name}-{}{drawn:010}", started.as_millis()).parse()?)
}

/// `runtime serve`.
pub(crate) async fn run(settings: RouterSettings, hangups: Hangups) -> anyhow::Result<()> {
    let mut process = RouterProcess::start(settings).await?;
    let stop_requested = shutdown::requested()?;
    process.reload_at(hangups)?;
    process.introduce();
    tokio::select! {
        () = stop_requested => {}
        error = process.http.failed() => return Err(error.into()),
    }
    process.stop().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn routers_of_one_name_that_start_at_the_same_moment_have_different_ids() {
        let name = "r".repeat(40);
        let ids: BTreeSet<_> = (0..20).map(|_| incarnation_id(&name).unwrap()).collect();
        assert_eq!(ids.len(), 20);
    }
}
