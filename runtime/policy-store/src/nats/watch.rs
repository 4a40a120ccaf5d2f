//! The watch on a bucket, which outlasts every failure of the server.
//!
//! One task reads a consumer of its own. When it may have missed a change (the connection changed, a heartbeat did not
//! arrive, a message is missing), it lists all entries again and delivers the differences from what it delivered
//! before. The revisions of a bucket that was created again begin at 1: then the task first delivers the removal of
//! every entry.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    time::Duration,
};

use futures_util::StreamExt;
use signalbox_nats::async_nats::jetstream::{
    Message,
    consumer::{AckPolicy, DeliverPolicy, pull},
};
use signalbox_protocol::PlaneState;
use tokio::{sync::mpsc, task::JoinHandle, time::sleep};

use super::{NatsStore, unavailable};
use crate::store::{Revision, StoreChange, StoreEntry, StoreError, StoreWatchSource};

/// Most changes that wait for the reader; then the task waits.
const QUEUE: usize = 64;
/// The server sends a message or a heartbeat at least this often; after twice this time without one, the task lists the
/// entries again.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long the server serves one pull request before the client sends the next.
const REQUEST: Duration = Duration::from_secs(30);
/// How long the server keeps a consumer without a reader.
const INACTIVE: Duration = Duration::from_secs(30);
/// Wait before the next attempt, doubled after each failure up to the longest.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// The reader's end of a watch.
#[derive(Debug)]
pub(super) struct BucketWatch {
    changes: mpsc::Receiver<StoreChange>,
    task: JoinHandle<()>,
}

impl BucketWatch {
    pub(super) fn start(store: NatsStore) -> Self {
        let (sender, changes) = mpsc::channel(QUEUE);
        let task = tokio::spawn(BucketReader::new(sender).run(store));
        Self { changes, task }
    }
}

impl Drop for BucketWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl StoreWatchSource for BucketWatch {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = StoreChange> + Send + '_>> {
        Box::pin(async {
            match self.changes.recv().await {
                Some(change) => change,
                // The task ends only with its runtime, and then no change can arrive.
                None => std::future::pending().await,
            }
        })
    }
}

/// Why the reading of a consumer ended.
enum WatchEnd {
    /// The reader's end was dropped.
    Unread,
    /// A change may have been missed, for this reason.
    Interrupted(String),
}

/// The reader's end was dropped, so that no change can be delivered.
struct Unread;

/// The task that reads a consumer and delivers changes.
struct BucketReader {
    changes: mpsc::Sender<StoreChange>,
    /// The entries that the reader has, by key.
    delivered: HashMap<String, Revision>,
    /// When the bucket of the delivered entries was created.
    bucket_created: Option<String>,
    is_complete: bool,
    retry: Duration,
}

impl BucketReader {
    fn new(changes: mpsc::Sender<StoreChange>) -> Self {
        Self {
            changes,
            delivered: HashMap::new(),
            bucket_created: None,
            is_complete: false,
            retry: RETRY,
        }
    }

    async fn run(mut self, store: NatsStore) {
        loop {
            match self.follow(&store).await {
                WatchEnd::Unread => return,
                WatchEnd::Interrupted(reason) => {
                    // Until the first list the router decides without what is stored there.
                    match (self.is_complete, self.retry) {
                        (false, RETRY) => {
                            tracing::warn!(reason, "the policy store cannot be read yet; trying again")
                        }
                        _ => tracing::debug!(reason, "the watch lists the policy bucket again"),
                    }
                    sleep(self.retry).await;
                    self.retry = (self.retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Delivers the present entries, then their changes, until a change may have been missed.
    async fn follow(&mut self, store: &NatsStore) -> WatchEnd {
        let mut status = store.0.connection.status();
        if status
            .wait_for(|status| status.state == PlaneState::Up)
            .await
            .is_err()
        {
            return WatchEnd::Interrupted("the connection is closed".into());
        }
        let (created, mut left, mut messages) = match list(store).await {
            Ok(listed) => listed,
            Err(error) => return WatchEnd::Interrupted(error.to_string()),
        };
        let known_bucket = self.bucket_created.replace(created.clone());
        if known_bucket.is_some_and(|known| known != created)
            && self.remove_all_but(&HashSet::new()).await.is_err()
        {
            return WatchEnd::Unread;
        }
        let mut present = HashSet::new();
        let mut listing = true;
        let mut received = 0;
        loop {
            if listing && left == 0 {
                listing = false;
                self.retry = RETRY;
                if self.complete(&present).await.is_err() {
                    return WatchEnd::Unread;
                }
                // Beside the watch, which has to see that the connection changes meanwhile.
                let store = store.clone();
                tokio::spawn(async move { store.keep_replicas().await });
            }
            let message = tokio::select! {
                // What arrives after the connection changed may have a gap in front of it.
                biased;
                _ = status.changed() => return WatchEnd::Interrupted("the connection changed".into()),
                message = messages.next() => match message {
                    Some(Ok(message)) => message,
                    Some(Err(error)) => return WatchEnd::Interrupted(error.to_string()),
                    None => return WatchEnd::Interrupted("the consumer ended".into()),
                },
                () = self.changes.closed() => return WatchEnd::Unread,
            };
            let (revision, sequence) = match message.info() {
                Ok(info) => {
                    left = info.pending;
                    (Revision(info.stream_sequence), info.consumer_sequence)
                }
                Err(error) => return WatchEnd::Interrupted(error.to_string()),
            };
            received += 1;
            if sequence != received {
                return WatchEnd::Interrupted(format!("message {received} is missing: {sequence} arrived"));
            }
            let Some(key) = store.0.keys.decode_subject(&message.subject) else {
                tracing::warn!(subject = %message.subject, "a key of the policy bucket does not have the documented encoding");
                continue;
            };
            let outcome = if is_removal(&message) {
                present.remove(&key);
                self.removed(key).await
            } else {
                let value = message.message.payload;
                if listing {
                    present.insert(key.clone());
                }
                self.set(key, StoreEntry { value, revision }).await
            };
            if outcome.is_err() {
                return WatchEnd::Unread;
            }
        }
    }

    async fn set(&mut self, key: String, entry: StoreEntry) -> Result<(), Unread> {
        if self.delivered.get(&key) == Some(&entry.revision) {
            return Ok(());
        }
        self.delivered.insert(key.clone(), entry.revision);
        self.deliver(StoreChange::Set { key, entry }).await
    }

    async fn removed(&mut self, key: String) -> Result<(), Unread> {
        match self.delivered.remove(&key) {
            Some(_) => self.deliver(StoreChange::Removed { key }).await,
            None => Ok(()),
        }
    }

    /// Ends the list of present entries: removes those that the reader has and that are not `present`.
    async fn complete(&mut self, present: &HashSet<String>) -> Result<(), Unread> {
        self.remove_all_but(present).await?;
        if !self.is_complete {
            self.is_complete = true;
            self.deliver(StoreChange::Complete).await?;
        }
        Ok(())
    }

    async fn remove_all_but(&mut self, present: &HashSet<String>) -> Result<(), Unread> {
        let gone: Vec<String> = self
            .delivered
            .keys()
            .filter(|key| !present.contains(*key))
            .cloned()
            .collect();
        for key in gone {
            self.removed(key).await?;
        }
        Ok(())
    }

    async fn deliver(&self, change: StoreChange) -> Result<(), Unread> {
        self.changes.send(change).await.map_err(|_| Unread)
    }
}

/// Starts a consumer. Returns when the bucket was created, how many present entries the consumer delivers first, and
/// its messages.
async fn list(store: &NatsStore) -> Result<(String, u64, pull::Stream), StoreError> {
    let bucket = store.entries().await?;
    let created = bucket.stream.cached_info().created.to_string();
    let config = pull::Config {
        description: Some("Signalbox router".into()),
        deliver_policy: DeliverPolicy::LastPerSubject,
        ack_policy: AckPolicy::None,
        filter_subject: store.0.keys.filter(),
        inactive_threshold: INACTIVE,
        num_replicas: 1,
        memory_storage: true,
        ..pull::Config::default()
    };
    let consumer = bucket.stream.create_consumer(config).await.map_err(unavailable)?;
    let listed = consumer.cached_info().num_pending;
    let messages = consumer
        .stream()
        .heartbeat(HEARTBEAT)
        .expires(REQUEST)
        .messages()
        .await
        .map_err(unavailable)?;
    Ok((created, listed, messages))
}

/// Whether a message marks a deleted or purged key.
fn is_removal(message: &Message) -> bool {
    let operation = message
        .headers
        .as_ref()
        .and_then(|headers| headers.get("KV-Operation"));
    operation.is_some_and(|operation| matches!(operation.as_str(), "DEL" | "PURGE"))
}
