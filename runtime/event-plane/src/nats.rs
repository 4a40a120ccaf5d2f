//! The event plane over NATS JetStream.
//!
//! ```text
//! worker   publish ─▶ PublishQueue: bounded, the newest stay ─▶ one task a worker ─▶ stream SIGNALBOX_KV_EVENTS
//! router   subscribe ◀─ MemoryPlane: the newest of each worker ◀─ one Reader a process ◀┘
//! ```
//!
//! Nothing waits for NATS: while it is away, an publish_queue keeps what its worker published last, and subscriptions are
//! silent. When it is back both go on where they were, and what was lost meanwhile is told. `README.md` beside this
//! crate's manifest describes subjects, stream and messages for other programs.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use signalbox_nats::NatsConnection;
use signalbox_protocol::{KvEventBatch, PlaneStatus, WorkerEpoch, WorkerId};
use tokio::{runtime::Handle, sync::watch};
use tokio_util::task::AbortOnDropHandle;

use crate::{EventPlane, MemoryPlane, Retention, Subscription, encode_batch, subject::token};

mod log_throttle;
mod position;
mod publish_queue;
mod reader;
mod stream;
#[cfg(test)]
mod tests;

use publish_queue::PublishQueue;
use reader::Reader;
use stream::EventStore;

/// What a NATS event plane may be told.
#[derive(Debug, Clone)]
pub struct NatsPlaneConfig {
    /// Whose events: the second token of their subjects. Planes of different namespaces share the stream and see
    /// nothing of each other.
    pub namespace: String,
    /// Copies of the stream in a cluster of NATS servers: 1, 3 or 5. All processes should say the same; the last to
    /// connect decides.
    pub replicas: usize,
    /// What is kept of a worker's batches that NATS has not taken yet.
    pub publish_queue: Retention,
    /// Most batches of one message.
    pub max_batches_per_message: usize,
    /// What is kept of each worker whose events are received, for subscriptions that come late or are slow. Memory
    /// is at worst this times `max_workers`.
    pub retention: Retention,
    /// Most workers whose events are received; of more, those are forgotten that nobody follows and that have been
    /// silent longest.
    pub max_workers: usize,
}

/// KV events over NATS JetStream. Dropping it ends its tasks; what an publish_queue still holds is lost then.
#[derive(Debug)]
pub struct NatsPlane {
    config: NatsPlaneConfig,
    store: EventStore,
    received: MemoryPlane,
    runtime: Handle,
    tasks: Mutex<Tasks>,
    /// Whether the consumer exists.
    reading: watch::Sender<bool>,
}

#[derive(Debug)]
struct Tasks {
    _keeper: AbortOnDropHandle<()>,
    reader: Option<AbortOnDropHandle<()>>,
    outboxes: HashMap<WorkerId, (Arc<PublishQueue>, AbortOnDropHandle<()>)>,
}

impl Default for NatsPlaneConfig {
    /// 8,192 workers received: more than one router serves; 2 GiB if all of them are busy. 256 batches a message: what an engine says in two seconds, so that an outage is made up for in few
    /// messages.
    fn default() -> Self {
        Self {
            namespace: "signalbox".into(),
            replicas: 1,
            publish_queue: Retention::default(),
            max_batches_per_message: 256,
            retention: Retention::OF_A_ROUTER,
            max_workers: 8192,
        }
    }
}

impl NatsPlane {
    /// Starts the plane, whether or not NATS can be reached. Call it inside a tokio runtime, which its tasks run on.
    pub fn start(connection: NatsConnection, config: NatsPlaneConfig) -> Arc<Self> {
        let runtime = Handle::current();
        let (store, keeper) = EventStore::start(connection, config.replicas);
        Arc::new(Self {
            store,
            received: MemoryPlane::bounded(config.retention, config.max_workers),
            runtime,
            tasks: Mutex::new(Tasks {
                _keeper: keeper,
                reader: None,
                outboxes: HashMap::new(),
            }),
            reading: watch::Sender::new(false),
            config,
        })
    }

    /// Waits until what is published from now on will be received here. Starts to receive, as the first
    /// subscription does.
    pub async fn ready(&self) {
        self.store.usable().await;
        self.start_reading();
        // The sender lives as long as this plane.
        _ = self.reading.subscribe().wait_for(|reading| *reading).await;
    }

    fn start_reading(&self) {
        let mut tasks = self.tasks.lock();
        if tasks.reader.is_none() {
            let filter = subject(&self.config.namespace, "*");
            let reader = Reader::new(
                self.store.clone(),
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
                self.store.clone(),
                subject(&self.config.namespace, worker.as_str()),
                self.config.max_batches_per_message,
            );
            (publish_queue, AbortOnDropHandle::new(self.runtime.spawn(sending)))
        };
        let mut tasks = self.tasks.lock();
        let (publish_queue, _) = tasks.outboxes.entry(worker.clone()).or_insert_with(new);
        publish_queue.clone()
    }
}

impl EventPlane for NatsPlane {
    fn publish(&self, worker: &WorkerId, batch: Arc<KvEventBatch>) {
        let bytes = encode_batch(&batch);
        self.publish_queue(worker).push(bytes);
    }

    fn subscribe(&self, worker: &WorkerId, after: Option<(WorkerEpoch, u64)>) -> Subscription {
        self.start_reading();
        self.received.subscribe(worker, after)
    }

    fn forget(&self, worker: &WorkerId) {
        let publish_queue = self.tasks.lock().outboxes.remove(worker);
        drop(publish_queue);
        self.received.forget(worker);
    }

    fn status(&self) -> watch::Receiver<PlaneStatus> {
        self.store.status()
    }
}

/// `worker`: a name, which is a token as it is, or `*`.
fn subject(namespace: &str, worker: &str) -> String {
    format!("signalbox.{}.kv_events.{worker}", token(namespace))
}
