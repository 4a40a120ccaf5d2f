//! A worker process: one engine behind the request plane, several simulated ones, or the ranks of an engine next door.
//!
//! An engine next door can end and start again while this process runs. Each of its runs is an incarnation of the
//! workers with an epoch of its own: when the engine is gone, the workers drain and leave, and the process waits for the
//! engine. This happens within the process, so that no supervisor is needed, and a worker started by hand behaves like
//! one of `runtime up`.

use anyhow::bail;
use signalbox_discovery::Discovery;
use signalbox_request_plane::NatsTransport;

use crate::{
    child_protocol::{self, ChildNotice},
    console,
    planes::{self, Events},
    settings::{EngineKind, WorkerSettings},
    shutdown,
};

use self::incarnation::Incarnation;

mod incarnation;
mod next_door;
mod own_engine;

/// `runtime worker`.
pub(crate) async fn run(settings: WorkerSettings) -> anyhow::Result<()> {
    serve(settings, false).await
}

/// A worker of `runtime up`: its settings come from the parent, and so does its end.
pub(crate) async fn run_child() -> anyhow::Result<()> {
    let outcome = match child_protocol::read_settings() {
        Ok(settings) => serve(settings, true).await,
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

async fn serve(settings: WorkerSettings, is_child: bool) -> anyhow::Result<()> {
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
        false => Some(own_engine::start_workers(&settings, nats.clone(), is_child).await?),
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
                workers = next_door::start_workers(&settings, nats.clone(), is_child) => workers?,
                () = &mut stop => break,
            },
        };
        let incarnation = Incarnation::announce(workers, etcd.as_deref(), &events)?;
        report_ready(&settings, &incarnation, is_child);
        let reason = tokio::select! {
            () = &mut stop => {
                let withdraw = async {
                    if let Some(etcd) = &etcd {
                        etcd.withdraw().await;
                    }
                };
                tokio::join!(withdraw, incarnation.end(settings.grace));
                return Ok(());
            }
            reason = incarnation.failed() => reason,
        };
        if !is_next_door {
            bail!("the engine failed: {reason}");
        }
        report_away(&settings, reason, is_child);
        // Answers that still arrive may end; those of an engine that sends nothing fail by themselves.
        incarnation.end(settings.grace).await;
    }
    if let Some(etcd) = etcd {
        etcd.withdraw().await;
    }
    Ok(())
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
