//! A worker process: one engine behind the request plane, several simulated ones, or the ranks of an engine next door.
//!
//! An engine next door can end and start again while this process runs. Each of its runs is an incarnation of the
//! workers with an epoch of its own: when the engine is gone, the workers drain and leave, and the process waits for the
//! engine. This happens within the process, so that no supervisor is needed, and a worker started by hand behaves like
//! one of `runtime up`.

use std::{cell::Cell, net::SocketAddr, rc::Rc, time::Duration};

use anyhow::bail;
use signalbox_discovery::Discovery;
use signalbox_http::{WorkerReadiness, WorkerStatusServer};
use signalbox_request_plane::NatsTransport;

use crate::{
    child_protocol::{self, ChildNotice},
    cli::Command,
    console,
    planes::{self, Events},
    reload::{Change, Hangups},
    settings::{EngineKind, WorkerSettings},
    shutdown, telemetry,
};

use self::incarnation::Incarnation;

mod incarnation;
mod next_door;
mod own_engine;

/// `runtime worker`.
pub(crate) async fn run(settings: WorkerSettings, hangups: Hangups) -> anyhow::Result<()> {
    let grace = Rc::new(Cell::new(settings.grace));
    let changing = grace.clone();
    let settings_of = |command| match command {
        Command::Worker(options) => WorkerSettings::try_from(*options),
        _ => anyhow::bail!("this process is a worker"),
    };
    hangups.follow(settings_of, move |key, settings: &WorkerSettings| {
        if key != "grace_s" {
            return Ok(Change::NeedsRestart);
        }
        changing.set(settings.grace);
        Ok(Change::Made)
    })?;
    serve(settings, grace, false).await
}

/// A worker of `runtime up`: its settings come from the parent, and so does its end.
pub(crate) async fn run_child() -> anyhow::Result<()> {
    let outcome = match child_protocol::read_settings() {
        Ok(settings) => {
            let grace = Rc::new(Cell::new(settings.grace));
            serve(settings, grace, true).await
        }
        Err(error) => Err(error),
    };
    let Err(error) = outcome else {
        return Ok(());
    };
    // The parent prints the reason; an error printed here too would appear twice.
    ChildNotice::Failed {
        reason: format!("{error:#}"),
    }
    .send();
    std::process::exit(1)
}

async fn serve(settings: WorkerSettings, grace: Rc<Cell<Duration>>, is_child: bool) -> anyhow::Result<()> {
    let readiness = WorkerReadiness::not_yet("the worker is starting");
    let _status = settings
        .metrics
        .map(|address| start_status(&settings, address, readiness.clone()))
        .transpose()?;
    let etcd = planes::start_etcd(&settings.planes).await?;
    let events = Events::of_worker(&settings.planes, settings.name.as_str()).await?;
    let nats = match &events.nats {
        Some(connection) if settings.requests_over_nats => Some(NatsTransport::new(
            connection.clone(),
            &settings.planes.namespace,
        )?),
        _ => None,
    };
    let is_next_door = settings.engine.kind == EngineKind::Openai;
    // A signal while a model is loaded into this process ends the process at once.
    let mut own_workers = match is_next_door {
        true => None,
        false => Some(own_engine::start_workers(&settings, nats.clone(), etcd.as_deref(), is_child).await?),
    };
    let stop_requested = shutdown::requested()?;
    if events.nats.is_some() {
        planes::report("events", events.plane.status());
    }
    if let Some(etcd) = &etcd {
        planes::report("discovery", etcd.status());
    }
    let stop = async {
        tokio::select! {
            () = stop_requested => {}
            () = child_protocol::parent_gone(), if is_child => {}
        }
    };
    tokio::pin!(stop);
    loop {
        let workers = match own_workers.take() {
            Some(workers) => workers,
            None => tokio::select! {
                workers = next_door::start_workers(&settings, nats.clone(), etcd.as_deref(), is_child) => workers?,
                () = &mut stop => break,
            },
        };
        let incarnation = Incarnation::announce(workers, etcd.as_deref(), &events)?;
        report_ready(&settings, &incarnation, is_child);
        readiness.set_ready();
        let reason = tokio::select! {
            () = &mut stop => {
                let withdraw = async {
                    if let Some(etcd) = &etcd {
                        etcd.withdraw().await;
                    }
                };
                readiness.set_away("the worker is shutting down");
                tokio::join!(withdraw, incarnation.end(grace.get()));
                return Ok(());
            }
            reason = incarnation.failed() => reason,
        };
        if !is_next_door {
            bail!("the engine failed: {reason}");
        }
        readiness.set_away(&format!("the engine is gone: {reason}"));
        report_away(&settings, reason, is_child);
        // Answers that still arrive may end; those of an engine that sends nothing fail by themselves.
        incarnation.end(grace.get()).await;
    }
    if let Some(etcd) = etcd {
        etcd.withdraw().await;
    }
    Ok(())
}

/// Serves `/metrics`, `/live` and `/ready` from the start of the process on, so that a model that takes minutes to load is
/// seen to be loading.
fn start_status(
    settings: &WorkerSettings,
    address: SocketAddr,
    readiness: WorkerReadiness,
) -> anyhow::Result<WorkerStatusServer> {
    let metrics = telemetry::start_metrics()?;
    let server = WorkerStatusServer::start(address, metrics, readiness)?;
    console::line(format_args!(
        "worker {} metrics http://{}/metrics",
        settings.name,
        server.address()
    ));
    Ok(server)
}

fn report_ready(settings: &WorkerSettings, incarnation: &Incarnation, is_child: bool) {
    let addresses = incarnation.addresses();
    if is_child {
        return ChildNotice::Ready { addresses }.send();
    }
    let card = incarnation.card();
    console::line(format_args!(
        "worker {} serves {} ({}) to routers at {}",
        settings.name,
        card.model,
        card.engine,
        addresses.join(",")
    ));
}

fn report_away(settings: &WorkerSettings, reason: String, is_child: bool) {
    tracing::warn!(worker.id = %settings.name, reason, "the engine is gone; the worker waits for it");
    if is_child {
        ChildNotice::Away { reason }.send();
    } else {
        console::line(format_args!(
            "worker {} waits for its engine: {reason}",
            settings.name
        ));
    }
}
