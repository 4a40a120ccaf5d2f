//! CPU per token over loopback: one worker, one router thread, N streams at the same time, 64 tokens of 200 bytes each.
//!
//! The worker steps as an engine does: it queues one token for every open stream, flushes, and then pauses or steps again
//! at once. The router thread reads every stream in a task of its own, as an HTTP thread does. CPU is the time that the
//! kernel charged to the thread (`/proc/thread-self/schedstat`), so the figures hold on a busy machine.

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
use futures_util::StreamExt;
use signalbox_protocol::{Call, StreamSummary, WorkerCard};
use signalbox_request_plane::{
    CallHandler, CallParts, LinkConfig, LinkHandle, Responder, ResponseEvent, Server, ServerConfig,
};

const TOKENS: u32 = 64;
const CHUNK: [u8; 200] = [b'x'; 200];

/// Passes each call to the engine thread.
struct ToEngine(mpsc::SyncSender<Responder>);

impl CallHandler for ToEngine {
    fn call(&self, _: CallParts, responder: Responder) {
        self.0
            .try_send(responder)
            .expect("more calls than the benchmark opens");
    }
}

fn main() {
    println!(
        "{:>8} {:>8} {:>14} {:>14} {:>14} {:>12}",
        "streams", "pace", "router ns/tok", "server ns/tok", "engine ns/tok", "tokens/s"
    );
    for streams in [1, 32, 128] {
        for pace in [None, Some(Duration::from_millis(5))] {
            run(streams, pace);
        }
    }
}

fn run(streams: usize, pace: Option<Duration>) {
    // Enough rounds for figures that repeat within a few per cent. A paced round takes 0.32 s.
    let rounds = if pace.is_some() {
        6
    } else {
        (200_000 / (streams * TOKENS as usize)).max(1)
    };
    let (report, reports) = mpsc::sync_channel(2);
    let address = start_worker(streams, rounds, pace, report);
    let started = Instant::now();
    let router = actix_rt::System::new().block_on(async move {
        let link = LinkHandle::start(address, LinkConfig::default(), None);
        read_streams(&link, streams, 1).await;
        let before = thread_cpu_ns();
        read_streams(&link, streams, rounds).await;
        let used = thread_cpu_ns() - before;
        link.close();
        used
    });
    let tokens = (streams * rounds * TOKENS as usize) as f64;
    let elapsed = started.elapsed().as_secs_f64();
    let (engine, server) = (reports.recv().unwrap(), reports.recv().unwrap());
    let pace = pace.map_or_else(|| "none".into(), |pace| format!("{} ms", pace.as_millis()));
    let per_token = |ns: u64| (ns as f64 / tokens).round();
    println!(
        "{streams:>8} {pace:>8} {:>14} {:>14} {:>14} {:>12.0}",
        per_token(router),
        per_token(server),
        per_token(engine),
        tokens / elapsed
    );
}

/// Reads `rounds` answers one after the other on each of `streams` streams, each stream in a task of its own.
async fn read_streams(link: &LinkHandle, streams: usize, rounds: usize) {
    for _ in 0..rounds {
        let tasks: Vec<_> = (0..streams)
            .map(|_| {
                let call = Call::WatchLoad { interval_ms: 1 };
                let mut stream = link
                    .open(CallParts {
                        call,
                        tokens: vec![],
                        body: Bytes::new(),
                    })
                    .unwrap();
                actix_rt::spawn(async move {
                    let mut tokens = 0;
                    loop {
                        match stream.next().await.unwrap().unwrap() {
                            ResponseEvent::Data { tokens: more, .. } => tokens += more,
                            ResponseEvent::End(_) => return tokens,
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap(), TOKENS);
        }
    }
}

/// Starts a server on a thread of its own and an engine on another one. At the end the engine reports its CPU, and then
/// the server.
fn start_worker(
    streams: usize,
    rounds: usize,
    pace: Option<Duration>,
    report: mpsc::SyncSender<u64>,
) -> String {
    let (calls, arriving) = mpsc::sync_channel(streams);
    let (address_sender, address) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let config = ServerConfig {
                max_streams_per_connection: streams,
                ..ServerConfig::default()
            };
            let server = Server::bind("127.0.0.1:0".parse().unwrap(), config)
                .await
                .unwrap();
            address_sender.send(server.address()).unwrap();
            let handle = server.serve(Arc::new(card()), Arc::new(ToEngine(calls)));
            let engine = tokio::task::spawn_blocking(move || {
                run_engine(&arriving, streams, 1, pace);
                let before = thread_cpu_ns();
                run_engine(&arriving, streams, rounds, pace);
                thread_cpu_ns() - before
            });
            let before = thread_cpu_ns();
            report.send(engine.await.unwrap()).unwrap();
            report.send(thread_cpu_ns() - before).unwrap();
            handle.drain(Duration::from_secs(1)).await;
        });
    });
    address.recv().unwrap()
}

fn run_engine(arriving: &mpsc::Receiver<Responder>, streams: usize, rounds: usize, pace: Option<Duration>) {
    for _ in 0..rounds {
        let running: Vec<_> = (0..streams).map(|_| arriving.recv().unwrap()).collect();
        for _ in 0..TOKENS {
            for responder in &running {
                responder.queue(1, &CHUNK).unwrap();
            }
            for responder in &running {
                responder.flush();
            }
            if let Some(pace) = pace {
                thread::sleep(pace);
            }
        }
        for responder in running {
            responder.end(StreamSummary {
                completion_tokens: TOKENS,
                ..StreamSummary::default()
            });
        }
    }
}

fn card() -> WorkerCard {
    let card = serde_json::json!({
        "id": "bench", "epoch": 1, "model": "m", "address": "", "engine": "sim", "block_size": 16,
        "context_length": 4096, "artifacts_digest": "", "role": "aggregated", "kv_events": false,
        "capacity": {"kv_blocks": 1, "max_sequences": 1, "max_waiting": 1},
    });
    serde_json::from_value(card).unwrap()
}

/// Nanoseconds of CPU that this thread has used; 0 on a system that does not report them.
fn thread_cpu_ns() -> u64 {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    schedstat
        .split(' ')
        .next()
        .and_then(|ns| ns.parse().ok())
        .unwrap_or(0)
}
