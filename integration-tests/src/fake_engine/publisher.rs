//! The ZeroMQ sockets of one rank: PUB for live batches, ROUTER for replay, as in vLLM's `ZmqEventPublisher`.
//!
//! A live batch is `[topic, number, payload]`. A replay is asked for with `["", number]`, and answered with
//! `["", topic, number, payload]` for each batch kept from that number on, and `["", "", -1, ""]` at the end. Numbers are
//! 8 bytes, big-endian.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use tokio::{sync::watch, time::Instant};
use zeromq::{Endpoint, PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use super::{log::EventLog, phase::Phase};

/// The topic, as in the command lines of `examples/vllm`.
pub(super) const TOPIC: &str = "kv-events";
/// The number at the end of a replay.
const END: u64 = u64::MAX;
/// How long the port of an engine that has just ended is waited for.
const BINDING: Duration = Duration::from_secs(5);
/// Between two attempts to bind.
const BIND_EVERY: Duration = Duration::from_millis(20);

/// Where one rank publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EventPorts {
    pub(super) live: u16,
    /// `None` without replay.
    pub(super) replay: Option<u16>,
}

/// The bound sockets of one rank.
pub(super) struct Publisher {
    live: PubSocket,
    replay: Option<RouterSocket>,
    ports: EventPorts,
}

impl Publisher {
    /// Binds free ports, or those of an earlier start.
    pub(super) async fn bind(earlier: Option<EventPorts>, has_replay: bool) -> anyhow::Result<Self> {
        let mut live = PubSocket::new();
        let live_port = bind(&mut live, earlier.map_or(0, |ports| ports.live)).await?;
        let (mut replay, mut replay_port) = (None, None);
        if has_replay {
            let mut socket = RouterSocket::new();
            let port = earlier.and_then(|ports| ports.replay).unwrap_or(0);
            replay_port = Some(bind(&mut socket, port).await?);
            replay = Some(socket);
        }
        Ok(Self {
            live,
            replay,
            ports: EventPorts {
                live: live_port,
                replay: replay_port,
            },
        })
    }

    pub(super) fn ports(&self) -> EventPorts {
        self.ports
    }

    /// Sends batches and answers replays until the engine is dead.
    pub(super) async fn run(self, log: Arc<EventLog>, phase: watch::Receiver<Phase>) {
        let Self {
            mut live, mut replay, ..
        } = self;
        {
            let publishing = publish(&mut live, &log);
            let replaying = async {
                match &mut replay {
                    Some(socket) => answer_replays(socket, &log).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = publishing => {}
                () = replaying => {}
                () = Phase::dead(phase) => {}
            }
        }
        live.close().await;
        if let Some(replay) = replay {
            replay.close().await;
        }
    }
}

async fn bind(socket: &mut impl Socket, port: u16) -> anyhow::Result<u16> {
    let address = format!("tcp://127.0.0.1:{port}");
    let began = Instant::now();
    loop {
        match socket.bind(&address).await {
            Ok(Endpoint::Tcp(_, port)) => return Ok(port),
            Ok(other) => anyhow::bail!("{address} was bound as {other}"),
            Err(error) if began.elapsed() > BINDING => {
                return Err(error).with_context(|| format!("cannot bind {address}"));
            }
            Err(_) => tokio::time::sleep(BIND_EVERY).await,
        }
    }
}

async fn publish(socket: &mut PubSocket, log: &EventLog) {
    let (mut next, mut appended) = (0, log.watch());
    loop {
        appended.mark_unchanged();
        for batch in log.since(next) {
            next = batch.number + 1;
            for _ in 0..batch.sends {
                let frames = vec![
                    Bytes::from_static(TOPIC.as_bytes()),
                    number(batch.number),
                    batch.payload.clone(),
                ];
                // As at a real engine, what cannot be sent is lost, and can be asked for again.
                if let Ok(message) = ZmqMessage::try_from(frames) {
                    let _ = socket.send(message).await;
                }
            }
        }
        if appended.changed().await.is_err() {
            return;
        }
    }
}

async fn answer_replays(socket: &mut RouterSocket, log: &EventLog) {
    loop {
        let Ok(request) = socket.recv().await else {
            return;
        };
        let frames = request.into_vec();
        let [identity, .., start] = frames.as_slice() else {
            continue;
        };
        let Some(start) = start.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)) else {
            continue;
        };
        let topic = Bytes::from_static(TOPIC.as_bytes());
        let mut answers: Vec<[Bytes; 3]> = log
            .replay(start)
            .into_iter()
            .map(|batch| [topic.clone(), number(batch.number), batch.payload])
            .collect();
        answers.push([Bytes::new(), number(END), Bytes::new()]);
        for [topic, number, payload] in answers {
            let frames = vec![identity.clone(), Bytes::new(), topic, number, payload];
            let Ok(message) = ZmqMessage::try_from(frames) else {
                continue;
            };
            // The subscriber is gone.
            if socket.send(message).await.is_err() {
                break;
            }
        }
    }
}

fn number(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}
