//! Short messages among routers, for example what one has in flight. Messages may be lost, and none is stored.
//!
//! A listener of a topic receives every message sent on it from then on, those of its own process included; receivers
//! recognise their own messages by the content. No call waits. Messages are lost while the transport is away, when too
//! many are sent at once, and at a slow listener. So a message is either repeated or advice only.

use std::fmt::Debug;

use bytes::Bytes;
use metrics::counter;
use tokio::sync::broadcast;

mod memory;
mod nats;
#[cfg(test)]
mod tests;

pub use memory::MemoryBroadcast;
pub use nats::NatsBroadcast;

/// Messages that wait for a slow listener; beyond, it loses the oldest. A router sends a few hundred short ones a
/// second.
const LISTENER_CAPACITY: usize = 1024;

/// Most bytes of a topic. With every byte escaped it still fits a NATS subject (4 KiB).
const MAX_TOPIC_LEN: usize = 512;

/// Most bytes of a message: the default limit of a NATS server.
const MAX_MESSAGE_LEN: usize = 1 << 20;

/// Carries short messages to the listeners of a topic.
pub trait Broadcast: Send + Sync + Debug + 'static {
    /// Sends a message, and never waits. A message that cannot be sent now is dropped and counted in
    /// `signalbox_broadcast_dropped_total`.
    ///
    /// `topic`: any text of at most 512 bytes. `message`: at most 1 MiB.
    fn send(&self, topic: &str, message: Bytes);

    /// Listens to a topic. The listener receives what this process sends from now on, and what other processes send as
    /// soon as the transport knows of the listener.
    fn listen(&self, topic: &str) -> Listener;
}

/// The messages of one topic, as they arrive. Dropping it stops listening.
#[derive(Debug)]
pub struct Listener {
    messages: broadcast::Receiver<Bytes>,
}

impl Listener {
    /// Waits for the next message; for ever once the broadcast was dropped. Dropping the future loses nothing. A
    /// listener that is more than 1,024 messages behind loses the oldest.
    pub async fn next(&mut self) -> Bytes {
        loop {
            match self.messages.recv().await {
                Ok(message) => return message,
                Err(broadcast::error::RecvError::Lagged(lost)) => dropped("slow", lost),
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

/// Whether topic and message are within bounds. Logs and counts a message that is not.
fn is_acceptable(topic: &str, message: &Bytes) -> bool {
    let acceptable = topic.len() <= MAX_TOPIC_LEN && message.len() <= MAX_MESSAGE_LEN;
    if !acceptable {
        dropped("too large", 1);
        tracing::warn!(
            topic.len = topic.len(),
            message.len = message.len(),
            "a broadcast was dropped: its topic is over 512 bytes or its message over 1 MiB"
        );
    }
    acceptable
}

fn dropped(reason: &'static str, messages: u64) {
    counter!("signalbox_broadcast_dropped_total", "reason" => reason).increment(messages);
}
