//! The state of one HTTP thread.

use std::{rc::Rc, sync::Arc, time::Duration};

use actix_web::http::header::HeaderName;
use signalbox_protocol::{ErrorKind, WireError};
use signalbox_router::{ModelView, ReplicaHandle, Router};

use tokio_util::sync::CancellationToken;

use crate::{
    admin::AdminToken,
    body::{BodyBudget, BodyLimits},
    client_keys::ShownHeaders,
    config::HttpConfig,
    metrics::RequestMetrics,
    prepare_pool::PreparePool,
    running_answers::RunningAnswers,
    traffic::Traffic,
};

/// An HTTP thread's own router replica and metric handles, and what all threads share.
#[derive(Debug)]
pub(crate) struct Frontend {
    pub(crate) router: Router,
    pub(crate) replica: ReplicaHandle,
    pub(crate) shared: Shared,
    pub(crate) answers: Rc<RunningAnswers>,
    /// Cancelled when all requests under way end, because the grace of a drain is over.
    pub(crate) cut_off: CancellationToken,
    pub(crate) metrics: Rc<RequestMetrics>,
    pub(crate) body_limits: BodyLimits,
    pub(crate) request_timeout: Duration,
    /// When a stream without bytes gets its head and pings.
    pub(crate) ping_after: Option<Duration>,
    pub(crate) namespace: String,
    /// The headers that policies see.
    pub(crate) shown_headers: ShownHeaders,
}

/// What all HTTP threads of a process share, beside the router.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) prepare_pool: Arc<PreparePool>,
    pub(crate) body_budget: Arc<BodyBudget>,
    /// A caller that sends it may read why its request went to its worker.
    pub(crate) admin_token: AdminToken,
}

impl Frontend {
    /// Starts this thread's router replica. Call it on an arbiter.
    pub(crate) fn start(config: &HttpConfig, router: Router, shared: Shared) -> Self {
        let answers = Rc::<RunningAnswers>::default();
        let cut_off = shared.traffic.cut_off_token();
        actix_rt::spawn(Rc::clone(&answers).run(cut_off.clone()));
        Self {
            replica: ReplicaHandle::start(router.clone()),
            router,
            shared,
            answers,
            cut_off,
            metrics: Rc::default(),
            body_limits: BodyLimits {
                bytes: config.max_body_bytes,
                time: config.body_timeout,
            },
            request_timeout: config.request_timeout,
            ping_after: config.ping_after,
            namespace: config.namespace.clone(),
            shown_headers: ShownHeaders {
                tenant: config
                    .tenant_header
                    .as_ref()
                    .and_then(header)
                    .map(|(header, _)| header),
                others: config.policy_headers.iter().filter_map(header).collect(),
            },
        }
    }

    /// The served model or LoRA adapter of this name. While no model is served, the error is "unavailable" rather
    /// than "not found".
    pub(crate) fn model(&self, name: &str) -> Result<ModelView, WireError> {
        served_model(&self.router, name)
    }
}

/// A header that policies see. Its name was checked where it was set.
fn header(name: &String) -> Option<(HeaderName, Arc<str>)> {
    let header = HeaderName::try_from(name).ok()?;
    Some((header.clone(), header.as_str().into()))
}

/// The served model or LoRA adapter of this name. The error is "unavailable" while no model is served, otherwise "not
/// found" with the names of served models. The admin API calls it without a [`Frontend`].
pub(crate) fn served_model(router: &Router, name: &str) -> Result<ModelView, WireError> {
    /// Longest part of an unknown name in the error, and most served models named there.
    const SHOWN_CHARS: usize = 100;
    const SHOWN_MODELS: usize = 8;
    if let Some(model) = router.model(name) {
        return Ok(model);
    }
    let mut models: Vec<String> = router.models().into_iter().map(|model| model.name).collect();
    if models.is_empty() {
        return Err(WireError::new(
            ErrorKind::Unavailable,
            "no worker serves a model yet; try again shortly",
        ));
    }
    models.truncate(SHOWN_MODELS);
    let name: String = name.chars().take(SHOWN_CHARS).collect();
    Err(WireError {
        kind: ErrorKind::ModelNotFound,
        message: format!("no model is called {name:?}; served here: {}", models.join(", ")),
        param: Some("model".into()),
        retry_after_s: None,
        engine: None,
    })
}
