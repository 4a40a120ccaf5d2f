//! A router process: everything between its clients and its workers.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;
use anyhow::{Context, bail};
use signalbox_discovery::MemoryDiscovery;
use signalbox_event_plane::MemoryPlane;
use signalbox_http::{HttpConfig, HttpServer, RunningHttp};
use signalbox_policy_host::{PolicyDepot, PolicyEngine, PolicyLimits};
use signalbox_request_plane::LinkConfig;
use signalbox_router::{RouterConfig, RouterShared};

use crate::{
    cli::{FrontendOptions, ServeOptions},
    console, shutdown,
    static_workers::{AddWorker, StaticWorkers},
    telemetry,
};

/// The parts of a router, bound to their addresses.
pub(crate) struct RouterProcess {
    pub(crate) http: RunningHttp,
    pub(crate) router: RouterShared,
    /// Who the workers are.
    pub(crate) workers: Addr<StaticWorkers>,
    grace: Duration,
}

impl RouterProcess {
    /// Builds every part, top of the diagram last: policies, planes, router, HTTP.
    pub(crate) fn start(options: &FrontendOptions) -> anyhow::Result<Self> {
        let metrics = telemetry::start_metrics()?;
        let engine = PolicyEngine::new(PolicyLimits::default()).context("the policy engine cannot start")?;
        let policies = PolicyDepot::new(engine, &options.policy)?;
        let discovery = Arc::new(MemoryDiscovery::default());
        let links = LinkConfig::default();
        let workers = StaticWorkers::new(discovery.clone(), links.clone()).start();
        let router = RouterShared::start(RouterConfig {
            discovery,
            events: MemoryPlane::new(),
            feeds_events: true,
            policies,
            links,
            index_bytes: options.index_mib as usize * 1024 * 1024,
        });
        let mut config = HttpConfig {
            public: options.http,
            admin: options.admin,
            max_body_bytes: options.max_body_mib as usize * 1024 * 1024,
            request_timeout: Duration::from_secs(options.request_timeout_s.into()),
            admin_token: options.admin_token.clone(),
            ..HttpConfig::default()
        };
        if let Some(threads) = options.http_threads {
            config.threads = threads.into();
        }
        let http = HttpServer::bind(config, router.clone(), metrics)?.run()?;
        Ok(Self {
            http,
            router,
            workers,
            grace: Duration::from_secs(options.grace_s.into()),
        })
    }

    /// Ends in the order of the arrows: no new requests, those under way, then the links to the workers.
    pub(crate) async fn stop(self) {
        self.http.stop(self.grace).await;
        self.router.stop();
    }
}

/// `runtime serve`.
pub(crate) async fn run(options: ServeOptions) -> anyhow::Result<()> {
    let addresses = static_addresses(&options.discovery)?;
    let mut process = RouterProcess::start(&options.frontend)?;
    let told = shutdown::requested()?;
    for address in addresses {
        process.workers.send(AddWorker(address)).await?;
    }
    console::line(format_args!(
        "OpenAI API   http://{}",
        process.http.public_address()
    ));
    console::line(format_args!(
        "admin API    http://{}",
        process.http.admin_address()
    ));
    tokio::select! {
        () = told => {}
        error = process.http.failed() => return Err(error.into()),
    }
    process.stop().await;
    Ok(())
}

/// The addresses of `static://host:port[,host:port…]`.
fn static_addresses(url: &str) -> anyhow::Result<Vec<String>> {
    let Some(list) = url.strip_prefix("static://") else {
        bail!("--discovery {url:?} is not known; give static://host:port[,host:port…]");
    };
    let is_address = |address: &&str| match address.rsplit_once(':') {
        Some((host, port)) => !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0),
        None => false,
    };
    let addresses: Vec<&str> = list.split(',').map(str::trim).collect();
    if let Some(wrong) = addresses.iter().find(|address| !is_address(address)) {
        bail!("--discovery names the worker {wrong:?}; give host:port");
    }
    Ok(addresses.into_iter().map(String::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_discovery_names_what_is_wrong() {
        assert_eq!(static_addresses("static://a:1, b:2").unwrap(), ["a:1", "b:2"]);
        for (url, word) in [
            ("etcd://a:1", "etcd"),
            ("static://a", "\"a\""),
            ("static://", "\"\""),
            ("static://a:0", "a:0"),
        ] {
            assert!(
                static_addresses(url).unwrap_err().to_string().contains(word),
                "{url}"
            );
        }
    }
}
