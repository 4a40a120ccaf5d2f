//! A generation from the request's head to its answer's body: read, parse, tokenise, route, stream.

use std::time::{SystemTime, UNIX_EPOCH};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{CACHE_CONTROL, HeaderName, HeaderValue},
    web::{Data, Payload},
};
use bytes::Bytes;
use signalbox_protocol::{AnswerFormat, Endpoint, ErrorKind, GenerateRequest, WireError};
use signalbox_router::{ModelView, RouteRequest, RoutedAnswer};
use signalbox_tokenize::{ChatPrompt, TextError};

use crate::{
    answer::{Answer, AnswerBody, collect},
    body,
    error::{self, REQUEST_ID},
    frontend::Frontend,
    metrics::RequestRecord,
    openai::{
        ChatRequest, CompletionRequest, DefaultLength, GenerationParams, Prompt, check_vocabulary,
        fit_context, model_of,
    },
};

const WORKER: HeaderName = HeaderName::from_static("x-signalbox-worker");
const POLICY: HeaderName = HeaderName::from_static("x-signalbox-policy");
const OVERLAP_BLOCKS: HeaderName = HeaderName::from_static("x-signalbox-overlap-blocks");
/// With the value `no`, reverse proxies such as nginx forward each event at once.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// OpenAI's default length of a plain completion, in tokens.
const DEFAULT_COMPLETION_TOKENS: u32 = 16;

/// `POST /v1/chat/completions`
pub(crate) async fn chat_completions(
    request: HttpRequest,
    payload: Payload,
    frontend: Data<Frontend>,
) -> HttpResponse {
    respond(Endpoint::Chat, request, payload, &frontend).await
}

/// `POST /v1/completions`
pub(crate) async fn completions(
    request: HttpRequest,
    payload: Payload,
    frontend: Data<Frontend>,
) -> HttpResponse {
    respond(Endpoint::Completions, request, payload, &frontend).await
}

/// `POST /v1/embeddings`: an error, since no served model makes embeddings.
pub(crate) async fn embeddings(
    request: HttpRequest,
    payload: Payload,
    frontend: Data<Frontend>,
) -> HttpResponse {
    let refused = async {
        let body = body::read(&request, payload, frontend.body_limits).await?;
        let model = model_of(&body)?;
        frontend.model(&model)?;
        let message = format!("{model} generates text and makes no embeddings; no model served here does");
        Err::<HttpResponse, _>(WireError::invalid_param("model", message))
    };
    refused
        .await
        .unwrap_or_else(|error| error::response(error, &error::request_id(&request)))
}

async fn respond(
    endpoint: Endpoint,
    request: HttpRequest,
    payload: Payload,
    frontend: &Frontend,
) -> HttpResponse {
    let id = error::request_id(&request);
    let in_flight = frontend.traffic.enter();
    let mut record = RequestRecord::begin(&frontend.metrics, endpoint, id, in_flight);
    match answer(endpoint, &request, payload, frontend, &mut record).await {
        Ok((answer, stream)) => match whole_or_stream(answer, stream, record).await {
            Ok(response) => response,
            Err((error, mut record)) => fail(error, &mut record),
        },
        Err(error) => fail(error, &mut record),
    }
}

fn fail(error: WireError, record: &mut RequestRecord) -> HttpResponse {
    record.finish(error.status(), None);
    error::response(error, record.id())
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
    let prepared = match endpoint {
        Endpoint::Chat => prepare_chat(frontend, &body, record)?,
        _ => prepare_completion(frontend, &body, record)?,
    };
    let stream = prepared.generation.stream;
    let choices = prepared.generation.sampling.n;
    let left = frontend.request_timeout.saturating_sub(record.elapsed());
    let deadline_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let routed = frontend
        .replica
        .route(prepared.into_route_request(endpoint, body, record, deadline_ms))
        .await?;
    record.routed_to(&routed.worker);
    if stream {
        record.first_token(choices);
    }
    Ok((routed, stream))
}

/// A request whose tokens fit its model.
#[derive(Debug)]
struct Prepared {
    generation: GenerationParams,
    tokens: Vec<u32>,
    /// The text that the answer begins with.
    echo: Option<String>,
}

fn prepare_chat(frontend: &Frontend, body: &[u8], record: &mut RequestRecord) -> Result<Prepared, WireError> {
    let ChatRequest { generation, messages } = ChatRequest::parse(body)?;
    let model = frontend.model(&generation.model)?;
    record.served_by_model(&model.name);
    let tokens = model
        .text
        .encode_chat(&ChatPrompt::new(&messages))
        .map_err(|error| text_error(error, "messages"))?;
    fit(
        generation,
        tokens,
        None,
        &model,
        DefaultLength::RestOfContext,
        "messages",
    )
}

fn prepare_completion(
    frontend: &Frontend,
    body: &[u8],
    record: &mut RequestRecord,
) -> Result<Prepared, WireError> {
    let CompletionRequest {
        generation,
        prompt,
        echo,
    } = CompletionRequest::parse(body)?;
    let model = frontend.model(&generation.model)?;
    record.served_by_model(&model.name);
    let (tokens, text) = match prompt {
        Prompt::Text(text) => (
            model
                .text
                .encode_prompt(&text)
                .map_err(|error| text_error(error, "prompt"))?,
            Some(text),
        ),
        Prompt::Tokens(tokens) => {
            check_vocabulary(&tokens, &generation.sampling.logit_bias, model.text.vocab_size())?;
            (tokens, None)
        }
    };
    let echo = match (echo, text) {
        (false, _) => None,
        (true, Some(text)) => Some(text),
        (true, None) => Some(
            model
                .text
                .decode(&tokens)
                .map_err(|error| text_error(error, "prompt"))?,
        ),
    };
    fit(
        generation,
        tokens,
        echo,
        &model,
        DefaultLength::Tokens(DEFAULT_COMPLETION_TOKENS),
        "prompt",
    )
}

fn fit(
    mut generation: GenerationParams,
    tokens: Vec<u32>,
    echo: Option<String>,
    model: &ModelView,
    default: DefaultLength,
    param: &str,
) -> Result<Prepared, WireError> {
    if tokens.is_empty() {
        return Err(WireError::invalid_param(
            param,
            format!("{param} has no tokens; give at least one"),
        ));
    }
    check_vocabulary(&[], &generation.sampling.logit_bias, model.text.vocab_size())?;
    generation.sampling.max_tokens = fit_context(
        tokens.len(),
        generation.max_tokens,
        default,
        model.context_length,
        param,
    )?;
    Ok(Prepared {
        generation,
        tokens,
        echo,
    })
}

/// Errors of the template or the tokenizer are about the prompt: `param` names the parameter that holds it.
fn text_error(error: TextError, param: &str) -> WireError {
    let mut error = WireError::from(error);
    error.param.get_or_insert_with(|| param.to_owned());
    error
}

impl Prepared {
    fn into_route_request(
        self,
        endpoint: Endpoint,
        body: Bytes,
        record: &RequestRecord,
        deadline_ms: u64,
    ) -> RouteRequest {
        let generation = self.generation;
        RouteRequest {
            generate: GenerateRequest {
                id: record.id().clone(),
                model: generation.model,
                deadline_ms,
                lora: String::new(),
                cache_salt: generation.cache_salt,
                priority: generation.priority,
                overlap_blocks: 0,
                sampling: generation.sampling,
                format: AnswerFormat {
                    endpoint,
                    stream: generation.stream,
                    include_usage: generation.include_usage,
                    echo: self.echo,
                    created: SystemTime::now()
                        .duration_since(UNIX_EPOCH)
                        .map_or(0, |since| since.as_secs()),
                },
            },
            tokens: self.tokens,
            unhashed_tokens: 0,
            body,
            session: generation.session,
        }
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
