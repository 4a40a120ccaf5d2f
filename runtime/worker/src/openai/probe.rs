//! Finds out what the engine at an address is: waits until it is ready, and asks it about itself.
//!
//! Nothing has to be configured that an engine states. What it does not state is `None` in the [`EngineFacts`]; their
//! [`missing`](EngineFacts::missing) names each with the mend.

use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use tokio::time::{Instant, sleep};

use super::{
    facts::{EngineFacts, EngineFlavour, StartTime, StatedFacts},
    prometheus,
    upstream::{Upstream, UpstreamError, UpstreamUrl, WholeAnswer},
};

pub(crate) use self::models::ModelList;

mod models;
mod sglang;
mod vllm;

/// First and longest wait between two looks at an engine that is not ready. Loading a model takes minutes.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How often the wait is reported while its reason stays the same.
const REPORT_EVERY: Duration = Duration::from_secs(15);

/// The route whose answer shows whether an engine is ready, in the order in which they are tried.
///
/// SGLang's `/health` runs a generation, so `/ready` comes first; vLLM does not have it.
const READY_ROUTES: [&str; 3] = ["/ready", "/health", "/v1/models"];

/// Why an engine cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It requires a key, or another one.
    #[error("the engine at {0} refuses the request as unauthorized; give its API key with --upstream-key")]
    Unauthorized(UpstreamUrl),
    /// There is no secure connection to it.
    #[error(transparent)]
    Insecure(UpstreamError),
    /// It has no model under the OpenAI API.
    #[error("the engine at {url} answered {answer} to GET /v1/models; is there an OpenAI-compatible engine?")]
    NoModels {
        /// The engine's address.
        url: UpstreamUrl,
        /// The status, and the beginning of the answer.
        answer: String,
    },
}

/// An engine that is ready.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundEngine {
    /// What it states, and what the operator states.
    pub facts: EngineFacts,
    /// The engine's own name of its model, which requests to it carry.
    pub served_model: String,
    /// The route that shows whether it is healthy, and costs it nothing.
    pub(crate) health_route: &'static str,
}

/// Waits until the engine is ready and finds out what it is. `waiting` gets the reason of the wait, when it changes and
/// every 15 s. There is no limit on the time: whoever does not want to wait drops the future.
///
/// # Errors
/// Waiting does not help.
pub async fn find_engine(
    upstream: &Upstream,
    stated: &StatedFacts,
    mut waiting: impl FnMut(&str),
) -> Result<FoundEngine, ProbeError> {
    let mut wait = FIRST_WAIT;
    let mut last_report: Option<(String, Instant)> = None;
    loop {
        let reason = match ask_all(upstream, stated).await {
            Ok(found) => return Ok(found),
            Err(NotFound::Hopeless(error)) => return Err(error),
            Err(NotFound::NotReady(reason)) => reason,
        };
        let is_new = last_report
            .as_ref()
            .is_none_or(|(last, at)| *last != reason || at.elapsed() >= REPORT_EVERY);
        if is_new {
            waiting(&reason);
            last_report = Some((reason, Instant::now()));
        }
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Why an attempt did not find the engine.
#[derive(Debug)]
enum NotFound {
    /// The engine cannot be asked yet.
    NotReady(String),
    /// Waiting does not help.
    Hopeless(ProbeError),
}

impl From<UpstreamError> for NotFound {
    fn from(error: UpstreamError) -> Self {
        match error {
            UpstreamError::UnknownIssuer(_) | UpstreamError::NoTls(_) | UpstreamError::Tls(..) => {
                Self::Hopeless(ProbeError::Insecure(error))
            }
            error => Self::NotReady(error.to_string()),
        }
    }
}

impl From<ProbeError> for NotFound {
    fn from(error: ProbeError) -> Self {
        Self::Hopeless(error)
    }
}

async fn ask_all(upstream: &Upstream, stated: &StatedFacts) -> Result<FoundEngine, NotFound> {
    let health_route = ready_route(upstream).await?;
    let models = match upstream.get("/v1/models").await {
        Ok(answer) if answer.status == StatusCode::OK => answer.body,
        Ok(answer) if matches!(answer.status.as_u16(), 401 | 403) => {
            return Err(ProbeError::Unauthorized(upstream.url().clone()).into());
        }
        Ok(answer) if answer.status.is_server_error() => {
            let reason = format!("the engine answers {} to GET /v1/models", answer.status);
            return Err(NotFound::NotReady(reason));
        }
        Ok(answer) => return Err(no_models(upstream, answer.status, &answer.body).into()),
        Err(error) => return Err(error.into()),
    };
    let Some(models) = ModelList::parse(&models) else {
        return Err(no_models(upstream, StatusCode::OK, &models).into());
    };
    let answers = Answers {
        version: optional(upstream.get("/version").await)?,
        metrics: optional(upstream.get("/metrics").await)?,
        server_info: optional(upstream.get("/server_info").await)?,
        event_sources: optional(upstream.get("/kv_event_sources").await)?,
    };
    let mut facts = answers.facts(models, upstream.url().host());
    let served_model = facts.model.clone();
    facts.apply(stated);
    Ok(FoundEngine {
        facts,
        served_model,
        health_route,
    })
}

fn no_models(upstream: &Upstream, status: StatusCode, body: &Bytes) -> ProbeError {
    let start = String::from_utf8_lossy(&body[..body.len().min(100)]).into_owned();
    ProbeError::NoModels {
        url: upstream.url().clone(),
        answer: format!("{status} {start:?}"),
    }
}

/// The first route that shows that the engine is ready.
async fn ready_route(upstream: &Upstream) -> Result<&'static str, NotFound> {
    for route in READY_ROUTES {
        let answer = upstream.get(route).await?;
        match answer.status.as_u16() {
            200..=299 => return Ok(route),
            // A key is not needed for health, but for the models: that shows next.
            401 | 403 => return Ok("/v1/models"),
            404 | 405 => {}
            status => {
                let reason = format!("the engine is not ready yet: it answers {status} to GET {route}");
                return Err(NotFound::NotReady(reason));
            }
        }
    }
    // There is an answer to everything, and no route of a known engine. The models show what it is.
    Ok("/v1/models")
}

/// The body of an answer, or `None` if the engine does not have the route.
fn optional(answer: Result<WholeAnswer, UpstreamError>) -> Result<Option<Bytes>, UpstreamError> {
    answer.map(|answer| (answer.status == StatusCode::OK).then_some(answer.body))
}

/// What an engine answered about itself. `None`: it does not have the route.
#[derive(Debug, Default)]
struct Answers {
    version: Option<Bytes>,
    metrics: Option<Bytes>,
    server_info: Option<Bytes>,
    event_sources: Option<Bytes>,
}

impl Answers {
    fn facts(&self, models: ModelList, host: &str) -> EngineFacts {
        let text = |body: &Option<Bytes>| {
            body.as_ref()
                .map(|body| String::from_utf8_lossy(body).into_owned())
                .unwrap_or_default()
        };
        let metrics = text(&self.metrics);
        let sglang = self.server_info.as_deref().and_then(sglang::ServerInfo::parse);
        let flavour = match (&sglang, models.owned_by.as_deref()) {
            (Some(_), _) | (None, Some("sglang")) => EngineFlavour::Sglang,
            (None, Some("vllm")) => EngineFlavour::Vllm,
            _ if metrics.contains("\nvllm:") || self.event_sources.is_some() => EngineFlavour::Vllm,
            _ => EngineFlavour::OpenAi,
        };
        let mut facts = EngineFacts {
            flavour,
            version: self
                .version
                .as_deref()
                .and_then(vllm::version)
                .unwrap_or_default(),
            model: models.base.id,
            model_root: models.base.root,
            adapters: models.adapters,
            context_length: models.base.max_model_len,
            block_size: None,
            kv_blocks: None,
            prefix_caching: None,
            events: Vec::new(),
            unusable_events: None,
            ranks: 1,
            max_sequences: None,
            started_at: prometheus::value(&metrics, "process_start_time_seconds")
                .and_then(StartTime::from_seconds),
        };
        match (flavour, sglang) {
            (EngineFlavour::Vllm, _) => {
                let sources = self.event_sources.as_deref().unwrap_or_default();
                vllm::add_facts(&mut facts, &metrics, sources, self.server_info.as_deref(), host);
            }
            (EngineFlavour::Sglang, Some(info)) => info.add_to(&mut facts, host),
            _ => {}
        }
        facts
    }
}

#[cfg(test)]
mod tests;
