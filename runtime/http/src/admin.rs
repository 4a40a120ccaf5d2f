//! The admin API: policies, workers, the KV index, metrics. It has its own listener, which is on loopback unless a
//! token guards it.

mod caller;
pub(crate) mod decisions;
pub(crate) mod fleet;
mod guard;
pub(crate) mod policies;
mod present_series;
mod token;
pub(crate) mod upload;
pub(crate) mod versions;

use std::sync::Arc;

use actix_web::{
    Error, ResponseError,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::header::HeaderValue,
    middleware::Next,
    web::Data,
};
use metrics_exporter_prometheus::PrometheusHandle;
use signalbox_router::Router;
use tokio::sync::Semaphore;

use crate::{
    body::{BodyBudget, BodyLimits},
    config::HttpConfig,
    error::{self, ApiError, REQUEST_ID},
};
pub(crate) use guard::is_exposed;
pub use token::AdminToken;

/// Largest JSON body of an admin request; policy settings are the largest.
const MAX_JSON_BYTES: usize = 1024 * 1024;

/// Most bytes that the bodies of admin requests take together.
const MAX_BODIES_BYTES: usize = 256 * 1024 * 1024;

/// Components read and compiled at the same time. Compiling one takes a core for up to seconds, and serving needs the
/// cores too.
const MAX_UPLOADS: usize = 2;

/// The state of the admin listener's one thread.
#[derive(Debug)]
pub(crate) struct Admin {
    router: Router,
    metrics: PrometheusHandle,
    token: AdminToken,
    body_limits: BodyLimits,
    policy_limits: BodyLimits,
    uploads: Semaphore,
    body_budget: Arc<BodyBudget>,
}

impl Admin {
    pub(crate) fn new(
        config: &HttpConfig,
        token: AdminToken,
        router: Router,
        metrics: PrometheusHandle,
    ) -> Self {
        let limits = router.policies().limits();
        Self {
            router,
            metrics,
            token,
            body_limits: BodyLimits {
                bytes: MAX_JSON_BYTES,
                time: config.body_timeout,
            },
            policy_limits: BodyLimits {
                // A larger component would be refused after reading.
                bytes: limits.max_component_bytes,
                time: config.body_timeout,
            },
            uploads: Semaphore::new(MAX_UPLOADS),
            body_budget: BodyBudget::new(MAX_BODIES_BYTES),
        }
    }
}

/// Passes on requests that [`guard::check`] and [`caller::check_query`] accept, and gives each answer a request id.
pub(crate) async fn guarded(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let id = error::request_id(request.request());
    let token = request
        .app_data::<Data<Admin>>()
        .and_then(|admin| admin.token.present());
    let checked = guard::check(token.as_deref(), request.headers())
        .and_then(|()| caller::check_query(request.method(), request.path(), request.query_string()));
    let mut response = match checked {
        Ok(()) => match next.call(request).await {
            Ok(response) => response.map_into_boxed_body(),
            Err(error) => return Err(error),
        },
        Err(error) => request.into_response(ApiError(error).error_response()),
    };
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    Ok(response)
}
