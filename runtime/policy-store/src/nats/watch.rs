//! The watch on a bucket, over everything that can happen to the server.
//!
//! One task reads a consumer of its own. Whenever something may have been missed (the connection changed, a heartbeat
//! did not come, a message is missing) it begins anew with a list of what is there, and tells what differs from what
//! it told before. A bucket that was made anew counts its revisions from 1 again: all that was told is taken back.

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

/// Changes told ahead of the reader; then the task waits.
const QUEUE: usize = 64;
/// The server speaks at least this often; after twice that without a word it is asked for a new list.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long the server answers to one request before it is asked again.
const REQUEST: Duration = Duration::from_secs(30);
/// How long the server keeps a consumer whose reader is gone.
const INACTIVE: Duration = Duration::from_secs(30);
/// Wait before the next attempt, doubled up to the longest after each failure.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// The reader's end.
#[derive(Debug)]
pub(super) struct Follower {
    changes: mpsc::Receiver<StoreChange>,
    task: JoinHandle<()>,
}

impl Follower {
    pub(super) fn start(store: NatsStore) -> Self {
        let (sender, changes) = mpsc::channel(QUEUE);
        let task = tokio::spawn(Teller::new(sender).run(store));
        Self { changes, task }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl StoreWatchSource for Follower {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = StoreChange> + Send + '_>> {
        Box::pin(async {
            match self.changes.recv().await {
                Some(change) => change,
                // The task ended, which only the end of its runtime brings about: nothing changes any more.
                None => std::future::pending().await,
            }
        })
    }
}

/// Why a list and what follows it came to an end.
enum WatchEnd {
    /// Nobody reads any more.
    Unread,
    /// Something may have been missed.
    Interrupted(String),
}

/// The task: what it told so far.
struct Teller {
    changes: mpsc::Sender<StoreChange>,
    told: HashMap<String, Revision>,
    /// When the bucket was made whose entries were told.
    bucket_made: Option<String>,
    complete: bool,
    retry: Duration,
}

impl Teller {
    fn new(changes: mpsc::Sender<StoreChange>) -> Self {
        Self {
            changes,
            told: HashMap::new(),
            bucket_made: None,
            complete: false,
            retry: RETRY,
        }
    }

    async fn run(mut self, store: NatsStore) {
        loop {
            match self.follow(&store).await {
                WatchEnd::Unread => return,
                WatchEnd::Interrupted(reason) => {
                    tracing::debug!(reason, "the watch on the policy bucket begins anew");
                    sleep(self.retry).await;
                    self.retry = (self.retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Tells what is there, then what changes, until something may have been missed.
    async fn follow(&mut self, store: &NatsStore) -> WatchEnd {
        let mut status = store.0.connection.status();
        if status
            .wait_for(|status| status.state == PlaneState::Up)
            .await
            .is_err()
        {
            return WatchEnd::Interrupted("the connection is closed".into());
        }
        let (made, mut left, mut messages) = match list(store).await {
            Ok(listed) => listed,
            Err(error) => return WatchEnd::Interrupted(error.to_string()),
        };
        if self.bucket_made.as_ref().is_some_and(|before| *before != made)
            && self.take_back_all_but(&HashSet::new()).await.is_err()
        {
            return WatchEnd::Unread;
        }
        self.bucket_made = Some(made);
        let mut present = HashSet::new();
        let mut listing = true;
        let mut received = 0;
        loop {
            if listing && left == 0 {
                listing = false;
                self.retry = RETRY;
                if self.listed(&present).await.is_err() {
                    return WatchEnd::Unread;
                }
            }
            let message = tokio::select! {
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
                return WatchEnd::Interrupted(format!("message {received} is missing: {sequence} came"));
            }
            let Some(key) = store.0.keys.decode_subject(&message.subject) else {
                tracing::warn!(subject = %message.subject, "a key in the policy bucket is not spelled as documented");
                continue;
            };
            let told = if is_removal(&message) {
                present.remove(&key);
                self.removed(key).await
            } else {
                let value = message.message.payload;
                if listing {
                    present.insert(key.clone());
                }
                self.set(key, StoreEntry { value, revision }).await
            };
            if told.is_err() {
                return WatchEnd::Unread;
            }
        }
    }

    async fn set(&mut self, key: String, entry: StoreEntry) -> Result<(), ()> {
        if self.told.get(&key) == Some(&entry.revision) {
            return Ok(());
        }
        self.told.insert(key.clone(), entry.revision);
        self.tell(StoreChange::Set { key, entry }).await
    }

    async fn removed(&mut self, key: String) -> Result<(), ()> {
        match self.told.remove(&key) {
            Some(_) => self.tell(StoreChange::Removed { key }).await,
            None => Ok(()),
        }
    }

    /// The list is complete.
    async fn listed(&mut self, present: &HashSet<String>) -> Result<(), ()> {
        self.take_back_all_but(present).await?;
        if !self.complete {
            self.complete = true;
            self.tell(StoreChange::Complete).await?;
        }
        Ok(())
    }

    async fn take_back_all_but(&mut self, present: &HashSet<String>) -> Result<(), ()> {
        let gone: Vec<String> = self
            .told
            .keys()
            .filter(|key| !present.contains(*key))
            .cloned()
            .collect();
        for key in gone {
            self.removed(key).await?;
        }
        Ok(())
    }

    /// Fails when nobody reads any more.
    async fn tell(&self, change: StoreChange) -> Result<(), ()> {
        self.changes.send(change).await.map_err(drop)
    }
}

/// When the bucket was made, how many of its newest values will come first, and the consumer that brings them.
async fn list(store: &NatsStore) -> Result<(String, u64, pull::Stream), StoreError> {
    let bucket = store.entries().await?;
    let made = bucket.stream.cached_info().created.to_string();
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
    Ok((made, listed, messages))
}

/// The mark that a deleted or purged key leaves.
fn is_removal(message: &Message) -> bool {
    let operation = message
        .headers
        .as_ref()
        .and_then(|headers| headers.get("KV-Operation"));
    operation.is_some_and(|operation| matches!(operation.as_str(), "DEL" | "PURGE"))
}
