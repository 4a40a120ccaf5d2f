//! A request that a worker answers, from its head to its answer's body: read, parse, tokenise, route, stream.
//!
//! All routes pass here. The model decides how a body is read ([`EveryForm`]): strictly if its workers run an engine of this
//! repository (`checked`), and only as far as routing needs if its engines read bodies themselves (`forwarded`).

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{CACHE_CONTROL, HeaderName, HeaderValue},
    web::{Data, Payload},
};
use bytes::Bytes;
use signalbox_protocol::{Endpoint, ErrorKind, WireError};
use signalbox_router::RoutedAnswer;

use crate::{
    answer::{Answer, AnswerBody, collect},
    body,
    error::{self, REQUEST_ID},
    every_form::{EveryForm, parse},
    frontend::Frontend,
    metrics::RequestRecord,
    openai::take_model,
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
    let prepared = EveryForm::read(endpoint, &name, fields, &model, &body)?;
    let (mut stream, mut choices) = (false, 1);
    if let Some(first) = prepared.first() {
        if let Some(reason) = first.unhashed {
            record.unhashed(reason.as_str());
        }
        stream = first.generation.stream;
        choices = first.generation.sampling.n;
    }
    let routed = route(endpoint, &name, prepared, body, frontend, record).await?;
    record.routed_to(&routed.worker);
    if stream {
        record.first_token(choices);
    }
    Ok((routed, stream))
}

/// Routes a request. If no worker can be reached, and the model's workers read other forms of prompts by now, the body is
/// read again for these: a rolling update may have replaced every worker that the request was made ready for.
async fn route(
    endpoint: Endpoint,
    name: &str,
    prepared: EveryForm,
    body: Bytes,
    frontend: &Frontend,
    record: &RequestRecord,
) -> Result<RoutedAnswer, WireError> {
    let mut prepared = prepared;
    // Once more at most: forms change with workers, and an update takes longer than a request.
    for is_last in [false, true] {
        let left = frontend.request_timeout.saturating_sub(record.elapsed());
        let deadline_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let known = prepared.forms();
        let Some(request) = prepared.into_route_request(&body, record.id(), deadline_ms) else {
            break;
        };
        let error = match frontend.replica.route(request).await {
            Ok(routed) => return Ok(routed),
            Err(error) => error,
        };
        let model = frontend.model(name)?;
        if is_last || error.kind != ErrorKind::Unavailable || model.forms().all(|form| known.contains(&form))
        {
            return Err(error);
        }
        let mut fields = parse(endpoint, &body)?;
        take_model(&mut fields)?;
        prepared = EveryForm::read(endpoint, name, fields, &model, &body)?;
    }
    Err(WireError::new(
        ErrorKind::Internal,
        "the request was made ready for no worker",
    ))
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
