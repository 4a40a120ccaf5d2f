//! A request that a worker answers, from its head to its answer's body: read, parse, tokenise, route, stream.
//!
//! All routes pass here. The model decides how a body is read ([`crate::read_request`]). The status of an answer is known when
//! its first bytes arrive. A stream whose first bytes are late has its head before ([`crate::late_answer`]).

use std::rc::Rc;

use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    http::header::{CACHE_CONTROL, HeaderName, HeaderValue},
    web::{Data, Payload},
};
use signalbox_protocol::{Endpoint, ErrorKind, WireError};
use tokio::time::{Instant, timeout};

use crate::{
    answer::{Answer, AnswerBody},
    begun_answer::{Begun, BegunAnswer},
    body,
    client_keys::HeaderKeys,
    document::Document,
    error::{self, REQUEST_ID},
    every_form::EveryForm,
    explained::{self, EXPLANATION},
    frontend::Frontend,
    joined_answer::{JoinedAnswer, Route},
    late_answer::LateAnswer,
    metrics::{Expected, RequestRecord},
    prompt_router::PromptRouter,
    read_request::Asked,
    response_answer::ResponseAnswer,
    running_answers::shutting_down,
};

const WORKER: HeaderName = HeaderName::from_static("x-signalbox-worker");
const POLICY: HeaderName = HeaderName::from_static("x-signalbox-policy");
const OVERLAP_BLOCKS: HeaderName = HeaderName::from_static("x-signalbox-overlap-blocks");
/// How exact the router's knowledge of the worker's KV cache is: `exact`, `degraded` or `fallback`.
const KV: HeaderName = HeaderName::from_static("x-signalbox-kv");
/// With the value `no`, reverse proxies such as nginx forward each event at once.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// A request that is read, and not routed yet.
struct Opened {
    router: PromptRouter,
    model: String,
    /// At least one; each is routed by itself.
    prompts: Vec<EveryForm>,
    is_stream: bool,
    include_usage: bool,
    expected: Expected,
}

/// A request that is read.
enum Read {
    /// It is routed.
    Opened(Opened),
    /// The router has the answer, a JSON document.
    Answered(String),
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
    let opened = open(endpoint, &request, payload, &frontend, &mut record);
    let opened = match until_cut_off(&frontend, opened).await {
        Ok(Read::Opened(opened)) => opened,
        Ok(Read::Answered(document)) => {
            record.finish(200, None);
            let mut response = HttpResponse::Ok();
            insert_id(&mut response, &record);
            return response.content_type("application/json").body(document);
        }
        Err(error) => return fail(error, &mut record),
    };
    let (is_stream, deadline, expected) = (opened.is_stream, opened.router.deadline, opened.expected);
    let begun = if let Some(patience) = frontend.ping_after.filter(|_| is_stream) {
        let mut beginning = Box::pin(begin(opened));
        match timeout(patience, until_cut_off(&frontend, &mut beginning)).await {
            Ok(begun) => begun,
            Err(_) => {
                let late = LateAnswer::new(beginning, patience);
                let mut response = stream_head(&record);
                let body = AnswerBody::late(late, record, expected, &frontend.answers, deadline);
                return response.body(body);
            }
        }
    } else {
        until_cut_off(&frontend, begin(opened)).await
    };
    let begun = match begun {
        Ok(begun) => begun,
        Err(error) => return fail(error, &mut record),
    };
    record.routed_to(&begun.worker);
    record.begun(expected.prompt_tokens);
    if is_stream {
        record.first_token(expected.choices);
        let mut response = stream_head(&record);
        insert_routing(&mut response, &begun);
        return response.body(AnswerBody::new(begun.answer, record, &frontend.answers, deadline));
    }
    let mut response = HttpResponse::Ok();
    insert_id(&mut response, &record);
    insert_routing(&mut response, &begun);
    let mut answer = begun.answer;
    match until_cut_off(&frontend, Document::collect(&mut answer)).await {
        Ok(document) => {
            record.delivered(answer.tokens());
            record.finish(200, answer.summary());
            response.content_type("application/json").body(document)
        }
        Err(error) => fail(error, &mut record),
    }
}

fn fail(error: WireError, record: &mut RequestRecord) -> HttpResponse {
    record.finish(error.status(), None);
    error::response_at(record.endpoint(), error, record.id())
}

/// The head of a stream, without the headers that name its worker.
fn stream_head(record: &RequestRecord) -> HttpResponseBuilder {
    let mut response = HttpResponse::Ok();
    insert_id(&mut response, record);
    response
        .content_type("text/event-stream")
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((ACCEL_BUFFERING, "no"));
    response
}

fn insert_id(response: &mut HttpResponseBuilder, record: &RequestRecord) {
    if let Ok(id) = HeaderValue::from_str(record.id().as_str()) {
        response.insert_header((REQUEST_ID, id));
    }
}

/// The headers that say where and how the request was routed.
fn insert_routing(response: &mut HttpResponseBuilder, begun: &Begun) {
    let headers = [
        (WORKER, HeaderValue::from_str(begun.worker.as_str()).ok()),
        (POLICY, HeaderValue::from_str(&begun.policy).ok()),
        (OVERLAP_BLOCKS, Some(HeaderValue::from(begun.overlap_blocks))),
        (KV, Some(HeaderValue::from_static(begun.kv.as_str()))),
    ];
    for (name, value) in headers {
        if let Some(value) = value {
            response.insert_header((name, value));
        }
    }
    if let Some(value) = begun
        .explanation
        .as_ref()
        .and_then(|words| HeaderValue::from_str(words).ok())
    {
        response.insert_header((EXPLANATION, value));
    }
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

/// Everything up to the routing.
async fn open(
    endpoint: Endpoint,
    request: &HttpRequest,
    payload: Payload,
    frontend: &Data<Frontend>,
    record: &mut RequestRecord,
) -> Result<Read, WireError> {
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
    let id = record.id().clone();
    let keys = HeaderKeys::read(request.headers(), &frontend.shown_headers);
    let explained = explained::is_asked(request.headers(), &frontend.shared.admin_token);
    let router = PromptRouter::new(frontend.clone(), endpoint, id, deadline, keys, explained, body);
    let read = router.read().await?;
    if let Some(model) = &read.model {
        record.served_by_model(model.clone());
    }
    let prompts = match read.asked? {
        Asked::Prompts(prompts) => prompts,
        Asked::Document(document) => return Ok(Read::Answered(document)),
    };
    let (mut is_stream, mut include_usage, mut expected) = (false, false, Expected::default());
    for prompt in prompts.iter().filter_map(EveryForm::first) {
        if let Some(reason) = prompt.unhashed {
            record.unhashed(reason.as_str());
        }
        is_stream = prompt.generation.stream;
        include_usage = prompt.generation.include_usage;
        expected.prompt_tokens += prompt.tokens.len();
        expected.choices = expected.choices.saturating_add(prompt.generation.sampling.n);
    }
    Ok(Read::Opened(Opened {
        router,
        model: read.model.unwrap_or_default(),
        prompts,
        is_stream,
        include_usage,
        expected,
    }))
}

/// Routes the request, up to the worker's first bytes. Of several prompts, the others are routed as their answers are read.
async fn begin(opened: Opened) -> Result<Begun, WireError> {
    let Opened {
        router,
        model,
        mut prompts,
        is_stream,
        include_usage,
        ..
    } = opened;
    let count = prompts.len();
    if count > 1 {
        let shared = Rc::new((router, model, prompts));
        let (router, model, prompts) = &*shared;
        let first = router.route(model, 0, prompts[0].clone()).await?;
        let route: Route<_> = {
            let shared = Rc::clone(&shared);
            Box::new(move |number| {
                let shared = Rc::clone(&shared);
                Box::pin(async move {
                    let (router, model, prompts) = &*shared;
                    let routed = router.route(model, number, prompts[number].clone()).await?;
                    Ok(routed.stream)
                })
            })
        };
        return Ok(Begun::new(first, |first| {
            BegunAnswer::Joined(Box::new(if is_stream {
                JoinedAnswer::stream(first, count, include_usage, route)
            } else {
                JoinedAnswer::document(first, count, route)
            }))
        }));
    }
    let prompt = prompts
        .pop()
        .ok_or_else(|| WireError::new(ErrorKind::Internal, "the request was made ready for no worker"))?;
    let response = prompt.first().and_then(|prompt| prompt.response.clone());
    let routed = router.route(&model, 0, prompt).await?;
    Ok(Begun::new(routed, |chat| match response {
        None => BegunAnswer::One(chat),
        Some(settings) => BegunAnswer::Response(Box::new(ResponseAnswer::new(chat, is_stream, settings))),
    }))
}
