//! A request that a worker answers, from its head to its answer's body: read, parse, tokenise, route, stream.
//!
//! All routes pass here. The model decides how a body is read ([`crate::read_request`]).

use std::time::Duration;

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{CACHE_CONTROL, HeaderName, HeaderValue},
    web::{Data, Payload},
};
use bytes::Bytes;
use signalbox_protocol::{Endpoint, ErrorKind, RequestId, WireError};
use signalbox_router::RoutedAnswer;
use tokio::time::{Instant, timeout_at};

use crate::{
    answer::{Answer, AnswerBody},
    body,
    document::Document,
    error::{self, REQUEST_ID},
    every_form::EveryForm,
    frontend::Frontend,
    metrics::RequestRecord,
    read_request::{ReadRequest, read_request},
    running_answers::shutting_down,
};

const WORKER: HeaderName = HeaderName::from_static("x-signalbox-worker");
const POLICY: HeaderName = HeaderName::from_static("x-signalbox-policy");
const OVERLAP_BLOCKS: HeaderName = HeaderName::from_static("x-signalbox-overlap-blocks");
/// How exact the router's knowledge of the worker's KV cache is: `exact`, `degraded` or `fallback`.
const KV: HeaderName = HeaderName::from_static("x-signalbox-kv");
/// With the value `no`, reverse proxies such as nginx forward each event at once.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// A request that a worker has begun to answer.
struct Begun {
    routed: RoutedAnswer,
    stream: bool,
    deadline: Instant,
}

/// Answers a request to `endpoint`.
pub(crate) async fn respond(
    endpoint: Endpoint,
    request: HttpRequest,
    payload: Payload,
    frontend: Data<Frontend>,
) -> HttpResponse {
    let id = error::request_id(&request);
    let in_flight = frontend.shared.traffic.enter();
    let mut record = RequestRecord::begin(&frontend.metrics, endpoint, id, in_flight);
    let begun = until_cut_off(
        &frontend,
        begin(endpoint, &request, payload, &frontend, &mut record),
    );
    match begun.await {
        Ok(begun) => match whole_or_stream(begun, &frontend, record).await {
            Ok(response) => response,
            Err((error, mut record)) => fail(error, &mut record),
        },
        Err(error) => fail(error, &mut record),
    }
}

fn fail(error: WireError, record: &mut RequestRecord) -> HttpResponse {
    record.finish(error.status(), None);
    error::response_at(record.endpoint(), error, record.id())
}

/// The outcome, or an error if the process stops waiting for requests before.
async fn until_cut_off<T>(
    frontend: &Frontend,
    outcome: impl Future<Output = Result<T, WireError>>,
) -> Result<T, WireError> {
    tokio::select! {
        biased;
        outcome = outcome => outcome,
        () = frontend.cut_off.cancelled() => Err(shutting_down()),
    }
}

/// Everything up to the worker's first bytes.
async fn begin(
    endpoint: Endpoint,
    request: &HttpRequest,
    payload: Payload,
    frontend: &Frontend,
    record: &mut RequestRecord,
) -> Result<Begun, WireError> {
    if frontend.shared.traffic.is_draining() {
        return Err(shutting_down());
    }
    let deadline = Instant::now() + frontend.request_timeout;
    let body = body::read(
        request,
        payload,
        frontend.body_limits,
        &frontend.shared.body_budget,
    )
    .await?;
    let read = read(endpoint, &body.bytes, frontend, deadline).await?;
    if let Some(model) = &read.model {
        record.served_by_model(model.clone());
    }
    let prepared = read.prepared?;
    let (mut stream, mut choices, mut prompt_tokens) = (false, 1, 0);
    if let Some(first) = prepared.first() {
        if let Some(reason) = first.unhashed {
            record.unhashed(reason.as_str());
        }
        stream = first.generation.stream;
        choices = first.generation.sampling.n;
        prompt_tokens = first.tokens.len();
    }
    let model = read.model.unwrap_or_default();
    let routed = route(&model, prepared, body.bytes, frontend, record.id(), deadline).await?;
    record.routed_to(&routed.worker);
    record.begun(prompt_tokens);
    if stream {
        record.first_token(choices);
    }
    Ok(Begun {
        routed,
        stream,
        deadline,
    })
}

/// Reads a body on the pool, which has a thread for large ones.
async fn read(
    endpoint: Endpoint,
    body: &Bytes,
    frontend: &Frontend,
    deadline: Instant,
) -> Result<ReadRequest, WireError> {
    let (bytes, router) = (body.clone(), frontend.router.clone());
    let read = move || read_request(endpoint, &bytes, &router);
    timeout_at(deadline, frontend.shared.prepare_pool.run(body.len(), read))
        .await
        .unwrap_or_else(|_| Err(not_read_in_time()))
}

/// Routes a request. If no worker can be reached, and the model's workers read other forms of prompts by now, the body is
/// read again for these: a rolling update may have replaced every worker that the request was made ready for.
async fn route(
    model: &str,
    prepared: EveryForm,
    body: Bytes,
    frontend: &Frontend,
    id: &RequestId,
    deadline: Instant,
) -> Result<RoutedAnswer, WireError> {
    let mut prepared = prepared;
    // Once more at most: forms change with workers, and an update takes longer than a request.
    for is_last in [false, true] {
        let left = deadline.saturating_duration_since(Instant::now());
        let (known, endpoint) = (prepared.forms(), prepared.endpoint());
        let Some(request) = prepared.into_route_request(&body, id, milliseconds(left)) else {
            break;
        };
        let error = match frontend.replica.route(request).await {
            Ok(routed) => return Ok(routed),
            Err(error) => error,
        };
        let is_known = |form| known.contains(&form);
        if is_last || error.kind != ErrorKind::Unavailable || frontend.model(model)?.forms().all(is_known) {
            return Err(error);
        }
        prepared = read(endpoint, &body, frontend, deadline).await?.prepared?;
    }
    Err(WireError::new(
        ErrorKind::Internal,
        "the request was made ready for no worker",
    ))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The request waited for others with a large body until its deadline.
fn not_read_in_time() -> WireError {
    WireError::new(
        ErrorKind::DeadlineExceeded,
        "the request was not read within its deadline",
    )
}

/// The answer as a stream of events, or collected into one document.
async fn whole_or_stream(
    begun: Begun,
    frontend: &Frontend,
    mut record: RequestRecord,
) -> Result<HttpResponse, (WireError, RequestRecord)> {
    let Begun {
        routed,
        stream,
        deadline,
    } = begun;
    let mut response = HttpResponse::Ok();
    let headers = [
        (REQUEST_ID, HeaderValue::from_str(record.id().as_str()).ok()),
        (WORKER, HeaderValue::from_str(routed.worker.as_str()).ok()),
        (POLICY, HeaderValue::from_str(&routed.policy).ok()),
        (OVERLAP_BLOCKS, Some(HeaderValue::from(routed.overlap_blocks))),
        (KV, Some(HeaderValue::from_static(routed.kv.as_str()))),
    ];
    for (name, value) in headers {
        if let Some(value) = value {
            response.insert_header((name, value));
        }
    }
    let mut answer = routed.stream;
    if stream {
        response
            .content_type("text/event-stream")
            .insert_header((CACHE_CONTROL, "no-cache"))
            .insert_header((ACCEL_BUFFERING, "no"));
        return Ok(response.body(AnswerBody::new(answer, record, &frontend.answers, deadline)));
    }
    match until_cut_off(frontend, Document::collect(&mut answer)).await {
        Ok(document) => {
            record.delivered(answer.tokens());
            record.finish(200, Answer::summary(&answer));
            Ok(response.content_type("application/json").body(document))
        }
        Err(error) => Err((error, record)),
    }
}
