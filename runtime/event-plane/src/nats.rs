//! The event plane over NATS JetStream.
//!
//! ```text
//! worker   publish ─▶ PublishQueue: bounded, the newest stay ─▶ one task per worker ─▶ stream SIGNALBOX_KV_EVENTS
//! router   subscribe ◀─ MemoryPlane: the newest of each worker ◀─ one Reader per process ◀┘
//! ```
//!
//! No caller waits for NATS. While it is away, a publish queue keeps its worker's newest batches, and subscriptions
//! deliver nothing. When it is back, both continue where they were, and subscriptions report what was lost. `README.md`
//! beside this crate's manifest describes subjects, stream and messages for other programs.

use std::{collections::HashMap, sync::Arc};

use metrics::{describe_counter, describe_gauge};
use parking_lot::Mutex;
use signalbox_nats::{NatsConnection, Replicas};
use signalbox_protocol::{KvEventBatch, PlaneStatus, WorkerEpoch, WorkerId};
use tokio::{runtime::Handle, sync::watch};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    codec::encode_batch,
    memory::MemoryPlane,
    plane::{EventPlane, Subscription},
    retained::Retention,
    subject::token,
};

mod health;
mod log_throttle;
mod position;
mod publish_queue;
mod reader;
mod stream;
#[cfg(test)]
mod tests;

use publish_queue::PublishQueue;
use reader::Reader;
use stream::StreamHandle;

/// The settings of a NATS event plane.
#[derive(Debug, Clone)]
pub struct NatsPlaneConfig {
    /// The second token of the subjects. Planes of different namespaces share the stream and receive nothing from each
    /// other.
    pub namespace: String,
    /// Replicas of the stream in a cluster of NATS servers.
    pub replicas: Replicas,
    /// How many batches wait for NATS, per worker.
    pub publish_queue: Retention,
    /// Most batches per message.
    pub max_batches_per_message: usize,
    /// How many received batches are retained per worker, for late or slow subscriptions. The most memory is this times
    /// `max_workers`.
    pub retention: Retention,
    /// Most workers whose events are received. Beyond that number, workers without subscriptions that have been silent
    /// for longest are forgotten.
    pub max_workers: usize,
}

/// KV events over NATS JetStream. Dropping it ends its tasks, and the batches in its publish queues are lost.
#[derive(Debug)]
pub struct NatsPlane {
    config: NatsPlaneConfig,
    stream: StreamHandle,
    received: MemoryPlane,
    runtime: Handle,
    tasks: Mutex<Tasks>,
    /// Whether a consumer has existed: from then on, received batches are complete or a loss is reported.
    reading: watch::Sender<bool>,
}

#[derive(Debug)]
struct Tasks {
    _keeper: AbortOnDropHandle<()>,
    reader: Option<AbortOnDropHandle<()>>,
    publish_queues: HashMap<WorkerId, (Arc<PublishQueue>, AbortOnDropHandle<()>)>,
}

impl Default for NatsPlaneConfig {
    /// 8,192 workers are more than one router serves, and need 2 GiB if all of them are busy. 256 batches per message
    /// are two seconds of an engine, so that few messages catch up after an outage.
    fn default() -> Self {
        Self {
            namespace: "signalbox".into(),
            replicas: Replicas::default(),
            publish_queue: Retention::default(),
            max_batches_per_message: 256,
            retention: Retention::OF_A_ROUTER,
            max_workers: 8192,
        }
    }
}

impl NatsPlane {
    /// Starts the plane; the server need not be reachable. Call it inside a tokio runtime, on which its tasks run.
    pub fn start(connection: NatsConnection, config: NatsPlaneConfig) -> Arc<Self> {
        describe_metrics();
        let runtime = Handle::current();
        let (stream, keeper) = StreamHandle::start(connection, config.replicas.clone());
        Arc::new(Self {
            stream,
            received: MemoryPlane::bounded(config.retention, config.max_workers),
            runtime,
            tasks: Mutex::new(Tasks {
                _keeper: keeper,
                reader: None,
                publish_queues: HashMap::new(),
            }),
            reading: watch::Sender::new(false),
            config,
        })
    }

    /// Starts to receive, as the first subscription does, and waits until everything published from now on will be
    /// received.
    pub async fn ready(&self) {
        self.stream.usable().await;
        self.start_reading();
        // Cannot fail, because this plane keeps the sender.
        _ = self.reading.subscribe().wait_for(|reading| *reading).await;
    }

    fn start_reading(&self) {
        let mut tasks = self.tasks.lock();
        if tasks.reader.is_none() {
            self.stream.health.reading_starts();
            let filter = subject(&self.config.namespace, "*");
            let reader = Reader::new(
                self.stream.clone(),
                filter,
                self.received.clone(),
                self.reading.clone(),
            );
            tasks.reader = Some(AbortOnDropHandle::new(self.runtime.spawn(reader.run())));
        }
    }

    fn publish_queue(&self, worker: &WorkerId) -> Arc<PublishQueue> {
        let new = || {
            let publish_queue = Arc::new(PublishQueue::new(self.config.publish_queue));
            let sending = publish_queue::send_all(
                publish_queue.clone(),
                self.stream.clone(),
                subject(&self.config.namespace, worker.as_str()),
                self.config.max_batches_per_message,
            );
            (publish_queue, AbortOnDropHandle::new(self.runtime.spawn(sending)))
        };
        let mut tasks = self.tasks.lock();
        let (publish_queue, _) = tasks.publish_queues.entry(worker.clone()).or_insert_with(new);
        publish_queue.clone()
    }
}

impl EventPlane for NatsPlane {
    fn publish(&self, worker: &WorkerId, batch: Arc<KvEventBatch>) {
        let bytes = encode_batch(&batch);
        self.publish_queue(worker).push(bytes);
    }

    fn subscribe(&self, worker: &WorkerId, from: Option<(WorkerEpoch, u64)>) -> Subscription {
        self.start_reading();
        self.received.subscribe(worker, from)
    }

    fn forget(&self, worker: &WorkerId) {
        let publish_queue = self.tasks.lock().publish_queues.remove(worker);
        drop(publish_queue);
        self.received.forget(worker);
    }

    fn status(&self) -> watch::Receiver<PlaneStatus> {
        self.stream.health.status()
    }
}

fn describe_metrics() {
    describe_counter!(
        "signalbox_kv_event_messages_total",
        "NATS messages with KV events, by direction"
    );
    describe_counter!(
        "signalbox_kv_event_batches_total",
        "KV event batches over NATS, by direction"
    );
    describe_counter!(
        "signalbox_kv_event_bytes_total",
        "Payload bytes of NATS messages with KV events, by direction"
    );
    describe_counter!(
        "signalbox_kv_event_batches_dropped_total",
        "KV event batches that were not sent to NATS"
    );
    describe_counter!(
        "signalbox_kv_event_publish_retries_total",
        "Times a NATS message with KV events was sent again"
    );
    describe_gauge!(
        "signalbox_kv_event_outbox_batches",
        "KV event batches that NATS has not acknowledged"
    );
    describe_counter!(
        "signalbox_event_messages_refused_total",
        "NATS messages without valid KV events"
    );
    describe_counter!(
        "signalbox_kv_event_losses_total",
        "Losses of KV events that may concern every worker"
    );
}

/// The subject of a worker's events. `worker` is a name, which is a valid token, or `*`.
fn subject(namespace: &str, worker: &str) -> String {
    format!("signalbox.{}.kv_events.{worker}", token(namespace))
}
