//! A worker in front of an engine that speaks the OpenAI API, as a router uses it. Each trap that real engines have set
//! is a test.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use signalbox_protocol::{
    AnswerFormat, Call, Endpoint, ErrorKind, GenerateRequest, LoraAdapter, ParityState, RequestId,
    SamplingParams, StreamSummary, WireError, WorkerReport, WorkerRole,
};
use signalbox_request_plane::{
    CallParts, LinkConfig, LinkError, LinkHandle, ResponseEvent, ResponseStream, ServerConfig,
};
use signalbox_tokenize::{ModelArtifacts, ModelText};
use signalbox_worker::{
    openai::{Engine, StatedFacts, TokenFacts, Upstream, find_engine, start_adapter},
    service::{ModelFiles, RunningWorker, WorkerConfig, run_backend},
};
use tokio::{sync::Notify, time::timeout};

use self::scripted_engine::{ScriptedEngine, Step, chunk, json, stream_end, stream_head};

mod scripted_engine;
mod tls;

/// Longer than anything here takes, so that a test that waits for ever fails.
const LONG: Duration = Duration::from_secs(20);

struct Fixture {
    engine: ScriptedEngine,
    worker: RunningWorker,
    link: LinkHandle,
}

impl Fixture {
    async fn start(posts: Vec<Vec<Step>>) -> Self {
        let engine = ScriptedEngine::start(posts).await;
        let upstream = Upstream::new(engine.url.parse().unwrap(), Some("key"), None).unwrap();
        let found = find_engine(&upstream, &StatedFacts::default(), |_| {})
            .await
            .unwrap();
        let watched = Engine::watch(upstream, found);
        let artifacts = ModelArtifacts::byte_level();
        let text = Arc::new(ModelText::load(&artifacts).unwrap());
        let config = WorkerConfig {
            id: "w0".parse().unwrap(),
            listen: "127.0.0.1:0".parse().unwrap(),
            nats: None,
            advertise_host: None,
            model: "tiny".into(),
            last_epoch: None,
            role: WorkerRole::Aggregated,
            labels: BTreeMap::new(),
            server: ServerConfig::default(),
        };
        let info = watched.info();
        let worker = run_backend(config, info, ModelFiles::new(&artifacts, text), |card, log| {
            start_adapter(watched, 0, TokenFacts::default(), card, log)
        })
        .await
        .unwrap();
        let link = LinkHandle::start(worker.card().address.clone(), LinkConfig::default(), None);
        Self { engine, worker, link }
    }

    fn post(&self, endpoint: Endpoint, body: &str) -> ResponseStream {
        self.post_within(endpoint, body, 60_000)
    }

    fn post_within(&self, endpoint: Endpoint, body: &str, deadline_ms: u64) -> ResponseStream {
        let request = GenerateRequest {
            id: RequestId::from_client("r1").unwrap(),
            model: "tiny".into(),
            deadline_ms,
            lora: String::new(),
            cache_salt: String::new(),
            priority: 0,
            overlap_blocks: 0,
            wants_token_ids: false,
            continuation: None,
            constraint: None,
            sampling: SamplingParams::default(),
            format: AnswerFormat {
                endpoint,
                stream: body.contains("\"stream\":true"),
                include_usage: false,
                echo: None,
                return_token_ids: false,
                continuous_usage: false,
                tools: None,
                created: 1,
                part: None,
            },
        };
        let parts = CallParts {
            call: Call::Generate(request),
            tokens: vec![1, 2, 3],
            body: Bytes::copy_from_slice(body.as_bytes()),
        };
        self.link.open(parts).unwrap()
    }

    async fn reports(&self) -> ResponseStream {
        let call = CallParts {
            call: Call::WatchLoad { interval_ms: 10 },
            tokens: Vec::new(),
            body: Bytes::new(),
        };
        self.link.open(call).unwrap()
    }
}

/// The bytes, the number of tokens, and the summary or the error of a whole stream.
async fn whole(mut stream: ResponseStream) -> (String, u32, Result<StreamSummary, WireError>) {
    let (mut text, mut count) = (String::new(), 0);
    loop {
        match timeout(LONG, stream.next()).await.unwrap().unwrap() {
            Ok(ResponseEvent::Data { tokens, bytes, .. }) => {
                text.push_str(std::str::from_utf8(&bytes).unwrap());
                count += tokens;
            }
            Ok(ResponseEvent::End(summary)) => return (text, count, Ok(summary)),
            Err(LinkError::Refused(error)) => return (text, count, Err(error)),
            Err(error) => panic!("{error}"),
        }
    }
}

/// A stream whose first token has arrived, and whose engine sends nothing more.
async fn stalled_stream() -> (Fixture, ResponseStream) {
    let never = Arc::new(Notify::new());
    let fixture = Fixture::start(vec![vec![
        send(stream_head() + &token("a", "null")),
        Step::Wait(never),
    ]])
    .await;
    let mut stream = fixture.post(Endpoint::Chat, CHAT);
    assert!(stream.next().await.unwrap().is_ok());
    (fixture, stream)
}

async fn error_of(stream: ResponseStream) -> WireError {
    let (text, _, end) = whole(stream).await;
    assert_eq!(text, "", "nothing was delivered");
    end.unwrap_err()
}

fn send(text: impl Into<String>) -> Step {
    Step::Send(text.into())
}

/// A chunk of a chat.
fn token(text: &str, finish: &str) -> String {
    chunk(&format!(
        "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":{finish},\"token_ids\":[5]}}]}}\n\n"
    ))
}

const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":0}}}\n\n";

fn done() -> String {
    chunk("data: [DONE]\n\n") + &stream_end()
}

const CHAT: &str = r#"{"model":"tiny", "messages":[],"x":[1.50],"stream":true}"#;

#[actix_rt::test]
async fn a_chat_is_forwarded_and_its_stream_comes_back_without_what_was_added() {
    let fixture = Fixture::start(vec![vec![
        send(stream_head()),
        send(token("a", "null") + &token("b", "\"stop\"") + &chunk(USAGE) + &done()),
    ]])
    .await;
    let (text, tokens, end) = whole(fixture.post(Endpoint::Chat, CHAT)).await;
    let event = |text: &str, finish: &str| {
        format!(
            "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":{finish},\"token_ids\":null}}]}}\n\n"
        )
    };
    assert_eq!(
        text,
        event("a", "null") + &event("b", "\"stop\"") + "data: [DONE]\n\n"
    );
    assert_eq!(tokens, 2);
    let summary = end.unwrap();
    assert_eq!((summary.prompt_tokens, summary.completion_tokens), (3, 2));

    let received = &fixture.engine.received()[0];
    assert_eq!(received.path, "/v1/chat/completions");
    let added = r#","return_token_ids":true,"stream_options":{"include_usage":true}}"#;
    assert_eq!(received.body, CHAT.strip_suffix('}').unwrap().to_owned() + added);
    for (header, value) in [
        ("x-request-id", "r1"),
        ("authorization", "Bearer key"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(
            received.headers.get(header).map(String::as_str),
            Some(value),
            "{header}"
        );
    }
    let card = fixture.worker.card();
    assert!(card.reads_body && !card.kv_events);
    assert_eq!(
        (card.engine.as_str(), card.engine_version.as_str()),
        ("vllm", "0.32.0")
    );
    assert_eq!(
        (card.context_length, card.block_size, card.capacity.kv_blocks),
        (4_096, 16, 100)
    );
}

#[actix_rt::test]
async fn other_routes_reach_the_engine_unchanged() {
    let answer = r#"{"data":[{"embedding":[0.5]}],"usage":{"prompt_tokens":7}}"#;
    let fixture = Fixture::start(vec![vec![send(json(200, answer))]]).await;
    let body = r#"{ "input" : "x" }"#;
    for endpoint in [
        Endpoint::Embeddings,
        Endpoint::Rerank,
        Endpoint::Score,
        Endpoint::Tokenize,
        Endpoint::Responses,
        Endpoint::Messages,
    ] {
        let (text, _, end) = whole(fixture.post(endpoint, body)).await;
        assert_eq!((text.as_str(), end.unwrap().prompt_tokens), (answer, 7));
        let received = fixture.engine.received().pop().unwrap();
        assert_eq!(
            (received.path.as_str(), received.body.as_str()),
            (endpoint.path(), body)
        );
    }
}

#[actix_rt::test]
async fn the_first_piece_comes_with_the_first_data_and_not_with_the_headers() {
    let prefilled = Arc::new(Notify::new());
    let fixture = Fixture::start(vec![vec![
        send(stream_head() + &chunk(": keep-alive\n\n")),
        Step::Wait(prefilled.clone()),
        send(token("a", "\"stop\"") + &done()),
    ]])
    .await;
    let mut stream = fixture.post(Endpoint::Chat, CHAT);
    let early = timeout(Duration::from_millis(300), stream.next()).await;
    assert!(early.is_err(), "{early:?}");
    prefilled.notify_one();
    let (text, ..) = whole(stream).await;
    assert!(text.starts_with("data: {"), "{text}");
}

#[actix_rt::test]
async fn an_error_in_a_stream_that_ends_politely_is_an_error() {
    let error =
        chunk("data: {\"error\": {\"message\": \"EngineCore encountered an issue.\", \"code\": 500}}\n\n");
    let fixture = Fixture::start(vec![
        vec![send(stream_head() + &error + &done())],
        vec![send(stream_head() + &token("a", "null") + &error + &done())],
    ])
    .await;
    let before = error_of(fixture.post(Endpoint::Chat, CHAT)).await;
    assert_eq!(before.kind, ErrorKind::Unavailable, "another worker may answer");
    assert!(before.message.contains("EngineCore"), "{before}");
    let (text, _, end) = whole(fixture.post(Endpoint::Chat, CHAT)).await;
    assert!(text.contains("\"a\"") && !text.contains("DONE"), "{text}");
    assert_eq!(end.unwrap_err().kind, ErrorKind::Unavailable);
}

#[actix_rt::test]
async fn a_stream_without_a_finish_reason_or_with_a_lost_connection_fails() {
    let fixture = Fixture::start(vec![
        vec![send(stream_head() + &token("a", "null") + &done())],
        vec![send(stream_head() + &token("a", "null") + &stream_end())],
        vec![send(stream_head() + &token("a", "null")), Step::Close],
    ])
    .await;
    for _ in 0..3 {
        let (text, _, end) = whole(fixture.post(Endpoint::Chat, CHAT)).await;
        assert!(text.contains("\"a\""), "{text}");
        assert_eq!(end.unwrap_err().kind, ErrorKind::Unavailable);
    }
}

#[actix_rt::test]
async fn a_connection_closed_without_an_answer_is_tried_once_more() {
    let whole_answer = || vec![send(json(200, r#"{"usage":{"prompt_tokens":1}}"#))];
    let fixture = Fixture::start(vec![
        vec![Step::Close],
        whole_answer(),
        vec![Step::Close],
        vec![Step::Close],
        whole_answer(),
    ])
    .await;
    let (.., end) = whole(fixture.post(Endpoint::Embeddings, "{}")).await;
    assert!(end.is_ok() && fixture.engine.received().len() == 2);
    let error = error_of(fixture.post(Endpoint::Embeddings, "{}")).await;
    assert_eq!(
        (error.kind, fixture.engine.received().len()),
        (ErrorKind::Unavailable, 4)
    );
}

#[actix_rt::test]
async fn an_answer_that_began_is_not_asked_for_again() {
    let fixture = Fixture::start(vec![vec![
        send("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"),
        Step::Close,
    ]])
    .await;
    let error = error_of(fixture.post(Endpoint::Chat, "{}")).await;
    assert_eq!(
        (error.kind, fixture.engine.received().len()),
        (ErrorKind::Unavailable, 1)
    );
}

/// The connections of four requests that are open at the same time.
async fn four_at_once(fixture: &Fixture, go_on: &Notify) -> Vec<usize> {
    let before = fixture.engine.received().len();
    let streams: Vec<_> = (0..4).map(|_| fixture.post(Endpoint::Embeddings, "{}")).collect();
    while fixture.engine.received().len() < before + 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    go_on.notify_waiters();
    for stream in streams {
        whole(stream).await.2.unwrap();
    }
    let received = fixture.engine.received();
    received[before..]
        .iter()
        .map(|request| request.connection)
        .collect()
}

#[actix_rt::test]
async fn connections_are_kept_for_less_time_than_engines_keep_them() {
    let go_on = Arc::new(Notify::new());
    let fixture = Fixture::start(vec![vec![Step::Wait(go_on.clone()), send(json(200, "{}"))]]).await;
    let first = four_at_once(&fixture, &go_on).await;
    let known = |later: Vec<usize>| later.iter().filter(|number| first.contains(number)).count();
    // The polls of the engine use a connection now and then, and it may be one of these.
    let at_once = known(four_at_once(&fixture, &go_on).await);
    assert!(at_once >= 3, "{at_once} of 4 connections are used again at once");
    tokio::time::sleep(Duration::from_millis(4_200)).await;
    let later = known(four_at_once(&fixture, &go_on).await);
    assert!(later <= 1, "{later} of 4 connections were kept for 4.2 s");
}

#[actix_rt::test]
async fn a_cancelled_request_closes_its_connection_at_once() {
    let never = Arc::new(Notify::new());
    let mut fixture = Fixture::start(vec![
        // Before the headers, before the first data, and between two tokens.
        vec![Step::Wait(never.clone())],
        vec![send(stream_head()), Step::Wait(never.clone())],
        vec![
            send(stream_head() + &token("a", "null")),
            Step::Wait(never.clone()),
        ],
    ])
    .await;
    for number in 0..3 {
        let mut stream = fixture.post(Endpoint::Chat, CHAT);
        if number == 2 {
            assert!(stream.next().await.unwrap().is_ok());
        }
        while fixture.engine.received().len() <= number {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if number == 1 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(stream);
        timeout(Duration::from_secs(1), fixture.engine.abandoned.recv())
            .await
            .unwrap_or_else(|_| panic!("request {number} was not abandoned"));
    }
}

#[actix_rt::test]
async fn the_deadline_ends_a_request_and_closes_its_connection() {
    let never = Arc::new(Notify::new());
    let mut fixture = Fixture::start(vec![vec![send(stream_head()), Step::Wait(never)]]).await;
    let error = error_of(fixture.post_within(Endpoint::Chat, CHAT, 200)).await;
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    timeout(LONG, fixture.engine.abandoned.recv()).await.unwrap();
}

#[actix_rt::test]
async fn errors_keep_the_engines_status_and_body() {
    let openai =
        r#"{"error":{"message":"too long","type":"BadRequestError","param":"input_tokens","code":400}}"#;
    let fixture = Fixture::start(vec![
        vec![send(json(400, openai))],
        vec![send(json(
            400,
            r#"{"object":"error","message":"bad","type":"BadRequestError","param":null,"code":400}"#,
        ))],
        vec![send(json(404, r#"{"detail":"Not Found"}"#))],
        vec![send(json(500, "oops"))],
        vec![send(json(503, "{}"))],
        vec![send(json(429, "{}"))],
    ])
    .await;
    let first = error_of(fixture.post(Endpoint::Chat, CHAT)).await;
    let engine = first.engine.clone().unwrap();
    let shape: serde_json::Value = serde_json::from_str(&engine.body).unwrap();
    assert_eq!(shape, serde_json::from_str::<serde_json::Value>(openai).unwrap());
    assert_eq!(
        (engine.status, first.param.as_deref()),
        (400, Some("input_tokens"))
    );
    for (status, kind) in [
        (400, ErrorKind::InvalidRequest),
        (404, ErrorKind::NotFound),
        (500, ErrorKind::Unavailable),
        (503, ErrorKind::Unavailable),
        (429, ErrorKind::Overloaded),
    ] {
        let error = error_of(fixture.post(Endpoint::Chat, CHAT)).await;
        let engine = error.engine.unwrap();
        assert_eq!((engine.status, error.kind), (status, kind));
        let shape: serde_json::Value = serde_json::from_str(&engine.body).unwrap();
        assert!(shape["error"]["message"].is_string(), "{}", engine.body);
    }
}

#[actix_rt::test]
async fn an_engine_that_dies_fails_its_streams_and_its_worker() {
    let (fixture, stream) = stalled_stream().await;
    fixture.engine.die();
    assert_eq!(whole(stream).await.2.unwrap_err().kind, ErrorKind::Unavailable);
    let error = error_of(fixture.post(Endpoint::Chat, CHAT)).await;
    assert_eq!(error.kind, ErrorKind::Unavailable);
    let reason = timeout(LONG, fixture.worker.failed()).await.unwrap();
    assert!(reason.contains("refuses connections"), "{reason}");
    let error = error_of(fixture.post(Endpoint::Chat, CHAT)).await;
    assert_eq!((error.kind, error.message), (ErrorKind::Unavailable, reason));
}

#[actix_rt::test]
async fn an_engine_that_started_again_is_another_incarnation() {
    let fixture = Fixture::start(vec![vec![send(json(200, "{}"))]]).await;
    fixture.engine.answers.lock().unwrap().started_at = 2_000;
    let reason = timeout(LONG, fixture.worker.failed()).await.unwrap();
    assert!(reason.contains("restarted"), "{reason}");
}

#[actix_rt::test]
async fn the_report_has_the_engines_load_and_the_verdict_and_the_first_its_adapters() {
    let fixture = Fixture::start(vec![vec![send(json(200, "{}"))]]).await;
    let mut reports = fixture.reports().await;
    let sql = LoraAdapter {
        name: "sql".into(),
        root: Some("/sql".into()),
    };
    let mut adapters = Some(vec![sql]);
    loop {
        let report = match timeout(LONG, reports.next()).await.unwrap().unwrap() {
            Ok(ResponseEvent::Data { bytes, .. }) => serde_json::from_slice::<WorkerReport>(&bytes).unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            report.adapters,
            adapters.take(),
            "later reports state changes only"
        );
        assert_eq!(report.parity.state, ParityState::Fallback);
        assert!(
            report.parity.cause.contains("--kv-events-config"),
            "{}",
            report.parity.cause
        );
        if report.load.running == 3 {
            assert_eq!((report.load.waiting, report.load.active_kv_blocks), (2, 50));
            break;
        }
    }
}

#[actix_rt::test]
async fn a_stopping_worker_fails_what_is_still_open() {
    let (fixture, mut stream) = stalled_stream().await;
    timeout(LONG, fixture.worker.drain(Duration::ZERO)).await.unwrap();
    let end = timeout(LONG, stream.next()).await.unwrap();
    assert!(matches!(end, Some(Err(_))), "{end:?}");
}

#[actix_rt::test]
async fn the_adapter_waits_for_an_engine_that_is_not_ready() {
    let engine = ScriptedEngine::start(vec![vec![]]).await;
    engine.answers.lock().unwrap().health = 503;
    let upstream = Upstream::new(engine.url.parse().unwrap(), None, None).unwrap();
    let (mut reasons, answers) = (Vec::new(), engine.answers.clone());
    let stated = StatedFacts::default();
    let found = find_engine(&upstream, &stated, |reason| {
        reasons.push(reason.to_owned());
        answers.lock().unwrap().health = 200;
    });
    let found = timeout(LONG, found).await.unwrap().unwrap();
    assert_eq!(found.facts.model, "tiny");
    assert!(reasons.len() == 1 && reasons[0].contains("503"), "{reasons:?}");
}
