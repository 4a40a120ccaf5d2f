//! Which route does what, and how errors are written.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::{CONTENT_TYPE, HeaderMap, HeaderValue, SERVER, VARY},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    chat::Chat,
    completions,
    engine::{Engine, SeenRequest},
    generation::Job,
    identity::Identity,
    info, messages,
    options::Flavour,
    pooling,
    publisher::EventPorts,
    request::{self, Refusal},
    responses, sglang,
    stream::{self as events, AnswerShape},
};

/// Largest body that is read; real engines have no bound.
const MAX_BODY: usize = 64 << 20;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Answers one request.
pub(super) async fn answer(
    engine: Arc<Engine>,
    ports: Arc<[EventPorts]>,
    request: Request<Incoming>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    if head.method == Method::GET || path == "/reset_prefix_cache" || path == "/flush_cache" {
        if engine.options.flavour == Flavour::Sglang && path == "/health" {
            generate_for_health(&engine).await;
        }
        return inform(&engine, &ports, &path);
    }
    let Ok(body) = Limited::new(body, MAX_BODY)
        .collect()
        .await
        .map(|body| body.to_bytes())
    else {
        return json_answer(400, &json!({"detail": "There was an error parsing the body"}));
    };
    match generate(&engine, &path, &head.headers, &body).await {
        Ok(response) => response,
        Err(refusal) => refuse(engine.options.flavour, &path, &refusal),
    }
}

/// SGLang's `/health` generates a token and looks for it once a second. Tests find it among the requests.
async fn generate_for_health(engine: &Engine) {
    engine.remember(SeenRequest {
        path: "/health".into(),
        headers: Vec::new(),
        body: Bytes::new(),
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// The routes without a body.
fn inform(engine: &Engine, ports: &[EventPorts], path: &str) -> Response<Body> {
    let document = match (engine.options.flavour, path) {
        (_, "/health" | "/ping") | (Flavour::Sglang, "/ready") => return empty(),
        (_, "/v1/models") => info::models(engine),
        (_, "/metrics") => return text(info::metrics(engine)),
        (Flavour::Vllm, "/version") => json!({"version": engine.options.version}),
        (Flavour::Vllm, "/load") => json!({"server_load": 0}),
        (Flavour::Vllm, "/kv_event_sources") => info::event_sources(engine, ports),
        (Flavour::Vllm, "/reset_prefix_cache") => {
            engine.ranks.iter().for_each(|rank| rank.clear());
            json!({"success": true})
        }
        (Flavour::Sglang, "/flush_cache") => {
            engine.ranks.iter().for_each(|rank| rank.clear());
            return text("Cache flushed.\n".into());
        }
        (Flavour::Sglang, "/server_info" | "/get_server_info") => info::server_info(engine, ports),
        (Flavour::Sglang, "/model_info" | "/get_model_info") => info::model_info(engine),
        (Flavour::Sglang, "/v1/loads") => info::loads(engine),
        _ => return json_answer(404, &json!({"detail": "Not Found"})),
    };
    json_answer(200, &document)
}

/// The routes with a body.
async fn generate(
    engine: &Arc<Engine>,
    path: &str,
    headers: &HeaderMap,
    bytes: &Bytes,
) -> Result<Response<Body>, Refusal> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    engine.remember(SeenRequest {
        path: path.into(),
        headers: headers
            .iter()
            .map(|(name, value)| {
                (
                    name.to_string(),
                    String::from_utf8_lossy(value.as_bytes()).into_owned(),
                )
            })
            .collect(),
        body: bytes.clone(),
    });
    let body = request::parse(header("content-type").unwrap_or_default(), bytes)?;
    match (engine.options.flavour, path) {
        (Flavour::Vllm, "/v1/load_lora_adapter") => return engine.adapters.load(&body).map(text),
        (Flavour::Vllm, "/v1/unload_lora_adapter") => return engine.adapters.unload(&body).map(text),
        _ => {}
    }
    let model = body["model"].as_str().unwrap_or(&engine.options.model).to_owned();
    let identity = Identity::new(header("x-request-id"), model);
    match path {
        "/v1/embeddings" => return Ok(json_answer(200, &pooling::embeddings(engine, &identity, &body)?)),
        "/v1/score" | "/score" => return Ok(json_answer(200, &pooling::score(engine, &identity, &body)?)),
        "/v1/rerank" | "/rerank" => return Ok(json_answer(200, &pooling::rerank(engine, &identity, &body)?)),
        "/tokenize" => return Ok(json_answer(200, &pooling::tokenize(engine, &body)?)),
        "/detokenize" => return Ok(json_answer(200, &pooling::detokenize(engine, &body)?)),
        _ => {}
    }
    let rank = rank(engine, header("x-data-parallel-rank"), &body)?;
    if engine.faults.lock().silent {
        // Until the client closes its connection.
        std::future::pending::<()>().await;
    }
    let refused = engine.faults.lock().refused_with;
    if let Some(status) = refused {
        return Err(Refusal {
            status,
            kind: "InternalServerError",
            message: "the fake engine refuses generations".into(),
            param: None,
        });
    }
    match (engine.options.flavour, path) {
        (Flavour::Vllm, "/v1/chat/completions") => {
            let Chat { job, answer } = Chat::read(engine, identity, rank, &body, None)?;
            deliver(engine, job, answer).await
        }
        (Flavour::Sglang, "/v1/chat/completions") => {
            let (job, answer) = sglang::read_chat(engine, identity, rank, &body)?;
            deliver(engine, job, answer).await
        }
        (Flavour::Sglang, "/generate") => {
            let (job, answer) = sglang::read_native(engine, identity, rank, &body)?;
            deliver(engine, job, answer).await
        }
        (_, "/v1/completions") => {
            let (job, answer) = completions::read(engine, identity, rank, &body)?;
            deliver(engine, job, answer).await
        }
        (_, "/v1/responses") => {
            let (job, answer) = responses::read(engine, identity, rank, &body)?;
            deliver(engine, job, answer).await
        }
        (_, "/v1/messages") => {
            let (job, answer) = messages::read(engine, identity, rank, &body)?;
            deliver(engine, job, answer).await
        }
        (Flavour::Vllm, "/inference/v1/generate") => Err(Refusal {
            status: 403,
            kind: "PermissionDeniedError",
            message:
                "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them."
                    .into(),
            param: None,
        }),
        _ => Ok(json_answer(404, &json!({"detail": "Not Found"}))),
    }
}

/// The rank that the request names, or the idlest one.
fn rank(engine: &Engine, header: Option<&str>, body: &Value) -> Result<usize, Refusal> {
    let ranks = engine.ranks.len();
    let named = match engine.options.flavour {
        Flavour::Vllm => header.and_then(|rank| rank.parse().ok()),
        Flavour::Sglang => match header {
            Some(rank) => {
                let message = format!("X-Data-Parallel-Rank must be an integer, got {rank}");
                Some(rank.parse().map_err(|_| Refusal::bad(message))?)
            }
            None => body["routed_dp_rank"].as_u64().map(|rank| rank as usize),
        },
    };
    match named {
        Some(rank) if rank >= ranks => Err(Refusal::bad(format!(
            "data_parallel_rank {rank} is out of range [0, {ranks})."
        ))),
        Some(rank) => Ok(rank),
        None => Ok(engine.idlest_rank()),
    }
}

/// Streams the answer, or waits for its end.
async fn deliver(
    engine: &Arc<Engine>,
    job: Job,
    format: impl AnswerShape,
) -> Result<Response<Body>, Refusal> {
    if format.delivery().stream {
        // The head goes out now, long before the first token.
        let receiver = events::start(engine.clone(), job, format);
        return Ok(event_stream(receiver));
    }
    let mut running = job
        .begin(engine)
        .await
        .ok_or_else(|| Refusal::bad("the KV cache is too small for the request"))?;
    events::generate(&mut running, &job, 0, job.longest_answer()).await;
    let usage = job.usage(engine, &running, job.completion_tokens());
    Ok(json_answer(200, &format.document(&job, usage)))
}

/// An error, in the shape of the engine and the route.
fn refuse(flavour: Flavour, path: &str, refusal: &Refusal) -> Response<Body> {
    let members = refusal.members();
    let document = match (flavour, path) {
        // Only what passes validation gets an error in Anthropic's shape.
        (_, "/v1/messages") if !refusal.is_invalid() => {
            json!({"type": "error", "error": {"type": members["type"], "message": members["message"]}})
        }
        (Flavour::Vllm, _) => json!({"error": members}),
        // SGLang does not wrap its errors.
        (Flavour::Sglang, _) => {
            let mut document = json!({"object": "error"});
            if let (Some(document), Value::Object(members)) = (document.as_object_mut(), members) {
                document.extend(members);
            }
            document
        }
    };
    json_answer(refusal.status, &document)
}

fn event_stream(mut receiver: mpsc::Receiver<io::Result<Bytes>>) -> Response<Body> {
    let frames = stream::poll_fn(move |context| {
        receiver
            .poll_recv(context)
            .map(|event| event.map(|event| event.map(Frame::data)))
    });
    // One event is one chunk, as with uvicorn.
    let body = StreamBody::new(frames).boxed_unsync();
    respond(200, "text/event-stream; charset=utf-8", body)
}

fn json_answer(status: u16, document: &Value) -> Response<Body> {
    respond(status, "application/json", whole(document.to_string()))
}

fn text(text: String) -> Response<Body> {
    respond(200, "text/plain; version=1.0.0; charset=utf-8", whole(text))
}

fn empty() -> Response<Body> {
    let mut response = respond(200, "", whole(String::new()));
    response.headers_mut().remove(CONTENT_TYPE);
    response
}

fn whole(text: String) -> Body {
    Full::new(Bytes::from(text))
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn respond(status: u16, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("uvicorn"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(VARY, HeaderValue::from_static("Origin"));
    response
}
