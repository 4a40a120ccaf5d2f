//! Examines the workers of a cluster: reads the card and the report of each.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use signalbox_discovery::{Discovery, MemoryDiscovery, Watch, WorkerChange};
use signalbox_protocol::{Call, ParityState, WorkerCard, WorkerReport};
use signalbox_request_plane::{CallParts, LinkConfig, LinkHandle, NatsTransport, ResponseEvent};
use tokio::time::{Instant, timeout, timeout_at};

use super::verdict::{Finding, Report};
use crate::{
    planes::{self, Events},
    settings::PlaneSettings,
    static_workers::StaticAddresses,
};

/// How long workers are waited for: a static address is dialled, and etcd is read.
const FOUND_WITHIN: Duration = Duration::from_secs(5);
/// Longest time for a worker's report, which it sends at once.
const REPORT_WITHIN: Duration = Duration::from_secs(5);
/// Between two reports, of which the first one is read.
const REPORT_EVERY_MS: u64 = 1_000;

/// Examines all workers that are found. An empty list is none.
///
/// # Errors
/// The settings of a plane cannot be used.
pub(crate) async fn examine(settings: &PlaneSettings) -> anyhow::Result<Vec<Report>> {
    // Not registered anywhere: routers and workers do not see the doctor.
    let etcd = planes::start_etcd(settings).await?;
    let events = Events::of_worker(settings, "doctor").await?;
    let nats = events.nats.clone();
    let links = LinkConfig {
        nats: nats
            .map(|nats| NatsTransport::new(nats, &settings.namespace))
            .transpose()?,
        ..LinkConfig::default()
    };
    let known_by_address = Arc::new(MemoryDiscovery::default());
    let dialled = StaticAddresses::new(known_by_address.clone(), links.clone());
    for address in &settings.static_workers {
        dialled.add(address.clone()).await;
    }
    let mut cards = Vec::new();
    collect(
        known_by_address.watch(),
        settings.static_workers.len(),
        &mut cards,
    )
    .await;
    let mut reports: Vec<Report> = settings
        .static_workers
        .iter()
        .filter(|address| !cards.iter().any(|card| card.address == **address))
        .map(|address| unanswered(address))
        .collect();
    if let Some(etcd) = etcd {
        collect(etcd.watch(), usize::MAX, &mut cards).await;
    }
    for card in cards {
        let findings = match report_of(&card, links.clone()).await {
            Ok(report) => judge(&card, &report),
            Err(reason) => vec![Finding::blind(
                format!("no report from the worker: {reason}"),
                format!("check that {} can be reached from here", card.address),
            )],
        };
        reports.push(Report {
            subject: format!("{} at {}", card.id, card.address),
            description: describe(&card),
            findings,
        });
    }
    reports.sort_by(|one, other| one.subject.cmp(&other.subject));
    Ok(reports)
}

/// Adds the cards of workers that are present, until there are `enough` more or [`FOUND_WITHIN`] has passed.
async fn collect(mut workers: Watch, enough: usize, cards: &mut Vec<Arc<WorkerCard>>) {
    let before = cards.len();
    let deadline = Instant::now() + FOUND_WITHIN;
    while cards.len().saturating_sub(before) < enough {
        match timeout_at(deadline, workers.next()).await {
            Ok(WorkerChange::Joined(card)) => cards.push(card),
            Ok(WorkerChange::Left { id, .. }) => cards.retain(|card| card.id != id),
            Err(_) => return,
        }
    }
}

/// The report on an address where no worker is.
fn unanswered(address: &str) -> Report {
    Report {
        subject: address.into(),
        description: "no worker".into(),
        findings: vec![Finding::blind(
            format!("no worker answers within {} s", FOUND_WITHIN.as_secs()),
            "start the worker, or open its port to this machine",
        )],
    }
}

fn describe(card: &WorkerCard) -> String {
    let version = if card.engine_version.is_empty() {
        String::new()
    } else {
        format!(" {}", card.engine_version)
    };
    format!(
        "{}{version}, model {}, block size {}, KV blocks {}",
        card.engine, card.model, card.block_size, card.capacity.kv_blocks
    )
}

/// What the worker reports, judged.
fn judge(card: &WorkerCard, report: &WorkerReport) -> Vec<Finding> {
    let mut findings = Vec::new();
    if card.kv_events {
        findings.push(Finding::good(format!(
            "the worker publishes KV events: {} batches so far",
            report.next_kv_batch
        )));
    } else if report.parity.state != ParityState::Fallback {
        findings.push(Finding::blind(
            "the worker publishes no KV events",
            "turn KV events on at its engine; `runtime doctor --upstream URL` names the flags",
        ));
    }
    let mend = "run `runtime doctor --upstream URL` beside the engine for the details";
    findings.push(match report.parity.state {
        ParityState::Exact => Finding::good("by its traffic, routers know its KV cache exactly"),
        ParityState::Degraded => Finding::degraded(&report.parity.cause, mend),
        ParityState::Fallback => Finding::blind(&report.parity.cause, mend),
    });
    findings
}

/// The worker's report on itself.
async fn report_of(card: &WorkerCard, links: LinkConfig) -> Result<WorkerReport, String> {
    let link = LinkHandle::start(card.address.clone(), links, None);
    let read = async {
        let call = CallParts {
            call: Call::WatchLoad {
                interval_ms: REPORT_EVERY_MS,
            },
            tokens: Vec::new(),
            body: Default::default(),
        };
        let mut stream = link.open(call).map_err(|error| error.to_string())?;
        while let Some(event) = stream.next().await {
            if let ResponseEvent::Data { bytes, .. } = event.map_err(|error| error.to_string())? {
                return serde_json::from_slice(&bytes).map_err(|error| error.to_string());
            }
        }
        Err("the worker ended the stream".into())
    };
    let outcome = timeout(REPORT_WITHIN, read).await;
    link.close();
    outcome.unwrap_or_else(|_| Err(format!("none within {} s", REPORT_WITHIN.as_secs())))
}

#[cfg(test)]
mod tests {
    use signalbox_protocol::{Parity, WorkerCapacity, WorkerEpoch, WorkerRole};

    use super::{super::verdict::Verdict, *};

    fn card(kv_events: bool) -> WorkerCard {
        WorkerCard {
            id: "gpu-1".parse().unwrap(),
            epoch: WorkerEpoch(1),
            model: "m".into(),
            address: "gpu-1:7000".into(),
            engine: "vllm".into(),
            engine_version: "0.32.0".into(),
            reads_body: true,
            continues_answers: true,
            abilities: Vec::new(),
            block_size: 16,
            context_length: 4096,
            artifacts_digest: "d".into(),
            role: WorkerRole::Aggregated,
            capacity: WorkerCapacity {
                kv_blocks: 64,
                max_sequences: 1,
                max_waiting: 1,
            },
            kv_events,
            labels: Default::default(),
        }
    }

    #[test]
    fn a_workers_own_verdict_counts() {
        let report = |state, cause: &str| WorkerReport {
            parity: Parity {
                state,
                cause: cause.into(),
            },
            ..WorkerReport::default()
        };
        for (kv_events, report, verdict, what) in [
            (true, report(ParityState::Exact, ""), Verdict::Exact, "exactly"),
            (
                true,
                report(ParityState::Degraded, "events lag"),
                Verdict::Degraded,
                "events lag",
            ),
            (
                true,
                report(ParityState::Fallback, "events stopped"),
                Verdict::Blind,
                "events stopped",
            ),
            (
                false,
                report(ParityState::Exact, ""),
                Verdict::Blind,
                "no KV events",
            ),
        ] {
            let findings = judge(&card(kv_events), &report);
            let worst = findings.iter().max_by_key(|finding| finding.allows).unwrap();
            assert_eq!(worst.allows, verdict, "{findings:?}");
            assert!(
                findings.iter().any(|finding| finding.what.contains(what)),
                "{findings:?}"
            );
        }
    }
}
