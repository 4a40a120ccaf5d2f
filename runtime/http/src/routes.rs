//! The route table of both listeners.

use actix_web::{
    FromRequest, Handler, HttpRequest, HttpResponse, Resource, Responder, Route,
    middleware::from_fn,
    web::{self, Data, PathConfig, Payload, ServiceConfig},
};
use bytes::Bytes;
use metrics_exporter_prometheus::PrometheusHandle;
use signalbox_protocol::Endpoint;

use crate::{
    admin::{self, Admin},
    error,
    frontend::Frontend,
    generate, health, models, openapi,
};

/// The routes that vLLM and SGLang also have without the version.
const UNVERSIONED: [(&str, Endpoint); 2] = [("/rerank", Endpoint::Rerank), ("/score", Endpoint::Score)];

/// The APIs of OpenAI, Anthropic and the engines, and the health checks of load balancers.
/// With `metrics`, the metrics too.
pub(crate) fn public(config: &mut ServiceConfig, frontend: Frontend, metrics: Option<PrometheusHandle>) {
    let answered = Endpoint::ALL.map(|endpoint| (endpoint.path(), endpoint));
    let answered = answered.into_iter().chain(UNVERSIONED);
    let document = openapi::document(answered.clone(), metrics.is_some());
    let document = Bytes::from(document.to_string());
    for (path, endpoint) in answered {
        config.service(answered_by_worker(path, endpoint));
    }
    config.service(readable("/openapi.json", move || {
        let answer = HttpResponse::Ok()
            .content_type("application/json")
            .body(document.clone());
        async move { answer }
    }));
    if let Some(metrics) = metrics {
        let page = move |request: HttpRequest, frontend: Data<Frontend>| {
            public_metrics(request, frontend, metrics.clone())
        };
        config.service(readable("/metrics", page));
    }
    config
        .app_data(Data::new(frontend))
        .app_data(path_config())
        .service(readable("/v1/models", models::list))
        .service(readable("/tokenizer_info", models::tokenizer))
        .service(readable("/v1/models/{id:.+}", models::one))
        .service(readable("/health", health::health))
        .service(readable("/live", health::live))
        .service(readable("/ready", health::ready))
        .default_service(web::to(error::not_found));
}

/// The admin API and the metrics, behind the guard.
pub(crate) fn admin(config: &mut ServiceConfig, state: Admin) {
    use admin::{decisions, fleet, policies, upload, versions};
    let guarded = web::scope("")
        .wrap(from_fn(admin::guarded))
        .service(resource(
            "/admin/v1/policies",
            "GET, POST",
            [web::get().to(versions::list), web::post().to(upload::upload)],
        ))
        .service(resource(
            "/admin/v1/policies/{policy}/component",
            "GET",
            [web::get().to(versions::download)],
        ))
        .service(resource(
            "/admin/v1/policies/{policy}",
            "GET, DELETE",
            [web::get().to(versions::show), web::delete().to(versions::delete)],
        ))
        .service(resource(
            "/admin/v1/audit",
            "GET",
            [web::get().to(versions::audit)],
        ))
        .service(resource(
            "/admin/v1/models/{model:.+}/policy/history",
            "GET",
            [web::get().to(policies::history)],
        ))
        .service(resource(
            "/admin/v1/models/{model:.+}/policy/rollback",
            "POST",
            [web::post().to(policies::rollback)],
        ))
        .service(resource(
            "/admin/v1/models/{model:.+}/policy",
            "GET, PUT",
            [web::get().to(policies::active), web::put().to(policies::activate)],
        ))
        .service(resource(
            "/admin/v1/workers",
            "GET",
            [web::get().to(fleet::workers)],
        ))
        .service(resource(
            "/admin/v1/decisions",
            "GET",
            [web::get().to(decisions::list)],
        ))
        .service(resource("/admin/v1/index", "GET", [web::get().to(fleet::index)]))
        .service(resource("/metrics", "GET", [web::get().to(fleet::metrics)]))
        .default_service(web::to(error::not_found));
    config
        .app_data(Data::new(state))
        .app_data(path_config())
        .service(guarded);
}

/// The metrics, written on the pool: a page of many workers takes longer than an HTTP thread may be held.
async fn public_metrics(
    request: HttpRequest,
    frontend: Data<Frontend>,
    metrics: PrometheusHandle,
) -> HttpResponse {
    let router = frontend.router.clone();
    let write = move || admin::fleet::rendered(&router, &metrics);
    match frontend.shared.prepare_pool.report(write).await {
        Ok(page) => admin::fleet::metrics_text(page),
        Err(error) => error::response(error, &error::request_id(&request)),
    }
}

/// A path whose requests a worker answers.
fn answered_by_worker(path: &str, endpoint: Endpoint) -> Resource {
    let handler = move |request: HttpRequest, payload: Payload, frontend: Data<Frontend>| {
        generate::respond(endpoint, request, payload, frontend)
    };
    resource(path, "POST", [web::post().to(handler)])
}

/// A path with its methods; any other method gets 405 with `allowed` as the `Allow` header.
pub(crate) fn resource<const N: usize>(path: &str, allowed: &'static str, routes: [Route; N]) -> Resource {
    let other = move |request: HttpRequest| async move { error::method_not_allowed(&request, allowed) };
    routes
        .into_iter()
        .fold(web::resource(path), Resource::route)
        .default_service(web::to(other))
}

/// A path that is read by GET, or looked at by HEAD.
pub(crate) fn readable<H, A>(path: &str, read: H) -> Resource
where
    H: Handler<A> + Clone,
    H::Output: Responder + 'static,
    A: FromRequest + 'static,
{
    let routes = [web::get().to(read.clone()), web::head().to(read)];
    resource(path, "GET, HEAD", routes)
}

/// A path with broken percent-encoding gets 404.
fn path_config() -> PathConfig {
    PathConfig::default().error_handler(|error, _| error::bad_path(&error).into())
}
