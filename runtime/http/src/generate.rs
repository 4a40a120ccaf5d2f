//! A request that a worker answers, from its head to its answer's body: read, parse, tokenise, route, stream.
//!
//! All routes pass here. The model decides how a body is read: strictly if its workers run an engine of this repository
//! ([`checked`]), and only as far as routing needs if its engines read bodies themselves ([`forwarded`]).

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{CACHE_CONTROL, HeaderName, HeaderValue},
    web::{Data, Payload},
};
use signalbox_protocol::{Endpoint, ErrorKind, WireError};
use signalbox_router::RoutedAnswer;

use crate::{
    answer::{Answer, AnswerBody, collect},
    body, checked,
    error::{self, REQUEST_ID},
    forwarded,
    frontend::Frontend,
    metrics::RequestRecord,
    openai::{CHAT_NAMES, COMPLETION_NAMES, Fields, take_model},
};

const WORKER: HeaderName = HeaderName::from_static("x-signalbox-worker");
const POLICY: HeaderName = HeaderName::from_static("x-signalbox-policy");
const OVERLAP_BLOCKS: HeaderName = HeaderName::from_static("x-signalbox-overlap-blocks");
/// How exact the router's knowledge of the worker's KV cache is: `exact`, `degraded` or `fallback`.
const KV: HeaderName = HeaderName::from_static("x-signalbox-kv");
/// With the value `no`, reverse proxies such as nginx forward each event at once.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Answers a request to `endpoint`.
pub(crate) async fn respond(
    endpoint: Endpoint,
    request: HttpRequest,
    payload: Payload,
    frontend: Data<Frontend>,
) -> HttpResponse {
    let id = error::request_id(&request);
    let in_flight = frontend.traffic.enter();
    let mut record = RequestRecord::begin(&frontend.metrics, endpoint, id, in_flight);
    match answer(endpoint, &request, payload, &frontend, &mut record).await {
        Ok((answer, stream)) => match whole_or_stream(answer, stream, record).await {
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

/// Everything up to the worker's first bytes. Also returns whether the client wants a stream.
async fn answer(
    endpoint: Endpoint,
    request: &HttpRequest,
    payload: Payload,
    frontend: &Frontend,
    record: &mut RequestRecord,
) -> Result<(RoutedAnswer, bool), WireError> {
    if frontend.traffic.is_draining() {
        return Err(WireError::new(
            ErrorKind::Unavailable,
            "this server is shutting down; try another server",
        ));
    }
    let body = body::read(request, payload, frontend.body_limits).await?;
    let mut fields = parse(endpoint, &body)?;
    let name = take_model(&mut fields)?;
    let model = frontend.model(&name)?;
    record.served_by_model(&model.name);
    let prepared = if model.reads_body {
        forwarded::prepare(endpoint, name, &mut fields, &model, body.len())
    } else {
        checked::prepare(endpoint, name, &mut fields, &model)?
    };
    if let Some(reason) = prepared.unhashed {
        record.unhashed(reason.as_str());
    }
    let lora = model.adapter.map(|_| model.name).unwrap_or_default();
    let stream = prepared.generation.stream;
    let choices = prepared.generation.sampling.n;
    let left = frontend.request_timeout.saturating_sub(record.elapsed());
    let deadline_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let routed = frontend
        .replica
        .route(prepared.into_route_request(endpoint, lora, body, record.id().clone(), deadline_ms))
        .await?;
    record.routed_to(&routed.worker);
    if stream {
        record.first_token(choices);
    }
    Ok((routed, stream))
}

/// Reads the parameters that either way of reading a body needs, as one pass over the body.
fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Fields, WireError> {
    let [common, prompt] = forwarded::names(endpoint);
    match endpoint {
        Endpoint::Chat => {
            let [a, b, c] = CHAT_NAMES;
            Fields::parse(body, &[a, b, c, common, prompt])
        }
        Endpoint::Completions => {
            let [a, b, c] = COMPLETION_NAMES;
            Fields::parse(body, &[a, b, c, common, prompt])
        }
        _ => Fields::parse(body, &[common, prompt]),
    }
}

/// The answer as a stream of events, or collected into one document.
async fn whole_or_stream(
    routed: RoutedAnswer,
    stream: bool,
    mut record: RequestRecord,
) -> Result<HttpResponse, (WireError, RequestRecord)> {
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
        return Ok(response.body(AnswerBody::new(answer, record)));
    }
    match collect(&mut answer).await {
        Ok(document) => {
            record.finish(200, Answer::summary(&answer));
            Ok(response.content_type("application/json").body(document))
        }
        Err(error) => Err((error, record)),
    }
}
