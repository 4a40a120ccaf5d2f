//! Tests both listeners over real sockets, with a real router and a worker with a fake engine.

mod admin;
mod answers;
mod clients;
mod connections;
mod forwarded;
mod lora;
mod prompts;
mod reading;
mod responses;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::Value;
use signalbox_discovery::{Discovery, MemoryDiscovery, Registration};
use signalbox_event_plane::MemoryPlane;
use signalbox_policy_store::MemoryStore;
use signalbox_protocol::{
    Call, GenerateRequest, LoraAdapter, Parity, ParityState, StreamSummary, WorkerCard, WorkerReport,
};
use signalbox_request_plane::{CallHandler, CallParts, LinkConfig, Responder, Server, ServerConfig};
use signalbox_router::{
    Router, RouterConfig,
    policies::{PolicyEngine, PolicyLimits, PolicyRegistry},
};
use signalbox_tokenize::{MessagePreparation, ModelArtifacts};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

use crate::{HttpConfig, HttpServer, RunningHttp};

/// Much longer than any step here takes, and short enough to notice a test that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Both listeners and a router. The test plays the engine of the one worker, if there is one.
struct Rig {
    http: RunningHttp,
    router: Router,
    calls: mpsc::Receiver<(CallParts, Responder)>,
    _registration: Option<Registration>,
}

impl Rig {
    /// Starts with one ready worker of `model`.
    async fn serving(model: &str) -> Self {
        Self::start(Some(model), |_| ()).await
    }

    /// Starts with one ready worker of `model` whose engine reads clients' bodies itself.
    async fn forwarding(model: &str) -> Self {
        Self::start_with(Some((model, true)), &[], |_| ()).await
    }

    /// As [`Self::forwarding`], with LoRA adapters.
    async fn adapting(model: &str, adapters: &[LoraAdapter]) -> Self {
        Self::start_with(Some((model, true)), adapters, |_| ()).await
    }

    async fn start(model: Option<&str>, configure: impl FnOnce(&mut HttpConfig)) -> Self {
        Self::start_with(model.map(|model| (model, false)), &[], configure).await
    }

    /// `model`: what the worker serves, and whether its engine reads bodies itself.
    async fn start_with(
        model: Option<(&str, bool)>,
        adapters: &[LoraAdapter],
        configure: impl FnOnce(&mut HttpConfig),
    ) -> Self {
        let discovery = Arc::new(MemoryDiscovery::default());
        let engine = PolicyEngine::new(PolicyLimits::default()).unwrap();
        let router = Router::start(RouterConfig {
            discovery: vec![discovery.clone()],
            replicas: None,
            planes: Vec::new(),
            events: MemoryPlane::new(),
            feeds_events: false,
            policies: PolicyRegistry::new(engine, "round-robin").unwrap(),
            audit: Default::default(),
            policy_store: MemoryStore::new(),
            decisions: None,
            links: LinkConfig::default(),
            index_bytes: 1 << 20,
            breakers: Default::default(),
            token_timeouts: Default::default(),
        });
        let mut config = HttpConfig {
            public: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            threads: 1,
            ..HttpConfig::default()
        };
        configure(&mut config);
        let http = HttpServer::bind(config, router.clone(), recorder())
            .unwrap()
            .run()
            .unwrap();
        let (sender, calls) = mpsc::channel(8);
        let registration = match model {
            Some((model, reads_body)) => Some(join(&discovery, model, reads_body, adapters, sender).await),
            None => None,
        };
        while model.is_some() && router.models().is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Self {
            http,
            router,
            calls,
            _registration: registration,
        }
    }

    /// The next generation that the worker receives.
    async fn call(&mut self) -> (GenerateRequest, CallParts, Responder) {
        let (parts, responder) = timeout(PATIENCE, self.calls.recv())
            .await
            .expect("a call")
            .unwrap();
        let Call::Generate(request) = parts.call.clone() else {
            panic!("{:?}", parts.call)
        };
        (request, parts, responder)
    }

    /// Sends a request to OpenAI's API.
    async fn public(&self, request: &str) -> Reply {
        exchange(self.http.public_address(), request.as_bytes()).await
    }

    /// Sends a request that a worker answers, and plays the worker: `answer` gets what the worker received. Returns what
    /// the client received, and what the worker received.
    async fn answered(
        &mut self,
        request: String,
        answer: impl FnOnce(Responder),
    ) -> (Reply, GenerateRequest, CallParts) {
        let address = self.http.public_address();
        let client = actix_rt::spawn(async move { exchange(address, request.as_bytes()).await });
        let (received, parts, responder) = self.call().await;
        answer(responder);
        (client.await.unwrap(), received, parts)
    }

    /// Sends a request to the admin API.
    async fn admin(&self, request: &[u8]) -> Reply {
        exchange(self.http.admin_address(), request).await
    }
}

/// The one recorder of the process, which all tests share.
fn recorder() -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER
        .get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap())
        .clone()
}

/// Starts and registers a worker of `model` that passes generations to the test.
async fn join(
    discovery: &MemoryDiscovery,
    model: &str,
    reads_body: bool,
    adapters: &[LoraAdapter],
    sender: mpsc::Sender<(CallParts, Responder)>,
) -> Registration {
    // Only an engine next door can differ from what a router computes.
    let (preparation, parity) = if reads_body {
        let parity = Parity::impaired(ParityState::Degraded, "the test");
        (MessagePreparation::Vllm, parity)
    } else {
        (MessagePreparation::Signalbox, Parity::default())
    };
    let artifacts = ModelArtifacts::byte_level().with_preparation(preparation);
    let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0)), ServerConfig::default())
        .await
        .unwrap();
    let card = serde_json::json!({
        "id": "worker-0", "epoch": 1, "model": model, "address": server.address(), "engine": "sim",
        "reads_body": reads_body, "block_size": 16, "context_length": 512, "artifacts_digest": artifacts.digest(), "role": "aggregated",
        "abilities": ["sampling_limits", "constraints", "tool_calls", "answer_parts", "prompt_logprobs"],
        "kv_events": false, "capacity": {"kv_blocks": 64, "max_sequences": 8, "max_waiting": 8},
    });
    let card: Arc<WorkerCard> = Arc::new(serde_json::from_value(card).unwrap());
    let engine = TestEngine {
        artifacts: artifacts.to_bytes(),
        generations: sender,
        parity,
        adapters: adapters.to_vec(),
        watches: Mutex::default(),
    };
    server.serve(card.clone(), Arc::new(engine));
    discovery.register(card).unwrap()
}

struct TestEngine {
    artifacts: Bytes,
    generations: mpsc::Sender<(CallParts, Responder)>,
    /// What it reports of its KV events.
    parity: Parity,
    adapters: Vec<LoraAdapter>,
    /// Calls that are left open.
    watches: Mutex<Vec<Responder>>,
}

impl CallHandler for TestEngine {
    fn call(&self, parts: CallParts, responder: Responder) {
        match parts.call {
            Call::Generate(_) => self.generations.try_send((parts, responder)).unwrap(),
            Call::FetchArtifacts { .. } => {
                let artifacts = self.artifacts.clone();
                tokio::spawn(async move {
                    responder.send(&artifacts).await.unwrap();
                    responder.end(StreamSummary::default());
                });
            }
            Call::WatchLoad { .. } => {
                let report = WorkerReport {
                    parity: self.parity.clone(),
                    adapters: Some(self.adapters.clone()),
                    ..WorkerReport::default()
                };
                responder.queue(0, &serde_json::to_vec(&report).unwrap()).unwrap();
                responder.flush();
                self.watches.lock().unwrap().push(responder);
            }
            _ => self.watches.lock().unwrap().push(responder),
        }
    }
}

/// An HTTP answer.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    /// Parses all bytes of a connection that was closed after one answer.
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let end = bytes
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap_or_else(|| panic!("a head: {text:?}"));
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let body = &bytes[end + 4..];
        let body = if head.contains("transfer-encoding: chunked") {
            dechunk(body)
        } else {
            body.to_vec()
        };
        Self {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head,
            body,
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Checks an error in OpenAI's shape; returns its message.
    #[track_caller]
    fn check_error(&self, status: u16, param: Option<&str>) -> String {
        let body = self.json();
        assert_eq!(self.status, status, "{body}");
        let error = body["error"].as_object().unwrap();
        assert_eq!(error["param"].as_str(), param, "{body}");
        assert!(error.contains_key("code") && error["type"].is_string(), "{body}");
        assert!(self.header("x-request-id").is_some(), "{}", self.head);
        error["message"].as_str().unwrap().to_owned()
    }
}

/// The content of complete chunks; an incomplete last chunk is left out.
fn dechunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        let Some(chunk) = bytes.get(end + 2..end + 2 + size) else {
            break;
        };
        content.extend_from_slice(chunk);
        bytes = &bytes[(end + 4 + size).min(bytes.len())..];
    }
    content
}

/// Sends `request`, which asks the server to close the connection, and reads to the end.
async fn exchange(address: SocketAddr, request: &[u8]) -> Reply {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request).await.unwrap();
    let mut bytes = Vec::new();
    timeout(PATIENCE, socket.read_to_end(&mut bytes))
        .await
        .expect("an answer")
        .unwrap();
    Reply::parse(&bytes)
}

/// A request with a JSON or binary body.
fn post(path: &str, body: &str) -> String {
    request("POST", path, body)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// A chat of one message; `more` has additional members.
fn chat(model: &str, more: &str) -> String {
    post(
        "/v1/chat/completions",
        &format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hello"}}]{more}}}"#),
    )
}
