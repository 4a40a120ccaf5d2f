//! `/live`, `/ready` and `/health`: whether the process runs, whether it can take traffic, and which workers it has.
//!
//! `/ready` and `/health` report the status of NATS and etcd, but do not depend on it: a router goes on serving with
//! the workers and KV blocks it already has while both are down. Nor does `/health` depend on `kv`, the exactness of
//! the router's knowledge of the workers' KV caches: where it is low, requests are answered all the same, only later.

use std::collections::{BTreeMap, BTreeSet};

use actix_web::{HttpRequest, HttpResponse, web::Data};
use serde_json::{Value, json};
use signalbox_protocol::{ParityState, PlaneStatus, WorkerRole};
use signalbox_router::{IdConflict, InstanceView, WorkerPhase};

use crate::{
    admin::fleet::{kv_json, phase_name},
    error,
    frontend::Frontend,
};

/// The endpoint of every worker.
const ENDPOINT: &str = "generate";

/// 200 as long as the process answers, also while it drains.
pub(crate) async fn live() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "live"}))
}

/// 200 from the first model that is served and the first reading of the stored policies until the process drains.
pub(crate) async fn ready(frontend: Data<Frontend>) -> HttpResponse {
    let models: Vec<String> = frontend
        .router
        .models()
        .into_iter()
        .map(|model| model.name)
        .collect();
    let planes = planes(&frontend);
    let not_ready = |message: &str| {
        let report = json!({"status": "not_ready", "message": message, "planes": planes});
        HttpResponse::ServiceUnavailable().json(report)
    };
    if frontend.shared.traffic.is_draining() {
        not_ready("shutting down")
    } else if models.is_empty() {
        not_ready("no worker serves a model yet")
    } else if !frontend.router.policy_replicator().has_read_store() {
        not_ready("the stored policies were not read yet")
    } else {
        HttpResponse::Ok().json(json!({"status": "ready", "models": models, "planes": planes}))
    }
}

/// The status of each plane, by name.
fn planes(frontend: &Frontend) -> BTreeMap<&'static str, PlaneStatus> {
    frontend.router.planes().into_iter().collect()
}

/// The workers, in the shape of Dynamo's `/health`. 200 while at least one is ready and the process does not drain.
pub(crate) async fn health(request: HttpRequest, frontend: Data<Frontend>) -> HttpResponse {
    let (router, namespace) = (frontend.router.clone(), frontend.namespace.clone());
    let (planes, draining) = (planes(&frontend), frontend.shared.traffic.is_draining());
    let write = move || {
        let (healthy, mut report) = report(&namespace, &router.instances(), draining);
        report["planes"] = json!(planes);
        report["id_conflicts"] = conflicts_json(&router.id_conflicts());
        (healthy, report.to_string())
    };
    let (healthy, report) = match frontend.shared.prepare_pool.report(write).await {
        Ok(written) => written,
        Err(error) => return error::response(error, &error::request_id(&request)),
    };
    let mut response = if healthy {
        HttpResponse::Ok()
    } else {
        HttpResponse::ServiceUnavailable()
    };
    response.content_type("application/json").body(report)
}

/// The ids that two workers have. The one at the address gets no requests.
fn conflicts_json(conflicts: &[IdConflict]) -> Value {
    let conflict =
        |conflict: &IdConflict| json!({"instance_id": conflict.id, "displaced": {"tcp": conflict.displaced}});
    conflicts.iter().map(conflict).collect()
}

fn report(namespace: &str, instances: &[InstanceView], draining: bool) -> (bool, Value) {
    let healthy = !draining
        && instances
            .iter()
            .any(|instance| instance.state == WorkerPhase::Ready);
    let endpoints: BTreeSet<String> = instances
        .iter()
        .map(|instance| format!("{namespace}.{}.{ENDPOINT}", component(instance.card.role)))
        .collect();
    let report = json!({
        "status": if healthy { "healthy" } else { "unhealthy" },
        "kv": kv_of_all(instances),
        "endpoints": endpoints,
        "refused": instances.iter().filter(|instance| instance.state == WorkerPhase::Refused).count(),
        "instances": instances.iter().map(|instance| describe(namespace, instance)).collect::<Vec<_>>(),
    });
    (healthy, report)
}

/// How exact the router's knowledge of its ready workers is as a whole: that of each, where all are equal, otherwise
/// degraded.
fn kv_of_all(instances: &[InstanceView]) -> ParityState {
    let ready = instances
        .iter()
        .filter(|instance| instance.state == WorkerPhase::Ready);
    let mut states = ready.map(|instance| instance.kv.state);
    let first = states.next().unwrap_or_default();
    if states.all(|state| state == first) {
        first
    } else {
        ParityState::Degraded
    }
}

fn describe(namespace: &str, instance: &InstanceView) -> Value {
    let card = &instance.card;
    json!({
        "namespace": namespace,
        "component": component(card.role),
        "endpoint": ENDPOINT,
        "instance_id": card.id,
        "transport": {"tcp": card.address},
        "model": card.model,
        "adapters": instance.adapters.iter().map(|adapter| &adapter.name).collect::<Vec<_>>(),
        "engine": card.engine,
        "state": phase_name(instance.state),
        "kv": kv_json(&instance.kv),
    })
}

fn component(role: WorkerRole) -> &'static str {
    match role {
        WorkerRole::Aggregated => "worker",
        WorkerRole::Prefill => "prefill",
        WorkerRole::Decode => "decode",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use signalbox_protocol::{Parity, WorkerCapacity, WorkerCard, WorkerEpoch};
    use signalbox_router::EventState;

    use super::*;

    fn instance(state: WorkerPhase) -> InstanceView {
        let card = WorkerCard {
            id: "worker-0".parse().unwrap(),
            epoch: WorkerEpoch(1),
            model: "m".into(),
            address: "127.0.0.1:7000".into(),
            engine: "sim".into(),
            block_size: 16,
            context_length: 2_048,
            artifacts_digest: String::new(),
            role: WorkerRole::Aggregated,
            capacity: WorkerCapacity::default(),
            engine_version: String::new(),
            reads_body: false,
            continues_answers: false,
            abilities: Vec::new(),
            kv_events: true,
            labels: Default::default(),
        };
        let card = Arc::new(card);
        InstanceView {
            card,
            state,
            version: String::new(),
            listed: true,
            adapters: Vec::new(),
            others: Default::default(),
            requests: 0,
            prefill_tokens: 0,
            decode_blocks: 0,
            index_blocks: 0,
            events: EventState::None,
            kv: Parity::default(),
            latency: Default::default(),
            health: Default::default(),
        }
    }

    #[test]
    fn health_needs_one_ready_worker_and_lists_all_workers() {
        let (healthy, report) = report(
            "ns",
            &[instance(WorkerPhase::Refused), instance(WorkerPhase::Ready)],
            false,
        );
        assert!(healthy);
        assert_eq!(report["status"], "healthy");
        assert_eq!(report["endpoints"], json!(["ns.worker.generate"]));
        assert_eq!(report["refused"], 1);
        let first = &report["instances"][0];
        assert_eq!(
            (&first["instance_id"], &first["state"]),
            (&json!("worker-0"), &json!("refused"))
        );
        assert_eq!(first["transport"]["tcp"], "127.0.0.1:7000");
        assert_eq!(
            (&first["component"], &first["endpoint"]),
            (&json!("worker"), &json!("generate"))
        );
    }

    #[test]
    fn a_router_without_ready_workers_or_that_drains_is_unhealthy() {
        assert!(!report("ns", &[], false).0);
        assert!(!report("ns", &[instance(WorkerPhase::Draining)], false).0);
        assert_eq!(
            report("ns", &[instance(WorkerPhase::Ready)], true).1["status"],
            "unhealthy"
        );
    }

    #[test]
    fn the_kv_state_is_shown_for_each_worker_and_all_and_fails_no_health_check() {
        use ParityState::*;
        let with = |state: ParityState| {
            let kv = Parity::impaired(state, "a cause");
            InstanceView {
                kv,
                ..instance(WorkerPhase::Ready)
            }
        };
        let table = [
            (vec![], Exact),
            (vec![Exact, Exact], Exact),
            (vec![Exact, Fallback], Degraded),
            (vec![Degraded, Fallback], Degraded),
            (vec![Fallback, Fallback], Fallback),
        ];
        for (states, expected) in table {
            let instances: Vec<_> = states.iter().copied().map(with).collect();
            let (healthy, report) = report("ns", &instances, false);
            assert_eq!(report["kv"], json!(expected), "{states:?}");
            assert_eq!(healthy, !states.is_empty());
            for (state, instance) in states.iter().zip(report["instances"].as_array().unwrap()) {
                assert_eq!(instance["kv"], json!({"state": state, "cause": "a cause"}));
            }
        }
    }
}
