//! Tests of both sides over real sockets and a real NATS server. The handler passes each call to the test, which then acts
//! as the engine, step by step.

mod byte_stream;
mod cancel;
mod drain;
mod flow;
mod limits;
mod loss;
mod nats;
mod network;
mod raw_nats;
mod round_trip;
mod wire;

use std::{sync::Arc, time::Duration};

use actix::prelude::*;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use signalbox_protocol::{Call, Endpoint, GenerateRequest, RequestId, StreamSummary, WorkerCard};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use self::network::{Network, Over, over_tcp_and_nats};
use crate::*;

/// Far longer than any step of a test takes, and short enough to notice a test that hangs.
const PATIENCE: Duration = Duration::from_secs(20);

fn card(id: &str) -> Arc<WorkerCard> {
    let card = serde_json::json!({
        "id": id, "epoch": 7, "model": "m", "address": "127.0.0.1:0", "engine": "sim", "block_size": 16,
        "context_length": 4096, "artifacts_digest": "d", "role": "aggregated", "kv_events": true,
        "capacity": {"kv_blocks": 1, "max_sequences": 1, "max_waiting": 1},
    });
    Arc::new(serde_json::from_value(card).unwrap())
}

fn generate() -> CallParts {
    let request = GenerateRequest {
        id: RequestId::from_random(1),
        model: "m".into(),
        deadline_ms: 1000,
        lora: String::new(),
        cache_salt: String::new(),
        priority: 0,
        overlap_blocks: 0,
        wants_token_ids: false,
        continuation: None,
        constraint: None,
        sampling: signalbox_protocol::SamplingParams::default(),
        format: signalbox_protocol::AnswerFormat {
            endpoint: Endpoint::Chat,
            stream: true,
            include_usage: false,
            echo: None,
            return_token_ids: false,
            continuous_usage: false,
            tools: None,
            created: 0,
            part: None,
        },
    };
    CallParts {
        call: Call::Generate(request),
        tokens: vec![1, 2, u32::MAX],
        body: Bytes::from_static(b"{}"),
    }
}

fn watch() -> CallParts {
    CallParts {
        call: Call::WatchLoad { interval_ms: 1 },
        tokens: vec![],
        body: Bytes::new(),
    }
}

fn summary(completion_tokens: u32) -> StreamSummary {
    StreamSummary {
        prompt_tokens: 3,
        cached_tokens: 2,
        completion_tokens,
    }
}

/// Passes every call to the test.
struct Forward(mpsc::Sender<(CallParts, Responder)>);

impl CallHandler for Forward {
    fn call(&self, parts: CallParts, responder: Responder) {
        self.0
            .try_send((parts, responder))
            .unwrap_or_else(|_| panic!("the handler received more calls than the test expects"));
    }
}

/// A worker's server. The test acts as its engine.
struct Worker {
    address: String,
    network: Network,
    handle: ServerHandle,
    calls: mpsc::Receiver<(CallParts, Responder)>,
}

impl Worker {
    async fn start(over: Over) -> Self {
        Self::with(over, ServerConfig::default()).await
    }

    async fn with(over: Over, config: ServerConfig) -> Self {
        let network = Network::of(over).await;
        let server = network.listen(config).await;
        Self::serve(network, server)
    }

    /// Starts another incarnation of this worker, under the same address.
    async fn restarted(self) -> Self {
        let server = self.network.listen_again(&self.address).await;
        Self::serve(self.network, server)
    }

    fn serve(network: Network, server: Server) -> Self {
        let (forward, calls) = mpsc::channel(1000);
        Self {
            address: server.address(),
            network,
            handle: server.serve(card("worker-0"), Arc::new(Forward(forward))),
            calls,
        }
    }

    /// The next call that arrived.
    async fn call(&mut self) -> (CallParts, Responder) {
        soon(self.calls.recv()).await.unwrap()
    }

    fn link(&self) -> Link {
        self.link_with(LinkConfig::default())
    }

    fn link_with(&self, config: LinkConfig) -> Link {
        self.network.link(&self.address, config)
    }
}

/// A link with its watcher.
struct Link {
    handle: LinkHandle,
    events: mpsc::Receiver<LinkEvent>,
}

struct Watcher(mpsc::Sender<LinkEvent>);

impl Actor for Watcher {
    type Context = Context<Self>;
}

impl Handler<LinkEvent> for Watcher {
    type Result = ();

    fn handle(&mut self, event: LinkEvent, _: &mut Context<Self>) {
        self.0.try_send(event).unwrap();
    }
}

impl Link {
    fn to(address: impl ToString, config: LinkConfig) -> Self {
        let (sender, events) = mpsc::channel(1000);
        let watcher = Watcher(sender).start().recipient();
        Self {
            handle: LinkHandle::start(address.to_string(), config, Some(watcher)),
            events,
        }
    }

    async fn event(&mut self) -> LinkEvent {
        soon(self.events.recv()).await.unwrap()
    }

    async fn up(&mut self) -> Arc<WorkerCard> {
        match self.event().await {
            LinkEvent::Up { card, .. } => card,
            other => panic!("not up but {other:?}"),
        }
    }

    /// The reason of the next event, which is a `Down`.
    async fn down(&mut self) -> String {
        match self.event().await {
            LinkEvent::Down { reason, .. } => reason,
            other => panic!("not down but {other:?}"),
        }
    }

    fn open(&self, parts: CallParts) -> ResponseStream {
        self.handle.open(parts).unwrap()
    }
}

/// Settings under which a link notices a loss and reconnects within milliseconds. Dials have a long timeout, so that a busy
/// machine does not make them fail for another reason than the tested one.
fn hasty() -> LinkConfig {
    LinkConfig {
        connect_timeout: PATIENCE,
        backoff_min: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
        ping_interval: Duration::from_millis(50),
        ping_timeout: Duration::from_millis(100),
        ..LinkConfig::default()
    }
}

/// Awaits a future, and fails the test instead of hanging.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("the awaited future did not complete in time")
}

/// Awaits the next event.
async fn next(stream: &mut ResponseStream) -> Result<ResponseEvent, LinkError> {
    soon(stream.next()).await.expect("the stream has ended already")
}

async fn next_data(stream: &mut ResponseStream) -> (u32, Bytes) {
    match next(stream).await {
        Ok(ResponseEvent::Data { tokens, bytes, .. }) => (tokens, bytes),
        other => panic!("no piece but {other:?}"),
    }
}

async fn next_error(stream: &mut ResponseStream) -> LinkError {
    next(stream).await.expect_err("the stream goes on")
}

fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (5 + payload.len() as u32).to_le_bytes().to_vec();
    frame.push(kind);
    frame.extend(stream.to_le_bytes());
    frame.extend(payload);
    frame
}

/// A router's hello for these versions.
fn hello(lowest: u16, highest: u16) -> Vec<u8> {
    let mut payload = b"SGBX".to_vec();
    payload.extend(lowest.to_le_bytes());
    payload.extend(highest.to_le_bytes());
    payload.extend(br#"{"software":"other/1","window_bytes":65536}"#);
    frame(1, 0, &payload)
}

/// A worker's answer to the hello.
fn hello_ack(version: u16, max_frame_bytes: u32) -> Vec<u8> {
    let mut payload = version.to_le_bytes().to_vec();
    payload.extend(max_frame_bytes.to_le_bytes());
    payload.extend(serde_json::to_vec(&*card("raw")).unwrap());
    frame(2, 0, &payload)
}

/// One side of a connection, written byte by byte, as another program implements it from the README.
struct Raw {
    socket: TcpStream,
    buffer: BytesMut,
}

impl Raw {
    async fn to(address: &str) -> Self {
        Self {
            socket: TcpStream::connect(address).await.unwrap(),
            buffer: BytesMut::new(),
        }
    }

    async fn accepted_by(listener: &TcpListener) -> Self {
        Self {
            socket: soon(listener.accept()).await.unwrap().0,
            buffer: BytesMut::new(),
        }
    }

    async fn send(&mut self, kind: u8, stream: u32, payload: &[u8]) {
        self.socket
            .write_all(&frame(kind, stream, payload))
            .await
            .unwrap();
    }

    async fn hello(&mut self, lowest: u16, highest: u16) {
        self.socket.write_all(&hello(lowest, highest)).await.unwrap();
    }

    async fn hello_ack(&mut self, version: u16, max_frame_bytes: u32) {
        self.socket
            .write_all(&hello_ack(version, max_frame_bytes))
            .await
            .unwrap();
    }

    /// Reads a router's hello and answers it.
    async fn accept_hello(&mut self) {
        assert_eq!(self.receive().await.0, 1);
        self.hello_ack(1, 1 << 20).await;
    }

    /// Kind, stream and payload of the next frame.
    async fn receive(&mut self) -> (u8, u32, Vec<u8>) {
        soon(self.try_receive())
            .await
            .expect("the connection closed before another frame")
    }

    /// `None` once the connection is closed.
    async fn try_receive(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        loop {
            if self.buffer.len() >= 4 {
                let length = u32::from_le_bytes(self.buffer[..4].try_into().unwrap()) as usize;
                if self.buffer.len() >= 4 + length {
                    let mut frame = self.buffer.split_to(4 + length);
                    frame.advance(4);
                    return Some((frame.get_u8(), frame.get_u32_le(), frame.to_vec()));
                }
            }
            self.buffer.reserve(64 << 10);
            if self.socket.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// The message of the next frame, which is a Fail on this stream.
    async fn failure(&mut self, stream: u32) -> String {
        let (kind, received_on, payload) = self.receive().await;
        assert_eq!((kind, received_on), (6, stream));
        serde_json::from_slice::<signalbox_protocol::WireError>(&payload)
            .unwrap()
            .message
    }

    async fn closed(&mut self) {
        assert_eq!(soon(self.try_receive()).await, None);
    }
}
