//! Broadcast over core NATS, on the subjects `signalbox.{namespace}.sync.{topic}`. Messages are sent unchanged.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use signalbox_nats::NatsConnection;
use tokio::{
    sync::{Notify, broadcast},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

use super::{Broadcast, LISTENER_CAPACITY, Listener, MAX_TOPIC_LEN, dropped, is_acceptable};
use crate::subject::token;

/// Most messages that wait for the client, which takes them at once unless the network is slower than this process.
const QUEUE: usize = 1024;

/// Broadcast over core NATS. Listeners outlast reconnects; messages sent while NATS is away are dropped. Dropping the
/// broadcast ends its tasks.
#[derive(Debug)]
pub struct NatsBroadcast {
    pub(super) connection: NatsConnection,
    queues: Arc<TopicQueues>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct TopicQueues {
    topics: Mutex<Topics>,
    /// Wakes the task that hands everything to the client.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Topics {
    listeners: HashMap<String, broadcast::Sender<Bytes>>,
    /// Topics to subscribe to at the server, each once.
    to_subscribe: Vec<String>,
    outgoing: VecDeque<(String, Bytes)>,
}

impl NatsBroadcast {
    /// Starts a broadcast; the server need not be reachable. Call it inside a tokio runtime, on which its tasks run.
    pub fn start(connection: NatsConnection, namespace: &str) -> Arc<Self> {
        metrics::describe_counter!(
            "signalbox_broadcast_dropped_total",
            "Messages between routers that were dropped, by reason"
        );
        let queues = Arc::<TopicQueues>::default();
        let prefix = format!("signalbox.{}.sync", token(namespace));
        let carrying = carry(connection.clone(), prefix, queues.clone());
        Arc::new(Self {
            connection,
            queues,
            _task: AbortOnDropHandle::new(tokio::spawn(carrying)),
        })
    }

    #[cfg(test)]
    pub(super) fn topics(&self) -> usize {
        self.queues.topics.lock().listeners.len()
    }
}

impl Broadcast for NatsBroadcast {
    fn send(&self, topic: &str, message: Bytes) {
        if !is_acceptable(topic, &message) {
            return;
        }
        if !self.connection.is_up() {
            return dropped("away", 1);
        }
        let mut topics = self.queues.topics.lock();
        if topics.outgoing.len() >= QUEUE {
            return dropped("full", 1);
        }
        topics.outgoing.push_back((topic.to_owned(), message));
        drop(topics);
        self.queues.changed.notify_one();
    }

    fn listen(&self, topic: &str) -> Listener {
        let mut topics = self.queues.topics.lock();
        let Topics {
            listeners,
            to_subscribe,
            ..
        } = &mut *topics;
        let listeners = listeners.entry(topic.to_owned()).or_insert_with(|| {
            // No message is sent on a longer topic.
            if topic.len() <= MAX_TOPIC_LEN {
                to_subscribe.push(topic.to_owned());
            }
            broadcast::Sender::new(LISTENER_CAPACITY)
        });
        let messages = listeners.subscribe();
        drop(topics);
        self.queues.changed.notify_one();
        Listener { messages }
    }
}

/// Hands subscriptions and messages to the client, in order: so a listener receives what is sent after it began to
/// listen.
async fn carry(connection: NatsConnection, prefix: String, queues: Arc<TopicQueues>) {
    let client = connection.client();
    let mut listening = JoinSet::new();
    loop {
        let (to_subscribe, outgoing) = {
            let mut topics = queues.topics.lock();
            (
                std::mem::take(&mut topics.to_subscribe),
                topics.outgoing.pop_front(),
            )
        };
        let idle = to_subscribe.is_empty() && outgoing.is_none();
        for topic in to_subscribe {
            match client.subscribe(format!("{prefix}.{}", token(&topic))).await {
                Ok(messages) => _ = listening.spawn(receive(topic, messages, queues.clone())),
                Err(error) => {
                    tracing::error!(topic, %error, "the NATS client cannot subscribe to a broadcast")
                }
            }
        }
        if let Some((topic, message)) = outgoing {
            // The client checks the size. It waits while its queue is full; meanwhile the queue here fills up.
            let sent = client
                .publish(format!("{prefix}.{}", token(&topic)), message)
                .await;
            if sent.is_err() {
                dropped("refused", 1);
            }
        }
        while listening.try_join_next().is_some() {}
        if idle {
            queues.changed.notified().await;
        }
    }
}

/// Passes the messages of a topic on to its listeners, until the last one has gone.
async fn receive(
    topic: String,
    mut messages: signalbox_nats::async_nats::Subscriber,
    queues: Arc<TopicQueues>,
) {
    let Some(listeners) = queues.topics.lock().listeners.get(&topic).cloned() else {
        return;
    };
    loop {
        tokio::select! {
            message = messages.next() => match message {
                // Fails when the last listener has gone.
                Some(message) => _ = listeners.send(message.payload),
                // The connection was closed for good.
                None => return,
            },
            () = listeners.closed() => {
                let mut topics = queues.topics.lock();
                // A new listener may have come since.
                if listeners.receiver_count() == 0 {
                    topics.listeners.remove(&topic);
                    return;
                }
            }
        }
    }
}
