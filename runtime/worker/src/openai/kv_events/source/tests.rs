use std::collections::BTreeSet;

use serde_json::{Value, json};
use signalbox_protocol::{BlockHasher, WorkerEpoch};
use tokio::sync::{mpsc, oneshot};
use zeromq::{PubSocket, RouterSocket, SocketSend, ZmqMessage};

use super::{super::corpus, *};
use crate::openai::kv_events::Replay;

/// Longest wait for anything that a test waits for.
const PATIENCE: Duration = Duration::from_secs(20);

/// An engine that publishes batches, retains them, and answers replay requests as vLLM does.
struct FakeEngine {
    commands: mpsc::Sender<Command>,
    endpoint: String,
    replay_endpoint: String,
    task: tokio::task::JoinHandle<()>,
    next: u64,
}

enum Command {
    /// Retain the batch and, if `live`, send it.
    Batch { number: u64, payload: Bytes, live: bool },
    /// Close the sockets.
    Stop(oneshot::Sender<()>),
}

/// The frames of an answer to a replay request.
#[derive(Clone, Copy, PartialEq)]
enum Answers {
    WithTopic,
    WithoutTopic,
}

impl FakeEngine {
    async fn start(ports: (u16, u16), answers: Answers) -> Self {
        let (mut publisher, mut router) = (PubSocket::new(), RouterSocket::new());
        let endpoint = bind(&mut publisher, ports.0).await;
        let replay_endpoint = bind(&mut router, ports.1).await;
        let (commands, mut received) = mpsc::channel(16);
        let task = tokio::spawn(async move {
            let mut retained: Vec<(u64, Bytes)> = Vec::new();
            loop {
                tokio::select! {
                    command = received.recv() => match command {
                        Some(Command::Batch { number, payload, live }) => {
                            retained.push((number, payload.clone()));
                            if live {
                                let frames = [Bytes::from_static(b"kv-events"), of(number), payload];
                                publisher.send(message(frames)).await.unwrap();
                            }
                        }
                        Some(Command::Stop(stopped)) => {
                            publisher.close().await;
                            router.close().await;
                            _ = stopped.send(());
                            return;
                        }
                        None => return,
                    },
                    request = router.recv() => {
                        let request = request.unwrap().into_vec();
                        let [identity, _, from] = &request[..] else { panic!("{request:?}") };
                        let from = u64::from_be_bytes(from[..].try_into().unwrap());
                        let wanted = retained.iter().filter(|(number, _)| *number >= from).cloned();
                        for (number, payload) in wanted.chain([(u64::MAX, Bytes::new())]) {
                            let topic = if payload.is_empty() { "" } else { "kv-events" };
                            let mut frames = vec![identity.clone(), Bytes::new()];
                            if answers == Answers::WithTopic {
                                frames.push(topic.into());
                            }
                            frames.extend([of(number), payload]);
                            router.send(message(frames)).await.unwrap();
                        }
                    }
                }
            }
        });
        Self {
            commands,
            endpoint,
            replay_endpoint,
            task,
            next: 0,
        }
    }

    /// Retains a batch, and sends it if `live`.
    async fn batch(&mut self, events: Value, live: bool) {
        let (number, payload) = (self.next, corpus::batch(&events));
        self.next += 1;
        let batch = Command::Batch {
            number,
            payload,
            live,
        };
        assert!(self.commands.send(batch).await.is_ok());
    }

    /// Closes the sockets. Returns their ports.
    async fn stop(self) -> (u16, u16) {
        let (stopped, done) = oneshot::channel();
        assert!(self.commands.send(Command::Stop(stopped)).await.is_ok());
        done.await.unwrap();
        self.task.await.unwrap();
        let port = |endpoint: &str| endpoint.rsplit_once(':').unwrap().1.parse().unwrap();
        (port(&self.endpoint), port(&self.replay_endpoint))
    }

    fn config(&self) -> KvEventsConfig {
        KvEventsConfig {
            endpoint: self.endpoint.clone(),
            replay_endpoint: Some(self.replay_endpoint.clone()),
            topic: "kv".into(),
            rank: Some(0),
            model: "m".into(),
            block_size: 2,
            kv_blocks: 100,
        }
    }
}

async fn bind(socket: &mut impl Socket, port: u16) -> String {
    let endpoint = format!("tcp://127.0.0.1:{port}");
    socket.bind(&endpoint).await.unwrap().to_string()
}

fn message(frames: impl Into<Vec<Bytes>>) -> ZmqMessage {
    ZmqMessage::try_from(frames.into()).unwrap()
}

fn of(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

/// A source that follows `config`, and its log.
fn follow(config: KvEventsConfig) -> (KvEventSource, EventLog) {
    let log = EventLog::new(WorkerEpoch(1));
    (KvEventSource::start(config, log.clone()).unwrap(), log)
}

async fn wait_for(source: &KvEventSource, what: impl FnMut(&KvEventFacts) -> bool) -> KvEventFacts {
    let mut facts = source.facts();
    match time::timeout(PATIENCE, facts.wait_for(what)).await {
        Ok(found) => found.unwrap().clone(),
        Err(_) => panic!("not seen: {:?}", source.facts().borrow()),
    }
}

/// A block of two equal tokens, at the start of a sequence.
fn store(block: u32) -> Value {
    json!([{
        "type": "BlockStored", "block_hashes": [u64::from(block)], "parent_block_hash": null,
        "token_ids": [block, block], "block_size": 2, "lora_id": null, "medium": "GPU", "lora_name": null,
    }])
}

fn own(block: u32) -> SequenceHash {
    BlockHasher::new("m", "", "", 2).hash(&[block, block])[0]
}

/// The blocks that routers hold for the worker.
fn published(log: &EventLog) -> BTreeSet<SequenceHash> {
    let blocks = log.snapshot().stored.into_iter().flat_map(|event| match event {
        KvEvent::Stored { blocks, .. } => blocks,
        other => panic!("{other:?}"),
    });
    blocks.collect()
}

fn owns(blocks: impl IntoIterator<Item = u32>) -> BTreeSet<SequenceHash> {
    blocks.into_iter().map(own).collect()
}

/// Sends batches until one arrives live: an engine drops them until it has read the subscription.
async fn until_live(engine: &mut FakeEngine, source: &KvEventSource, first_block: u32) -> u32 {
    let before = source.facts().borrow().batches;
    for block in first_block.. {
        engine.batch(store(block), true).await;
        let mut facts = source.facts();
        let arrived = facts.wait_for(|facts| facts.batches > before);
        if time::timeout(Duration::from_millis(200), arrived).await.is_ok() {
            return block + 1;
        }
    }
    unreachable!()
}

#[tokio::test]
async fn a_source_that_starts_late_replays_and_goes_on_live() {
    for answers in [Answers::WithTopic, Answers::WithoutTopic] {
        let mut engine = FakeEngine::start((0, 0), answers).await;
        for block in 0..3 {
            engine.batch(store(block), true).await;
        }
        let (source, log) = follow(engine.config());
        let facts = wait_for(&source, |facts| facts.complete).await;
        assert_eq!((facts.batches, facts.held_blocks), (3, 3));
        assert_eq!(facts.replay, Replay::Available);
        assert!(facts.connected && facts.last_batch.is_some());
        assert_eq!(published(&log), owns(0..3));

        let next = until_live(&mut engine, &source, 3).await;
        engine
            .batch(
                json!([{"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU"}]),
                true,
            )
            .await;
        let facts = wait_for(&source, |facts| facts.held_blocks as u32 == next - 1).await;
        assert!(facts.complete && facts.unfilled_gaps == 0);
        assert!(source.holds(own(0)) && !source.holds(own(1)) && source.has_appeared(own(1)));
        let held = (0..next).filter(|&block| block != 1);
        assert_eq!(published(&log), owns(held));
    }
}

#[tokio::test]
async fn batches_that_were_lost_are_fetched() {
    let mut engine = FakeEngine::start((0, 0), Answers::WithTopic).await;
    let (source, log) = follow(engine.config());
    wait_for(&source, |facts| facts.complete).await;
    let next = until_live(&mut engine, &source, 0).await;
    let gaps = source.facts().borrow().gaps;
    engine.batch(store(next), false).await;
    engine.batch(store(next + 1), false).await;
    engine.batch(store(next + 2), true).await;
    let facts = wait_for(&source, |facts| {
        facts.held_blocks as u32 == next + 3 && facts.complete
    })
    .await;
    assert_eq!(
        (facts.gaps, facts.unfilled_gaps, facts.restarts),
        (gaps + 1, 0, 0)
    );
    assert_eq!(published(&log), owns(0..next + 3));
}

#[tokio::test]
async fn an_engine_that_starts_again_is_followed_from_its_start() {
    let mut engine = FakeEngine::start((0, 0), Answers::WithTopic).await;
    for block in 0..3 {
        engine.batch(store(block), true).await;
    }
    let (source, log) = follow(engine.config());
    wait_for(&source, |facts| facts.complete).await;
    let ports = engine.stop().await;
    wait_for(&source, |facts| !facts.connected).await;
    assert!(!source.facts().borrow().complete);

    let mut engine = FakeEngine::start(ports, Answers::WithTopic).await;
    for block in 10..15 {
        engine.batch(store(block), true).await;
    }
    let facts = wait_for(&source, |facts| facts.complete && facts.held_blocks == 5).await;
    assert_eq!((facts.restarts, facts.unfilled_gaps), (1, 0));
    assert_eq!(published(&log), owns(10..15));
    assert!(!source.has_appeared(own(0)));
}

#[tokio::test]
async fn without_replay_only_what_is_sent_later_is_known() {
    let mut engine = FakeEngine::start((0, 0), Answers::WithTopic).await;
    for block in 0..3 {
        engine.batch(store(block), true).await;
    }
    let config = KvEventsConfig {
        replay_endpoint: None,
        ..engine.config()
    };
    let (source, log) = follow(config);
    wait_for(&source, |facts| facts.connected).await;
    let next = until_live(&mut engine, &source, 3).await;
    let child = json!([{
        "type": "BlockStored", "block_hashes": [99], "parent_block_hash": 0, "token_ids": [1, 2], "block_size": 2,
        "lora_id": null, "medium": "GPU", "lora_name": null,
    }]);
    engine.batch(child, true).await;
    let facts = wait_for(&source, |facts| {
        facts.dropped.count(DropCause::UnknownParent) == 1
    })
    .await;
    assert!(!facts.complete && facts.replay == Replay::NotConfigured);
    let published = published(&log);
    assert!(published.contains(&own(next - 1)));
    assert!(published.is_subset(&owns(3..next)), "{published:?}");
}

#[tokio::test]
async fn live_batches_go_on_where_replay_is_not_answered() {
    let mut engine = FakeEngine::start((0, 0), Answers::WithTopic).await;
    let config = KvEventsConfig {
        // A PUB socket, which takes no requests.
        replay_endpoint: Some(engine.endpoint.clone()),
        ..engine.config()
    };
    let (source, log) = follow(config);
    wait_for(&source, |facts| facts.connected).await;
    let next = until_live(&mut engine, &source, 0).await;
    // What arrived while the source waited for answers is applied too.
    let facts = wait_for(&source, |facts| {
        source.holds(own(next - 1)) && facts.held_blocks == published(&log).len()
    })
    .await;
    assert_eq!(facts.replay, Replay::Unanswered);
}

#[tokio::test]
#[ignore = "waits ten seconds for silence"]
async fn a_connection_on_which_nothing_arrives_is_replaced() {
    let mut engine = FakeEngine::start((0, 0), Answers::WithTopic).await;
    engine.batch(store(0), true).await;
    let (source, log) = follow(engine.config());
    wait_for(&source, |facts| facts.complete).await;
    engine.batch(store(1), false).await;
    wait_for(&source, |facts| facts.held_blocks == 2).await;
    wait_for(&source, |facts| !facts.connected).await;
    let facts = wait_for(&source, |facts| facts.complete).await;
    assert_eq!((facts.restarts, facts.unfilled_gaps), (0, 0));
    assert_eq!(published(&log), owns(0..2));
}

#[tokio::test]
async fn batches_that_cannot_be_read_or_are_of_another_rank_are_counted() {
    let mut engine = FakeEngine::start((0, 0), Answers::WithTopic).await;
    engine.batch(store(0), true).await;
    engine.batch(json!("no events"), true).await;
    engine.batch(store(1), true).await;
    let (source, log) = follow(engine.config());
    let facts = wait_for(&source, |facts| facts.batches == 3).await;
    assert_eq!(facts.unreadable_batches, 1);
    assert!(!facts.complete, "what the batch removed is unknown");
    assert_eq!(published(&log), owns([1]));

    let config = KvEventsConfig {
        rank: Some(3),
        ..engine.config()
    };
    let (source, log) = follow(config);
    let facts = wait_for(&source, |facts| facts.batches == 3).await;
    assert_eq!(facts.dropped.count(DropCause::OtherRank), 2);
    assert_eq!(published(&log), BTreeSet::new());
}

#[tokio::test]
async fn a_source_waits_for_its_engine_and_stops_when_it_is_dropped() {
    let engine = FakeEngine::start((0, 0), Answers::WithTopic).await;
    let config = engine.config();
    let ports = engine.stop().await;
    let (source, _) = follow(config);
    let mut facts = source.facts();
    assert!(!facts.borrow().connected);
    let _engine = FakeEngine::start(ports, Answers::WithTopic).await;
    wait_for(&source, |facts| facts.complete).await;
    facts.mark_unchanged();
    drop(source);
    let ended = time::timeout(PATIENCE, facts.changed()).await.unwrap();
    assert!(ended.is_err(), "the task and its sender are gone");
}

#[tokio::test]
async fn endpoints_that_are_none_are_refused() {
    let engine = FakeEngine::start((0, 0), Answers::WithTopic).await;
    let config = KvEventsConfig {
        replay_endpoint: Some("ipc:///tmp/x".into()),
        ..engine.config()
    };
    let error = KvEventSource::start(config, EventLog::new(WorkerEpoch(1))).unwrap_err();
    assert_eq!(error, InvalidEndpoint::NotTcp("ipc:///tmp/x".into()));
}
