//! `GET /admin/v1/workers`, `GET /admin/v1/index` and `GET /metrics`.

use actix_web::{HttpResponse, web::Data};
use serde_json::{Value, json};
use signalbox_router::InstanceView;

use super::Admin;

/// Every known worker: its card, its state and what this router has it doing.
pub(crate) async fn workers(admin: Data<Admin>) -> HttpResponse {
    let workers: Vec<Value> = admin.router.instances().iter().map(describe).collect();
    HttpResponse::Ok().json(json!({"workers": workers}))
}

fn describe(instance: &InstanceView) -> Value {
    json!({
        "card": *instance.card,
        "state": instance.state,
        "listed": instance.listed,
        "requests": instance.requests,
        "active_prefill_tokens": instance.prefill_tokens,
        "active_decode_blocks": instance.decode_blocks,
        "other_routers": instance.others,
        "index_blocks": instance.index_blocks,
        "kv_events": instance.events,
    })
}

/// The size of the KV index.
pub(crate) async fn index(admin: Data<Admin>) -> HttpResponse {
    HttpResponse::Ok().json(admin.router.index_json())
}

/// All metrics in Prometheus' text format.
pub(crate) async fn metrics(admin: Data<Admin>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(admin.metrics.render())
}
