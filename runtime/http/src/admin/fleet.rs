//! `GET /admin/v1/workers`, `GET /admin/v1/index` and `GET /metrics`.

use actix_web::{HttpResponse, web::Data};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Map, Value, json};
use signalbox_protocol::Parity;
use signalbox_router::{
    BreakerState, EventState, IndexView, IndexedWorkerView, InstanceView, MeasuredLatency, Router,
    WorkerHealth, WorkerPhase,
};

use super::{Admin, present_series::present_series};

/// Every present worker: its card, its state, the LoRA adapters that its engine has loaded now, the load that this
/// router counts for it, how exact this router's knowledge of its KV cache is, and its latency as this router
/// measures it.
pub(crate) async fn workers(admin: Data<Admin>) -> HttpResponse {
    let workers: Vec<Value> = admin.router.instances().iter().map(worker_json).collect();
    HttpResponse::Ok().json(json!({"workers": workers}))
}

fn worker_json(instance: &InstanceView) -> Value {
    json!({
        "card": *instance.card,
        "state": phase_name(instance.state),
        "version": instance.version,
        "listed": instance.listed,
        "adapters": instance.adapters,
        "requests": instance.requests,
        "active_prefill_tokens": instance.prefill_tokens,
        "active_decode_blocks": instance.decode_blocks,
        "other_routers": instance.others,
        "index_blocks": instance.index_blocks,
        "kv_events": event_state_name(instance.events),
        "kv": kv_json(&instance.kv),
        "latency": latency_json(instance.latency),
        "health": health_json(&instance.health),
    })
}

/// A worker's parity as `/health` and the admin API write it. The cause is empty for an exact one.
pub(crate) fn kv_json(parity: &Parity) -> Value {
    json!({"state": parity.state, "cause": parity.cause})
}

/// Whether a worker is left out because it fails: `closed` is the breaker of one that gets requests.
fn health_json(health: &WorkerHealth) -> Value {
    let breaker = match health.state {
        BreakerState::Closed => "closed",
        BreakerState::Open => "open",
        BreakerState::HalfOpen => "half_open",
    };
    json!({
        "breaker": breaker,
        "recent_failures": health.recent_failures,
        "last_failure": health.last_failure,
    })
}

/// Figures that are not measured yet are null.
fn latency_json(latency: MeasuredLatency) -> Value {
    // In thousandths: more digits are noise.
    let rounded = |figure: Option<f32>| figure.map(|figure| (f64::from(figure) * 1e3).round() / 1e3);
    json!({
        "ttft_ms": rounded(latency.ttft_ms),
        "uncached_prompt_tokens": rounded(latency.uncached_prompt_tokens),
        "itl_ms": rounded(latency.itl_ms),
    })
}

/// The KV index in figures: totals, and the blocks and digest of each worker.
pub(crate) async fn index(admin: Data<Admin>) -> HttpResponse {
    HttpResponse::Ok().json(index_json(&admin.router.index_view()))
}

fn index_json(index: &IndexView) -> Value {
    let workers: Map<_, _> = index.workers.iter().map(indexed_worker_json).collect();
    json!({
        "memberships": index.memberships,
        "blocks": index.blocks,
        "bytes": index.bytes,
        "refused_stores": index.refused_stores,
        "evicted": index.evicted,
        "workers": workers,
    })
}

fn indexed_worker_json(worker: &IndexedWorkerView) -> (String, Value) {
    let figures = json!({
        "epoch": worker.epoch,
        "blocks": worker.blocks,
        "digest": format!("{:016x}", worker.digest),
        "partial": worker.is_partial,
        "events": event_state_name(worker.events),
    });
    (worker.id.to_string(), figures)
}

/// A worker's phase as `/health` and the admin API write it.
pub(crate) fn phase_name(phase: WorkerPhase) -> &'static str {
    match phase {
        WorkerPhase::Preparing => "preparing",
        WorkerPhase::Ready => "ready",
        WorkerPhase::Draining => "draining",
        WorkerPhase::Refused => "refused",
    }
}

fn event_state_name(state: EventState) -> &'static str {
    match state {
        EventState::None => "none",
        EventState::Resyncing => "resyncing",
        EventState::Following => "following",
        EventState::Approximate => "approximate",
    }
}

/// All metrics in Prometheus' text format, those of departed workers aside.
pub(crate) async fn metrics(admin: Data<Admin>) -> HttpResponse {
    metrics_text(rendered(&admin.router, &admin.metrics))
}

/// The page of [`metrics()`].
pub(crate) fn rendered(router: &Router, metrics: &PrometheusHandle) -> String {
    let instances = router.instances();
    let names = |instance: &InstanceView| [instance.card.id.to_string(), instance.card.address.clone()];
    let present = instances.iter().flat_map(names).collect();
    present_series(&metrics.render(), &present)
}

/// Metrics in Prometheus' text format.
pub(crate) fn metrics_text(metrics: String) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(metrics)
}

#[cfg(test)]
mod tests {
    use signalbox_protocol::{ParityState, WorkerEpoch};

    use super::*;

    #[test]
    fn the_index_is_shown_with_the_figures_of_each_worker() {
        let worker = IndexedWorkerView {
            id: "worker-0".parse().unwrap(),
            epoch: WorkerEpoch(7),
            blocks: 3,
            digest: 0xab,
            is_partial: true,
            events: EventState::Following,
        };
        let index = IndexView {
            memberships: 5,
            blocks: 4,
            bytes: 1_024,
            refused_stores: 2,
            evicted: 6,
            workers: vec![worker],
        };
        let expected = json!({
            "memberships": 5, "blocks": 4, "bytes": 1024, "refused_stores": 2, "evicted": 6,
            "workers": {
                "worker-0": {"epoch": 7, "blocks": 3, "digest": "00000000000000ab", "partial": true, "events": "following"},
            },
        });
        assert_eq!(index_json(&index), expected);
    }

    #[test]
    fn a_worker_shows_how_exact_its_kv_state_is_and_why() {
        let parity = Parity::impaired(ParityState::Fallback, "no events for 30 s");
        assert_eq!(
            kv_json(&parity),
            json!({"state": "fallback", "cause": "no events for 30 s"})
        );
        assert_eq!(
            kv_json(&Parity::default()),
            json!({"state": "exact", "cause": ""})
        );
    }

    #[test]
    fn a_latency_that_is_not_measured_is_null() {
        let measured = MeasuredLatency {
            ttft_ms: Some(12.1),
            uncached_prompt_tokens: Some(300.0),
            itl_ms: None,
        };
        assert_eq!(
            latency_json(measured),
            json!({"ttft_ms": 12.1, "uncached_prompt_tokens": 300.0, "itl_ms": null})
        );
    }
}
