//! Broadcast within a process.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::{Broadcast, LISTENER_CAPACITY, Listener, is_acceptable};

/// Broadcast within a process, with the semantics of [`NatsBroadcast`](super::NatsBroadcast). Clone = handle.
#[derive(Debug, Default, Clone)]
pub struct MemoryBroadcast {
    /// The topics with listeners, and some whose last listener has gone.
    topics: Arc<Mutex<HashMap<String, broadcast::Sender<Bytes>>>>,
}

impl MemoryBroadcast {
    /// A broadcast without listeners.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    #[cfg(test)]
    pub(super) fn topics(&self) -> usize {
        self.topics.lock().len()
    }
}

impl Broadcast for MemoryBroadcast {
    fn send(&self, topic: &str, message: Bytes) {
        if is_acceptable(topic, &message)
            && let Some(topic) = self.topics.lock().get(topic)
        {
            // Fails when the last listener has gone.
            _ = topic.send(message);
        }
    }

    fn listen(&self, topic: &str) -> Listener {
        let mut topics = self.topics.lock();
        topics.retain(|_, listeners| listeners.receiver_count() > 0);
        let listeners = topics
            .entry(topic.to_owned())
            .or_insert_with(|| broadcast::Sender::new(LISTENER_CAPACITY));
        Listener {
            messages: listeners.subscribe(),
        }
    }
}
