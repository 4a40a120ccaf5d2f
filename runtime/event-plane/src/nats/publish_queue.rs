//! The worker side: batches that wait for NATS, and the task that sends them.
//!
//! One message is in flight at a time. The next one takes all batches that were published meanwhile. So batches reach
//! the stream in order although messages are lost or repeated, and a busy worker sends few large messages. A batch
//! waits for one round trip at most.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use metrics::{counter, gauge};
use parking_lot::Mutex;
use signalbox_nats::{Denial, async_nats::jetstream::context::PublishError};
use tokio::{sync::Notify, time::timeout};

use super::{
    log_throttle::LogThrottle,
    stream::{MAX_MESSAGE_SIZE, StreamHandle},
};
use crate::retained::{Lookup, RetainedLog, Retention};

/// Most bytes of a message of several batches: half of a server's default limit, so that headers and smaller server
/// limits fit.
const MAX_MESSAGE_LEN: usize = 512 << 10;

/// Longest wait for the stream to acknowledge a message, doubled when it does not and halved when it does, between these
/// bounds. A leader acknowledges within milliseconds; a change of leaders loses the message or its acknowledgement; a
/// server whose disk is slow needs longer, and must not get each message many times.
const ACKNOWLEDGED: Duration = Duration::from_secs(1);
const ACKNOWLEDGED_MAX: Duration = Duration::from_secs(8);

/// Wait after the server has denied this process the right to publish, which only a person can mend.
const DENIED_RETRY: Duration = Duration::from_secs(5);

/// Wait before a message is sent again, doubled after each failure up to the longest.
const RETRY: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// The batches of one worker that NATS has not acknowledged. The oldest are dropped when there are too many.
#[derive(Debug)]
pub(super) struct PublishQueue {
    waiting: Mutex<RetainedLog<Bytes>>,
    /// Wakes the task that sends.
    pushed: Notify,
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
    #[error("a batch of {0} bytes exceeds the limit of the NATS server")]
    TooLarge(usize),
    #[error(transparent)]
    Refused(#[from] PublishError),
    #[error(transparent)]
    Denied(#[from] Denial),
    #[error("the stream did not acknowledge a message within {0:?}")]
    NoAnswer(Duration),
    #[error("the connection was lost before the server answered")]
    Disconnected,
}

impl PublishQueue {
    pub(super) fn new(retention: Retention) -> Self {
        Self {
            waiting: Mutex::new(RetainedLog::new(retention)),
            pushed: Notify::new(),
        }
    }

    pub(super) fn push(&self, batch: Bytes) {
        let bytes = batch.len();
        self.change(|waiting| waiting.push(batch, bytes));
        self.pushed.notify_one();
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

    /// A message of the oldest batches, as many as fit.
    fn message(&self, max_batches: usize, max_len: usize) -> Option<Message> {
        let waiting = self.waiting.lock();
        let start = waiting.oldest();
        let mut batches = Vec::new();
        let mut len = 0;
        while let Lookup::Entry(batch) = waiting.get(start + batches.len() as u64) {
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

/// Sends the batches of a queue, for ever.
pub(super) async fn send_all(
    publish_queue: Arc<PublishQueue>,
    stream: StreamHandle,
    subject: String,
    max_batches: usize,
) {
    let (mut retry, mut patience, mut warnings) = (RETRY, ACKNOWLEDGED, LogThrottle::default());
    let reported = Reported {
        stream: stream.clone(),
        subject: subject.clone(),
    };
    loop {
        stream.usable().await;
        let largest = stream
            .connection
            .client()
            .server_info()
            .max_payload
            .min(MAX_MESSAGE_SIZE);
        let Some(message) = publish_queue.message(max_batches, largest.min(MAX_MESSAGE_LEN)) else {
            publish_queue.pushed.notified().await;
            continue;
        };
        let sent = match message.payload.len() {
            len if len > largest => Err(SendError::TooLarge(len)),
            _ => send(&stream, &subject, &message.payload, patience).await,
        };
        match sent {
            Ok(()) => {
                publish_queue.release(message.end);
                stream.health.publishing_works(&reported.subject);
                counter!("signalbox_kv_event_messages_total", "direction" => "out").increment(1);
                counter!("signalbox_kv_event_batches_total", "direction" => "out").increment(message.batches);
                counter!("signalbox_kv_event_bytes_total", "direction" => "out")
                    .increment(message.payload.len() as u64);
                retry = RETRY;
                patience = (patience / 2).max(ACKNOWLEDGED);
            }
            Err(error @ SendError::TooLarge(_)) => {
                // The batch will never fit. Subscribers find the gap and take a snapshot.
                publish_queue.release(message.end);
                counter!("signalbox_kv_event_batches_dropped_total").increment(message.batches);
                if let Some(more) = warnings.allow() {
                    tracing::warn!(subject, %error, more, "KV events were dropped");
                }
            }
            Err(error) => {
                counter!("signalbox_kv_event_publish_retries_total").increment(1);
                let wait = match &error {
                    // Nothing is wrong with the stream: the connection's own state shows it.
                    SendError::Disconnected => retry,
                    SendError::Denied(_) => DENIED_RETRY,
                    _ => {
                        patience = (patience * 2).min(ACKNOWLEDGED_MAX);
                        stream.doubt();
                        retry
                    }
                };
                if !matches!(error, SendError::Disconnected) {
                    stream.health.publishing_fails(&subject, &error.to_string());
                    if let Some(more) = warnings.allow() {
                        tracing::debug!(subject, %error, more, "NATS did not accept KV events; sending them again");
                    }
                }
                tokio::time::sleep(wait).await;
                retry = (2 * retry).min(RETRY_MAX);
            }
        }
    }
}

/// Withdraws what a queue reported when the queue ends.
struct Reported {
    stream: StreamHandle,
    subject: String,
}

impl Drop for Reported {
    fn drop(&mut self) {
        self.stream.health.publishing_works(&self.subject);
    }
}

/// Sends a message and waits until the stream has acknowledged it, at most for `patience`, which covers the client's
/// queue too.
async fn send(
    stream: &StreamHandle,
    subject: &str,
    payload: &Bytes,
    patience: Duration,
) -> Result<(), SendError> {
    let mut connection = stream.connection.status();
    connection.mark_unchanged();
    let acknowledged = async {
        let acknowledgement = stream
            .jetstream
            .publish(subject.to_owned(), payload.clone())
            .await?;
        acknowledgement.await?;
        Ok::<_, PublishError>(())
    };
    let concerns =
        |denial: &Denial| denial.is_of_answers() || (!denial.is_subscription && denial.subject == subject);
    tokio::select! {
        outcome = timeout(patience, stream.connection.permitted(concerns, acknowledged)) => match outcome {
            Ok(outcome) => Ok(outcome??),
            Err(_) => Err(SendError::NoAnswer(patience)),
        },
        // A message in flight on the old connection may be lost.
        _ = connection.changed() => Err(SendError::Disconnected),
    }
}
