//! The route table of both listeners.

use actix_web::{
    FromRequest, Handler, HttpRequest, Resource, Responder, Route,
    middleware::from_fn,
    web::{self, Data, PathConfig, Payload, ServiceConfig},
};
use signalbox_protocol::Endpoint;

use crate::{
    admin::{self, Admin},
    error,
    frontend::Frontend,
    generate, health, models,
};

/// The routes that vLLM and SGLang also have without the version.
const UNVERSIONED: [(&str, Endpoint); 2] = [("/rerank", Endpoint::Rerank), ("/score", Endpoint::Score)];

/// The APIs of OpenAI, Anthropic and the engines, and the health checks of load balancers.
pub(crate) fn public(config: &mut ServiceConfig, frontend: Frontend) {
    let answered = Endpoint::ALL.map(|endpoint| (endpoint.path(), endpoint));
    for (path, endpoint) in answered.into_iter().chain(UNVERSIONED) {
        config.service(answered_by_worker(path, endpoint));
    }
    config
        .app_data(Data::new(frontend))
        .app_data(path_config())
        .service(resource("/v1/models", "GET", [web::get().to(models::list)]))
        .service(resource(
            "/v1/models/{id:.+}",
            "GET",
            [web::get().to(models::one)],
        ))
        .service(health_check("/health", health::health))
        .service(health_check("/live", health::live))
        .service(health_check("/ready", health::ready))
        .default_service(web::to(error::not_found));
}

/// The admin API and the metrics, behind the guard.
pub(crate) fn admin(config: &mut ServiceConfig, state: Admin) {
    use admin::{fleet, policies, upload};
    let guarded = web::scope("")
        .wrap(from_fn(admin::guarded))
        .service(resource(
            "/admin/v1/policies",
            "GET, POST",
            [web::get().to(policies::list), web::post().to(upload::upload)],
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
        .service(resource("/admin/v1/index", "GET", [web::get().to(fleet::index)]))
        .service(resource("/metrics", "GET", [web::get().to(fleet::metrics)]))
        .default_service(web::to(error::not_found));
    config
        .app_data(Data::new(state))
        .app_data(path_config())
        .service(guarded);
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

/// A path that load balancers look at, by either method.
pub(crate) fn health_check<H, A>(path: &str, check: H) -> Resource
where
    H: Handler<A> + Clone,
    H::Output: Responder + 'static,
    A: FromRequest + 'static,
{
    let routes = [web::get().to(check.clone()), web::head().to(check)];
    resource(path, "GET, HEAD", routes)
}

/// A path with broken percent-encoding gets 404.
fn path_config() -> PathConfig {
    PathConfig::default().error_handler(|error, _| error::bad_path(&error).into())
}
