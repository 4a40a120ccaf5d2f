//! Short messages among routers: what one has in flight, asked and told; lossy, and nothing is kept.
//!
//! Whoever listens to a topic gets what is sent on it from then on, its own messages too: receivers tell them by
//! their content. Nothing waits, so anything may be lost: while the carrier is away, when too much is sent at once,
//! or by a listener that is slow. Whatever is said here must be said again, or be advice only.

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

/// Messages that a listener may be behind; then it loses the oldest. A router says a few hundred short ones a second.
const LISTENER_CAPACITY: usize = 1024;

/// Longest topic, in bytes. With each escaped it still fits what NATS takes as a subject (4 KiB).
const MAX_TOPIC_LEN: usize = 512;

/// Longest message, in bytes: what a NATS server takes by default.
const MAX_MESSAGE_LEN: usize = 1 << 20;

/// Carries short messages to whoever listens.
pub trait Broadcast: Send + Sync + Debug + 'static {
    /// Sends a message, and never waits. A message that cannot be sent now is dropped and counted in
    /// `signalbox_broadcast_dropped_total`.
    ///
    /// `topic`: any text of at most 512 bytes. `message`: at most 1 MiB.
    fn send(&self, topic: &str, message: Bytes);

    /// Listens to a topic from now on: what this process sends afterwards is heard, what others send as soon as the
    /// carrier knows of the listener.
    fn listen(&self, topic: &str) -> Listener;
}

/// One topic's messages as they arrive. Dropping it ends listening.
#[derive(Debug)]
pub struct Listener {
    messages: broadcast::Receiver<Bytes>,
}

impl Listener {
    /// Waits for the next message; for ever once the broadcast it came from was dropped. Loses nothing when
    /// cancelled. One that is more than 1,024 messages behind loses the oldest.
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

/// Whether any broadcast carries this; where not, that is told.
fn is_acceptable(topic: &str, message: &Bytes) -> bool {
    let acceptable = topic.len() <= MAX_TOPIC_LEN && message.len() <= MAX_MESSAGE_LEN;
    if !acceptable {
        dropped("too large", 1);
        tracing::warn!(
            topic.len = topic.len(),
            message.len = message.len(),
            "a broadcast is dropped: its topic is over 512 bytes or its message over 1 MiB"
        );
    }
    acceptable
}

fn dropped(reason: &'static str, messages: u64) {
    counter!("signalbox_broadcast_dropped_total", "reason" => reason).increment(messages);
}
