//! Broadcast over core NATS: subjects `signalbox.{namespace}.sync.{topic}`, messages as they are.

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

/// Messages that wait for the client to take them, which it does at once unless the network is slower than we are.
const QUEUE: usize = 1024;

/// Broadcast over core NATS. Listeners survive reconnects; what is sent while NATS is away is dropped. Dropping it
/// ends its tasks.
#[derive(Debug)]
pub struct NatsBroadcast {
    pub(super) connection: NatsConnection,
    queues: Arc<TopicQueues>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct TopicQueues {
    state: Mutex<State>,
    /// There is something to do.
    more: Notify,
}

#[derive(Debug, Default)]
struct State {
    topics: HashMap<String, broadcast::Sender<Bytes>>,
    /// TopicQueues to subscribe to, each once: as many as there are.
    wanted: Vec<String>,
    outgoing: VecDeque<(String, Bytes)>,
}

impl NatsBroadcast {
    /// Starts it, whether or not NATS can be reached. Call it inside a tokio runtime, which its tasks run on.
    pub fn start(connection: NatsConnection, namespace: &str) -> Arc<Self> {
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
        self.queues.state.lock().topics.len()
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
        let mut state = self.queues.state.lock();
        if state.outgoing.len() >= QUEUE {
            return dropped("full", 1);
        }
        state.outgoing.push_back((topic.to_owned(), message));
        drop(state);
        self.queues.more.notify_one();
    }

    fn listen(&self, topic: &str) -> Listener {
        let mut state = self.queues.state.lock();
        let State { topics, wanted, .. } = &mut *state;
        let listeners = topics.entry(topic.to_owned()).or_insert_with(|| {
            // Nothing is ever sent on a longer one.
            if topic.len() <= MAX_TOPIC_LEN {
                wanted.push(topic.to_owned());
            }
            broadcast::Sender::new(LISTENER_CAPACITY)
        });
        let messages = listeners.subscribe();
        drop(state);
        self.queues.more.notify_one();
        Listener { messages }
    }
}

/// Hands everything to the client, in order: so a listener hears what was sent after it began to listen.
async fn carry(connection: NatsConnection, prefix: String, queues: Arc<TopicQueues>) {
    let client = connection.client();
    let mut listening = JoinSet::new();
    loop {
        let (wanted, outgoing) = {
            let mut state = queues.state.lock();
            (std::mem::take(&mut state.wanted), state.outgoing.pop_front())
        };
        let idle = wanted.is_empty() && outgoing.is_none();
        for topic in wanted {
            match client.subscribe(format!("{prefix}.{}", token(&topic))).await {
                Ok(messages) => _ = listening.spawn(receive(topic, messages, queues.clone())),
                Err(error) => tracing::error!(topic, %error, "NATS client does not listen"),
            }
        }
        if let Some((topic, message)) = outgoing {
            // The client checks the size; it waits while its own queue is full, and ours fills up meanwhile.
            let sent = client
                .publish(format!("{prefix}.{}", token(&topic)), message)
                .await;
            if sent.is_err() {
                dropped("refused", 1);
            }
        }
        while listening.try_join_next().is_some() {}
        if idle {
            queues.more.notified().await;
        }
    }
}

/// Passes a topic's messages on to its listeners, until there are none.
async fn receive(
    topic: String,
    mut messages: signalbox_nats::async_nats::Subscriber,
    queues: Arc<TopicQueues>,
) {
    let Some(listeners) = queues.state.lock().topics.get(&topic).cloned() else {
        return;
    };
    loop {
        tokio::select! {
            message = messages.next() => match message {
                // Fails where nobody listens any more.
                Some(message) => _ = listeners.send(message.payload),
                // The connection was given up.
                None => return,
            },
            () = listeners.closed() => {
                let mut state = queues.state.lock();
                // Somebody may have begun to listen since.
                if listeners.receiver_count() == 0 {
                    state.topics.remove(&topic);
                    return;
                }
            }
        }
    }
}
