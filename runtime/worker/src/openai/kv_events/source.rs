//! The task that reads an engine's KV events and publishes them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use parking_lot::Mutex;
use signalbox_event_plane::EventLog;
use signalbox_protocol::{KvEvent, SequenceHash};
use tokio::{sync::watch, task::AbortHandle, time};
use zeromq::{Socket, SocketEvent, SocketOptions, SocketRecv, SubSocket, ZmqError};

use super::{
    config::{InvalidEndpoint, KvEventsConfig, check_endpoint},
    facts::{DropCause, KvEventFacts},
    frames::{Numbered, ReplayAnswer, read_live},
    normalise::Blocks,
    order::{Action, Order},
    payload,
    replay::ReplayRun,
};

#[cfg(test)]
mod tests;

/// Longest time for one connection. Within it, the library tries a refused port again after 50 ms, and after twice the
/// wait each time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Wait between connections: an engine takes minutes to start, and what it sends first is replayed.
const RECONNECT_DELAY: Duration = Duration::from_millis(500);

/// Reads one engine's KV events, of one data-parallel rank, and publishes them. Stops when it is dropped.
///
/// One source serves one incarnation of a worker, and is the only one to publish in its log. It also recognises an engine
/// that started again, and then publishes that all blocks are gone.
#[derive(Debug)]
pub struct KvEventSource {
    facts: watch::Receiver<KvEventFacts>,
    blocks: Arc<Mutex<Blocks>>,
    task: AbortHandle,
}

impl KvEventSource {
    /// Starts to read the events that `config` names, and to publish them in `log`. Needs a tokio runtime.
    ///
    /// The engine need not run yet.
    ///
    /// # Errors
    /// An endpoint is not `tcp://HOST:PORT`.
    pub fn start(config: KvEventsConfig, log: EventLog) -> Result<Self, InvalidEndpoint> {
        check_endpoint(&config.endpoint)?;
        if let Some(endpoint) = &config.replay_endpoint {
            check_endpoint(endpoint)?;
        }
        let order = Order::new(config.replay_endpoint.is_some(), Instant::now());
        let facts = KvEventFacts {
            replay: order.replay(),
            ..KvEventFacts::default()
        };
        let (facts_sender, facts) = watch::channel(facts);
        let blocks = Blocks::new(&config.model, config.block_size, config.kv_blocks);
        let blocks = Arc::new(Mutex::new(blocks));
        let reader = Reader {
            config,
            order,
            blocks: blocks.clone(),
            log,
            facts: facts_sender,
            replay: None,
        };
        let task = tokio::spawn(reader.run()).abort_handle();
        Ok(Self { facts, blocks, task })
    }

    /// What is known about the stream, and its changes.
    pub fn facts(&self) -> watch::Receiver<KvEventFacts> {
        self.facts.clone()
    }

    /// Whether the engine holds the block on any tier, as far as its events say.
    pub fn holds(&self, block: SequenceHash) -> bool {
        self.blocks.lock().holds(block)
    }

    /// Whether the engine has reported the block, held or gone again. Of blocks that are gone, as many are remembered as
    /// are held.
    pub fn has_appeared(&self, block: SequenceHash) -> bool {
        self.blocks.lock().has_appeared(block)
    }
}

impl Drop for KvEventSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Reader {
    config: KvEventsConfig,
    order: Order,
    /// Locked for one batch at a time. Only this task changes it.
    blocks: Arc<Mutex<Blocks>>,
    log: EventLog,
    facts: watch::Sender<KvEventFacts>,
    replay: Option<ReplayRun>,
}

impl Reader {
    async fn run(mut self) {
        let mut was_reachable = true;
        loop {
            match self.connect().await {
                Ok((socket, monitor)) => {
                    was_reachable = true;
                    tracing::info!(
                        endpoint = self.config.endpoint,
                        "KV events: connected to the engine"
                    );
                    self.follow(socket, monitor).await;
                    tracing::warn!(
                        endpoint = self.config.endpoint,
                        "KV events: the connection to the engine is lost"
                    );
                }
                // Logged once, not at each attempt: an engine takes minutes to start.
                Err(error) => {
                    if std::mem::take(&mut was_reachable) {
                        tracing::warn!(
                            endpoint = self.config.endpoint,
                            %error,
                            "KV events: the engine cannot be reached; the adapter keeps trying"
                        );
                    }
                }
            }
            time::sleep(RECONNECT_DELAY).await;
        }
    }

    async fn connect(
        &self,
    ) -> Result<(SubSocket, impl Stream<Item = SocketEvent> + Unpin + use<>), ZmqError> {
        let mut options = SocketOptions::default();
        options.connect_timeout(CONNECT_TIMEOUT);
        let mut socket = SubSocket::with_options(options);
        let monitor = socket.monitor();
        socket.subscribe(&self.config.topic).await?;
        socket.connect(&self.config.endpoint).await?;
        Ok((socket, monitor))
    }

    /// Reads one connection to its end.
    ///
    /// The library would connect again by itself, after up to 30 seconds. A connection of its own shows where the old
    /// one ended. The library reads a message when it is asked for one. What is not read waits in the buffers of the
    /// connection and then at the engine, which drops what exceeds its own bound.
    async fn follow(&mut self, mut socket: SubSocket, mut monitor: impl Stream<Item = SocketEvent> + Unpin) {
        let actions = self.order.connected(Instant::now());
        self.perform(actions, true);
        loop {
            let deadline = self.order.deadline();
            let actions = tokio::select! {
                received = socket.recv() => match received {
                    Ok(message) => self.receive(&message.into_vec()),
                    Err(error) => {
                        tracing::debug!(%error, "KV events: the engine's messages cannot be read");
                        break;
                    }
                },
                event = monitor.next() => match event {
                    Some(SocketEvent::Disconnected(_)) | None => break,
                    Some(_) => continue,
                },
                answer = next_answer(&mut self.replay) => {
                    let now = Instant::now();
                    match answer {
                        Some(answer) => self.order.replayed(answer, now),
                        None => {
                            self.replay = None;
                            self.order.replay_failed(now)
                        }
                    }
                }
                () = sleep_until(deadline) => self.order.timed_out(Instant::now()),
            };
            if self.perform(actions, true) {
                tracing::warn!(
                    endpoint = self.config.endpoint,
                    "KV events: nothing arrives although the engine sent some; connecting again"
                );
                break;
            }
        }
        self.replay = None;
        self.order.disconnected();
        self.perform(Vec::new(), false);
    }

    fn receive(&mut self, frames: &[Bytes]) -> Vec<Action> {
        match read_live(frames) {
            Ok(batch) => self.order.live(batch, Instant::now()),
            Err(error) => {
                tracing::debug!(%error, "KV events: a message is ignored");
                Vec::new()
            }
        }
    }

    /// Performs actions and reports what is known then. True if the connection is to be replaced.
    fn perform(&mut self, actions: Vec<Action>, connected: bool) -> bool {
        let mut changes = Vec::new();
        let mut reconnect = false;
        let (mut applied, mut unreadable) = (0, 0);
        for action in actions {
            match action {
                Action::Apply(batch) => {
                    applied += 1;
                    unreadable += u64::from(!self.apply(&batch, &mut changes));
                }
                Action::Forget => {
                    tracing::warn!(
                        endpoint = self.config.endpoint,
                        "KV events: batches are lost that the engine no longer retains; blocks are credited again as \
                         later events prove them"
                    );
                    self.blocks.lock().forget(&mut changes);
                }
                Action::Restart => {
                    tracing::info!(
                        endpoint = self.config.endpoint,
                        "KV events: the engine counts as started again; its blocks are forgotten"
                    );
                    self.blocks.lock().restart(&mut changes);
                }
                Action::StopReplay => self.replay = None,
                Action::Reconnect => reconnect = true,
                Action::Replay { from } => {
                    self.replay = self
                        .config
                        .replay_endpoint
                        .clone()
                        .map(|endpoint| ReplayRun::start(endpoint, from));
                }
            }
        }
        self.log.publish(changes);
        self.report(connected, applied, unreadable);
        reconnect
    }

    /// Applies a batch. False if it cannot be read.
    fn apply(&self, batch: &Numbered, changes: &mut Vec<KvEvent>) -> bool {
        match payload::decode(&batch.payload) {
            Ok(decoded) => {
                let mut blocks = self.blocks.lock();
                let is_other = |rank| self.config.rank.is_some_and(|own| own != rank);
                if decoded.rank.is_some_and(is_other) {
                    blocks.drop_events(DropCause::OtherRank, decoded.events.len());
                    return true;
                }
                for event in &decoded.events {
                    blocks.apply(event, changes);
                }
                true
            }
            Err(error) => {
                if self.facts.borrow().unreadable_batches == 0 {
                    tracing::warn!(
                        batch = batch.number,
                        %error,
                        "KV events: a batch cannot be read; its blocks and all before it are forgotten"
                    );
                }
                self.blocks.lock().forget(changes);
                false
            }
        }
    }

    fn report(&self, connected: bool, applied: u64, unreadable: u64) {
        let order = &self.order;
        let blocks = self.blocks.lock();
        let (is_whole, held_blocks) = (blocks.is_whole(), blocks.held());
        let (dropped, block_sizes) = (*blocks.dropped(), blocks.block_sizes().clone());
        // Two locks at once could meet a reader of both.
        drop(blocks);
        self.facts.send_if_modified(|facts| {
            let new = KvEventFacts {
                connected,
                replay: order.replay(),
                complete: order.is_current() && is_whole,
                batches: facts.batches + applied,
                last_batch: if applied > 0 {
                    Some(Instant::now())
                } else {
                    facts.last_batch
                },
                gaps: order.gaps(),
                unfilled_gaps: order.unfilled_gaps(),
                restarts: order.restarts(),
                unreadable_batches: facts.unreadable_batches + unreadable,
                dropped,
                block_sizes,
                held_blocks,
            };
            let is_new = *facts != new;
            *facts = new;
            is_new
        });
    }
}

/// The next answer of the replay under way; never, if there is none.
async fn next_answer(replay: &mut Option<ReplayRun>) -> Option<ReplayAnswer> {
    match replay {
        Some(replay) => replay.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until `deadline`; for ever, if there is none.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
