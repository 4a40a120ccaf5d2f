//! Counts and measures requests.
//!
//! The model label names served models only: a client that invents model names must not fill the metric store. Each
//! HTTP thread keeps its metric handles, so a request costs a few atomic additions and no look-up by name. Nothing is
//! recorded per token: the tokens of an answer are added to the counter in portions, as they flow.

use std::{cell::RefCell, collections::HashMap, rc::Rc, time::Instant};

use metrics::{Counter, Histogram, counter, describe_counter, describe_histogram, histogram};
use signalbox_protocol::{Endpoint, RequestId, StreamSummary, WorkerId};

use crate::{
    connection_limits,
    listener::{self, STEP_SECONDS},
    prepare_pool::{self, PREPARE_SECONDS},
    traffic::InFlight,
};

const REQUESTS: &str = "signalbox_requests_total";
const REQUEST_SECONDS: &str = "signalbox_request_seconds";
const TTFT_SECONDS: &str = "signalbox_ttft_seconds";
const ITL_SECONDS: &str = "signalbox_itl_seconds";
const PROMPT_TOKENS: &str = "signalbox_prompt_tokens_total";
const CACHED_TOKENS: &str = "signalbox_cached_tokens_total";
const COMPLETION_TOKENS: &str = "signalbox_completion_tokens_total";
const UNHASHED: &str = "signalbox_requests_unhashed_total";

/// Tokens of an answer after which they are added to the counter, so that the counter follows the flow at the cost of a
/// subtraction for each piece.
const COUNTED_TOGETHER: u32 = 64;

/// The model label of requests that name no served model.
const NO_MODEL: &str = "none";

/// Models whose handles a thread keeps. When there would be more, the thread drops all handles and starts again.
const MAX_KEPT_MODELS: usize = 1_024;

/// Bucket bounds, in seconds, of every histogram here. Without bounds the exporter renders summaries.
pub const HISTOGRAM_BUCKETS: [(&str, &[f64]); 5] = [
    (
        STEP_SECONDS,
        // 50 ms is the bound that no step should pass.
        &[0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0],
    ),
    (
        PREPARE_SECONDS,
        &[
            0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
        ],
    ),
    (
        REQUEST_SECONDS,
        &[
            0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0, 600.0,
        ],
    ),
    (
        TTFT_SECONDS,
        &[
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
        ],
    ),
    (
        ITL_SECONDS,
        &[
            0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0,
        ],
    ),
];

/// Gives the installed recorder the help text of each metric.
pub(crate) fn describe() {
    connection_limits::describe();
    listener::describe();
    prepare_pool::describe();
    describe_counter!(
        REQUESTS,
        "Requests ended, by model, endpoint and HTTP status (499: the client closed its connection)"
    );
    describe_histogram!(
        REQUEST_SECONDS,
        "Seconds from a request's head to its answer's end"
    );
    describe_histogram!(
        TTFT_SECONDS,
        "Seconds from a streamed request's head to its first token"
    );
    describe_histogram!(
        ITL_SECONDS,
        "Mean seconds between the tokens of one streamed answer"
    );
    describe_counter!(
        PROMPT_TOKENS,
        "Prompt tokens of requests whose answer began: as the router counts them, from the answer's end on as the engine does"
    );
    describe_counter!(
        CACHED_TOKENS,
        "Prompt tokens of finished answers that were found in a KV cache"
    );
    describe_counter!(
        COMPLETION_TOKENS,
        "Tokens generated, counted as they reach the client, also of answers that break off"
    );
    describe_counter!(
        UNHASHED,
        "Requests whose prompt, or a part of it, was not looked up in the KV index, by model, endpoint and reason"
    );
}

/// One HTTP thread's metric handles, kept so that a request does not look them up.
#[derive(Debug, Default)]
pub(crate) struct RequestMetrics {
    /// By endpoint, then by model.
    kept: RefCell<[HashMap<String, Rc<ModelMetrics>>; Endpoint::ALL.len()]>,
}

impl RequestMetrics {
    fn of(&self, model: &str, endpoint: Endpoint) -> Rc<ModelMetrics> {
        let mut kept = self.kept.borrow_mut();
        let models = &mut kept[endpoint as usize];
        if let Some(metrics) = models.get(model) {
            return Rc::clone(metrics);
        }
        if models.len() >= MAX_KEPT_MODELS {
            models.clear();
        }
        let metrics = Rc::new(ModelMetrics::new(model, endpoint));
        models.insert(model.to_owned(), Rc::clone(&metrics));
        metrics
    }
}

/// The handles of one model at one endpoint.
struct ModelMetrics {
    model: String,
    endpoint: Endpoint,
    /// A vector, since few statuses ever occur.
    by_status: RefCell<Vec<(u16, Counter)>>,
    /// Likewise, by reason.
    unhashed: RefCell<Vec<(&'static str, Counter)>>,
    request_seconds: Histogram,
    ttft_seconds: Histogram,
    itl_seconds: Histogram,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    completion_tokens: Counter,
}

impl std::fmt::Debug for ModelMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelMetrics")
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

impl ModelMetrics {
    fn new(model: &str, endpoint: Endpoint) -> Self {
        let labels = || {
            [
                ("model", model.to_owned()),
                ("endpoint", endpoint.as_str().to_owned()),
            ]
        };
        Self {
            model: model.to_owned(),
            endpoint,
            by_status: RefCell::default(),
            unhashed: RefCell::default(),
            request_seconds: histogram!(REQUEST_SECONDS, &labels()),
            ttft_seconds: histogram!(TTFT_SECONDS, &labels()),
            itl_seconds: histogram!(ITL_SECONDS, &labels()),
            prompt_tokens: counter!(PROMPT_TOKENS, &labels()),
            cached_tokens: counter!(CACHED_TOKENS, &labels()),
            completion_tokens: counter!(COMPLETION_TOKENS, &labels()),
        }
    }

    fn count(&self, status: u16) {
        let mut by_status = self.by_status.borrow_mut();
        if let Some((_, requests)) = by_status.iter().find(|(known, _)| *known == status) {
            requests.increment(1);
            return;
        }
        let labels = [
            ("model", self.model.clone()),
            ("endpoint", self.endpoint.as_str().to_owned()),
            ("status", status.to_string()),
        ];
        let requests = counter!(REQUESTS, &labels);
        requests.increment(1);
        by_status.push((status, requests));
    }

    fn count_unhashed(&self, reason: &'static str) {
        let mut unhashed = self.unhashed.borrow_mut();
        if let Some((_, requests)) = unhashed.iter().find(|(known, _)| *known == reason) {
            requests.increment(1);
            return;
        }
        let labels = [
            ("model", self.model.clone()),
            ("endpoint", self.endpoint.as_str().to_owned()),
            ("reason", reason.to_owned()),
        ];
        let requests = counter!(UNHASHED, &labels);
        requests.increment(1);
        unhashed.push((reason, requests));
    }
}

/// What is known of a request before a worker begins to answer it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Expected {
    /// Tokens of all prompts, 0 if they are not known here.
    pub(crate) prompt_tokens: usize,
    /// Choices of all prompts.
    pub(crate) choices: u32,
}

/// What happened to one request. Dropping the record counts the request and logs it, so that every request is counted
/// exactly once, however it ends.
#[derive(Debug)]
pub(crate) struct RequestRecord {
    metrics: Rc<RequestMetrics>,
    endpoint: Endpoint,
    /// Set once the model is known to be served.
    model: Option<String>,
    id: RequestId,
    /// The worker of the first prompt.
    worker: Option<WorkerId>,
    /// Why the prompt was not looked up in the KV index.
    unhashed: Option<&'static str>,
    began: Instant,
    /// When the first bytes of a stream arrived, and how many sequences share its tokens.
    first_token: Option<(Instant, u32)>,
    /// 499 until the end is known: a record dropped before that belongs to a client that closed its connection.
    status: u16,
    summary: Option<StreamSummary>,
    /// Tokens delivered to the client, and how many of them are in the counter.
    delivered_tokens: u32,
    counted_tokens: u32,
    /// Prompt tokens in the counter.
    counted_prompt: u32,
    _in_flight: InFlight,
}

impl RequestRecord {
    pub(crate) fn begin(
        metrics: &Rc<RequestMetrics>,
        endpoint: Endpoint,
        id: RequestId,
        in_flight: InFlight,
    ) -> Self {
        Self {
            metrics: Rc::clone(metrics),
            endpoint,
            model: None,
            id,
            worker: None,
            unhashed: None,
            began: Instant::now(),
            first_token: None,
            status: signalbox_protocol::ErrorKind::Cancelled.status(),
            summary: None,
            delivered_tokens: 0,
            counted_tokens: 0,
            counted_prompt: 0,
            _in_flight: in_flight,
        }
    }

    pub(crate) fn id(&self) -> &RequestId {
        &self.id
    }

    /// The route that the client called.
    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// The prompt, or a part of it, is not looked up in the KV index for this reason, which becomes a label.
    pub(crate) fn unhashed(&mut self, reason: &'static str) {
        self.unhashed = Some(reason);
    }

    /// Sets the model. It must be a served one, since its name becomes a label.
    pub(crate) fn served_by_model(&mut self, model: String) {
        self.model = Some(model);
    }

    /// The first bytes of a stream of `choices` sequences have arrived.
    pub(crate) fn first_token(&mut self, choices: u32) {
        self.first_token = Some((Instant::now(), choices));
    }

    pub(crate) fn routed_to(&mut self, worker: &WorkerId) {
        self.worker = Some(worker.clone());
    }

    /// A worker has begun to answer a prompt of `tokens` tokens, 0 if they are not known here.
    pub(crate) fn begun(&mut self, tokens: usize) {
        self.count_prompt(u32::try_from(tokens).unwrap_or(u32::MAX));
    }

    /// The client has `tokens` tokens of the answer in all.
    pub(crate) fn delivered(&mut self, tokens: u32) {
        self.delivered_tokens = tokens;
        if tokens.saturating_sub(self.counted_tokens) >= COUNTED_TOGETHER {
            self.count_tokens(tokens);
        }
    }

    /// Raises what the counter has of this answer's tokens to `tokens`.
    fn count_tokens(&mut self, tokens: u32) {
        let more = tokens.saturating_sub(self.counted_tokens);
        if more > 0 {
            self.counted_tokens = tokens;
            self.handles().completion_tokens.increment(more.into());
        }
    }

    /// Raises what the counter has of this prompt's tokens to `tokens`.
    fn count_prompt(&mut self, tokens: u32) {
        let more = tokens.saturating_sub(self.counted_prompt);
        if more > 0 {
            self.counted_prompt = tokens;
            self.handles().prompt_tokens.increment(more.into());
        }
    }

    fn handles(&self) -> Rc<ModelMetrics> {
        self.metrics
            .of(self.model.as_deref().unwrap_or(NO_MODEL), self.endpoint)
    }

    /// Sets how the request ended.
    pub(crate) fn finish(&mut self, status: u16, summary: Option<StreamSummary>) {
        self.status = status;
        self.summary = summary;
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let metrics = self.handles();
        self.count_tokens(self.delivered_tokens);
        metrics.count(self.status);
        if let Some(reason) = self.unhashed {
            metrics.count_unhashed(reason);
        }
        metrics.request_seconds.record(took);
        if let Some((first, _)) = self.first_token {
            metrics.ttft_seconds.record(first - self.began);
        }
        if let Some(summary) = self.summary {
            self.count_prompt(summary.prompt_tokens);
            self.count_tokens(summary.completion_tokens);
            metrics.cached_tokens.increment(summary.cached_tokens.into());
            if let Some((first, choices)) = self.first_token {
                // Choices are generated in parallel: the latency between the tokens of one choice counts.
                let gaps = (summary.completion_tokens / choices.max(1)).saturating_sub(1);
                if gaps > 0 {
                    metrics.itl_seconds.record(first.elapsed() / gaps);
                }
            }
        }
        tracing::debug!(
            request.id = %self.id,
            worker.id = self.worker.as_ref().map(WorkerId::as_str),
            model = self.model,
            endpoint = self.endpoint.as_str(),
            status = self.status,
            unhashed = self.unhashed,
            seconds = took.as_secs_f64(),
            prompt_tokens = self.summary.map(|summary| summary.prompt_tokens),
            cached_tokens = self.summary.map(|summary| summary.cached_tokens),
            completion_tokens = self.counted_tokens,
            "request ended"
        );
    }
}
