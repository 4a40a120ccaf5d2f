//! The worker side: what waits to be taken by NATS, and the task that sends it.
//!
//! One message is under way at a time, and takes all that was published while the one before was: so batches reach
//! the stream in order whatever is lost or sent again, which a window of several messages could not promise, and a
//! busy worker makes few large messages. A batch waits for one round trip at most.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use metrics::{counter, gauge};
use parking_lot::Mutex;
use signalbox_nats::async_nats::jetstream::context::PublishError;
use tokio::sync::Notify;

use super::{
    log_throttle::LogThrottle,
    stream::{EventStore, MAX_MESSAGE_SIZE},
};
use crate::{
    Retention,
    retained::{At, RetainedLog},
};

/// Most bytes of a message of several batches: half of what a server takes by default, so that headers and a
/// smaller limit fit too.
const MAX_MESSAGE_LEN: usize = 512 << 10;

/// Wait before a message is sent again, doubled up to the longest.
const RETRY: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// One worker's batches that NATS has not taken yet; the oldest go when there are too many.
#[derive(Debug)]
pub(super) struct PublishQueue {
    waiting: Mutex<RetainedLog<Bytes>>,
    more: Notify,
}

/// The next message.
#[derive(Debug)]
struct Message {
    payload: Bytes,
    batches: u64,
    /// The position after its last batch.
    end: u64,
}

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("a batch of {0} bytes is larger than NATS takes")]
    TooLarge(usize),
    #[error(transparent)]
    Refused(#[from] PublishError),
    #[error("the connection was lost meanwhile")]
    Disconnected,
}

impl PublishQueue {
    pub(super) fn new(retention: Retention) -> Self {
        Self {
            waiting: Mutex::new(RetainedLog::new(retention)),
            more: Notify::new(),
        }
    }

    pub(super) fn push(&self, batch: Bytes) {
        let bytes = batch.len();
        self.change(|waiting| waiting.push(batch, bytes));
        self.more.notify_one();
    }

    fn release(&self, end: u64) {
        self.change(|waiting| waiting.release(end));
    }

    fn change(&self, change: impl FnOnce(&mut RetainedLog<Bytes>)) {
        let mut waiting = self.waiting.lock();
        let before = waiting.len();
        change(&mut waiting);
        let after = waiting.len();
        drop(waiting);
        gauge!("signalbox_kv_event_outbox_batches").increment(after as f64 - before as f64);
    }

    /// The oldest batches, as many as one message takes.
    fn message(&self, max_batches: usize, max_len: usize) -> Option<Message> {
        let waiting = self.waiting.lock();
        let start = waiting.oldest();
        let mut batches = Vec::new();
        let mut len = 0;
        while let At::Entry(batch) = waiting.at(start + batches.len() as u64) {
            len += batch.len();
            if !batches.is_empty() && (len > max_len || batches.len() >= max_batches) {
                break;
            }
            batches.push(batch);
        }
        drop(waiting);
        let count = batches.len() as u64;
        let payload = match batches.as_slice() {
            [] => return None,
            [one] => one.clone(),
            several => {
                let mut payload = BytesMut::with_capacity(several.iter().map(Bytes::len).sum());
                several.iter().for_each(|batch| payload.extend_from_slice(batch));
                payload.freeze()
            }
        };
        Some(Message {
            payload,
            batches: count,
            end: start + count,
        })
    }
}

impl Drop for PublishQueue {
    fn drop(&mut self) {
        gauge!("signalbox_kv_event_outbox_batches").decrement(self.waiting.lock().len() as f64);
    }
}

/// Sends what the publish_queue has, for ever.
pub(super) async fn send_all(
    publish_queue: Arc<PublishQueue>,
    store: EventStore,
    subject: String,
    max_batches: usize,
) {
    let (mut retry, mut warnings) = (RETRY, LogThrottle::default());
    loop {
        store.usable().await;
        let largest = store
            .connection
            .client()
            .server_info()
            .max_payload
            .min(MAX_MESSAGE_SIZE);
        let Some(message) = publish_queue.message(max_batches, largest.min(MAX_MESSAGE_LEN)) else {
            publish_queue.more.notified().await;
            continue;
        };
        let sent = match message.payload.len() {
            len if len > largest => Err(SendError::TooLarge(len)),
            _ => send(&store, &subject, &message.payload).await,
        };
        match sent {
            Ok(()) => {
                publish_queue.release(message.end);
                counter!("signalbox_kv_event_messages_total", "direction" => "out").increment(1);
                counter!("signalbox_kv_event_batches_total", "direction" => "out").increment(message.batches);
                counter!("signalbox_kv_event_bytes_total", "direction" => "out")
                    .increment(message.payload.len() as u64);
                retry = RETRY;
            }
            Err(error @ SendError::TooLarge(_)) => {
                // It never fits: whoever follows finds the hole and takes a snapshot.
                publish_queue.release(message.end);
                counter!("signalbox_kv_event_batches_dropped_total").increment(message.batches);
                if let Some(more) = warnings.tell() {
                    tracing::warn!(subject, %error, more, "KV events are dropped");
                }
            }
            Err(error) => {
                counter!("signalbox_kv_event_publish_retries_total").increment(1);
                if let SendError::Refused(_) = &error {
                    store.doubt();
                    if let Some(more) = warnings.tell() {
                        tracing::warn!(subject, %error, more, "NATS does not take KV events; sending them again");
                    }
                }
                tokio::time::sleep(retry).await;
                retry = (2 * retry).min(RETRY_MAX);
            }
        }
    }
}

/// Sends a message and waits until the stream has it: as long as the store waits for answers at most, which covers
/// the client's own queue too.
async fn send(store: &EventStore, subject: &str, payload: &Bytes) -> Result<(), SendError> {
    let mut connection = store.connection.status();
    connection.mark_unchanged();
    let taken = async {
        let acknowledged = store
            .jetstream
            .publish(subject.to_owned(), payload.clone())
            .await?;
        acknowledged.await?;
        Ok(())
    };
    tokio::select! {
        taken = taken => taken,
        // What was under way on the old connection may be lost.
        _ = connection.changed() => Err(SendError::Disconnected),
    }
}
