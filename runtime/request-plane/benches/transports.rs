//! TCP and NATS on loopback: the round trip of a small call, and the tokens per second of 1 and of 64 streams.
//!
//! Router, worker, engine and NATS client run on threads of their own, as separate processes do. The NATS server is the
//! one that `signalbox-test-servers` starts. Tokens are 200 bytes. Each step queues and flushes its tokens, and the next
//! step follows at once.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark prints its figures, and may panic"
)]

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, future::join_all};
use signalbox_nats::{NatsConfig, NatsConnection};
use signalbox_protocol::{Call, StreamSummary, WorkerCard};
use signalbox_request_plane::{
    CallHandler, CallParts, LinkConfig, LinkHandle, NatsTransport, Responder, ResponseEvent, Server,
    ServerConfig,
};
use signalbox_test_servers::NatsServer;

const CHUNK: [u8; 200] = [b'x'; 200];
const CALLS: usize = 5_000;
const TOKENS: usize = 200_000;

fn main() {
    let nats = NatsServer::started();
    println!(
        "{:>6} {:>14} {:>14} {:>16} {:>18}",
        "", "p50 call us", "p99 call us", "1 stream tok/s", "64 streams tok/s"
    );
    for (name, url) in [("TCP", None), ("NATS", Some(nats.url()))] {
        let address = start_worker(url.clone());
        let router = actix_rt::System::new();
        let (p50, p99, rates) = router.block_on(async move {
            let config = LinkConfig {
                nats: transport(url).await,
                ..LinkConfig::default()
            };
            let link = LinkHandle::start(address, config, None);
            answer(&link, 1).await;
            let mut calls = Vec::with_capacity(CALLS);
            for _ in 0..CALLS {
                let began = Instant::now();
                answer(&link, 1).await;
                calls.push(began.elapsed());
            }
            calls.sort_unstable();
            let mut rates = Vec::new();
            for streams in [1, 64] {
                let began = Instant::now();
                join_all((0..streams).map(|_| answer(&link, TOKENS / streams))).await;
                rates.push(TOKENS as f64 / began.elapsed().as_secs_f64());
            }
            (calls[CALLS / 2], calls[CALLS * 99 / 100], rates)
        });
        println!(
            "{name:>6} {:>14} {:>14} {:>16.0} {:>18.0}",
            p50.as_micros(),
            p99.as_micros(),
            rates[0],
            rates[1]
        );
    }
}

/// Opens one call and reads its answer to the end.
async fn answer(link: &LinkHandle, tokens: usize) {
    let mut stream = link
        .open(CallParts {
            call: Call::WatchLoad { interval_ms: 1 },
            tokens: vec![u32::try_from(tokens).expect("few tokens")],
            body: Bytes::new(),
        })
        .unwrap();
    while let ResponseEvent::Data { .. } = stream.next().await.unwrap().unwrap() {}
}

/// A NATS transport whose client runs on a thread of its own.
async fn transport(url: Option<String>) -> Option<NatsTransport> {
    let (started, connection) = tokio::sync::oneshot::channel();
    let url = url?;
    thread::spawn(move || {
        runtime().block_on(async {
            let config = NatsConfig {
                url,
                ..NatsConfig::default()
            };
            let connection = NatsConnection::start(&config, "bench").await.unwrap();
            assert!(started.send(connection).is_ok(), "the receiver waits");
            std::future::pending::<()>().await;
        });
    });
    Some(NatsTransport::new(connection.await.unwrap(), "bench").unwrap())
}

/// Starts a worker on a thread of its own. Returns its address once routers can dial it.
fn start_worker(url: Option<String>) -> String {
    let (address_sender, address) = mpsc::sync_channel(1);
    thread::spawn(move || {
        runtime().block_on(async move {
            // The engine is faster than every reader here, so its tokens wait in a large backlog.
            let config = ServerConfig {
                stream_backlog_bytes: 1 << 30,
                ..ServerConfig::default()
            };
            let server = match transport(url).await {
                None => Server::bind("127.0.0.1:0".parse().unwrap(), config)
                    .await
                    .unwrap(),
                Some(nats) => Server::on_nats(nats, "bench".parse().unwrap(), config)
                    .await
                    .unwrap(),
            };
            let address = server.address();
            let (calls, arriving) = mpsc::sync_channel(1024);
            thread::spawn(move || run_engine(&arriving));
            let _handle = server.serve(Arc::new(card()), Arc::new(ToEngine(calls)));
            // The NATS client subscribes on its own thread, in this time.
            tokio::time::sleep(Duration::from_millis(100)).await;
            address_sender.send(address).unwrap();
            std::future::pending::<()>().await;
        });
    });
    address.recv().unwrap()
}

/// Passes each call to the engine thread, with the number of tokens to generate.
struct ToEngine(mpsc::SyncSender<(u32, Responder)>);

impl CallHandler for ToEngine {
    fn call(&self, parts: CallParts, responder: Responder) {
        let tokens = parts.tokens.first().copied().unwrap_or(1);
        self.0
            .try_send((tokens, responder))
            .expect("more calls than the benchmark opens");
    }
}

/// Steps all calls together: one token for each, then one flush.
fn run_engine(arriving: &mpsc::Receiver<(u32, Responder)>) {
    let mut running: Vec<(u32, Responder)> = Vec::new();
    loop {
        if running.is_empty() {
            let Ok(call) = arriving.recv() else { return };
            running.push(call);
        }
        running.extend(arriving.try_iter());
        for (tokens, responder) in &mut running {
            responder.queue(1, &CHUNK).unwrap();
            *tokens -= 1;
        }
        running[0].1.flush();
        for (_, responder) in running.extract_if(.., |(tokens, _)| *tokens == 0) {
            responder.end(StreamSummary::default());
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn card() -> WorkerCard {
    let card = serde_json::json!({
        "id": "bench", "epoch": 1, "model": "m", "address": "", "engine": "sim", "block_size": 16,
        "context_length": 4096, "artifacts_digest": "", "role": "aggregated", "kv_events": false,
        "capacity": {"kv_blocks": 1, "max_sequences": 1, "max_waiting": 1},
    });
    serde_json::from_value(card).unwrap()
}
