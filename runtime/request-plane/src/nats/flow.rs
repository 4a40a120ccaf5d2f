//! Order and window of one connection's two directions, without NATS.
//!
//! Core NATS may lose a message and says nothing. So every message of a direction has the next number, and a hole
//! ends the connection: bytes arrive as they were sent, or not at all. A window bounds what is under way, so that a
//! slow reader fills neither NATS' buffers nor its own.

/// Bytes that may be sent to this side and not yet read, each message's [`MESSAGE_COST`] included: at 10 ms of round
/// trip still 100 MB/s. A message may pass it.
pub(super) const WINDOW_BYTES: u32 = 1 << 20;

/// The largest window taken from another program, as this side would have to hold so much in NATS' client.
const MAX_WINDOW_BYTES: i64 = 16 << 20;

/// What a message takes from the window beside its payload. So at most 16,384 messages of a connection are under
/// way, a quarter of what NATS' client keeps for a subscription before it drops one.
pub(super) const MESSAGE_COST: u32 = 64;

/// What a message with so much payload takes from the window.
fn cost(payload: usize) -> u32 {
    u32::try_from(payload)
        .unwrap_or(u32::MAX)
        .saturating_add(MESSAGE_COST)
}

/// The direction away from this side.
#[derive(Debug)]
pub(super) struct Sending {
    last: u64,
    /// What may still be sent; one message may take it below zero.
    window: i64,
}

impl Sending {
    /// `window` is what the other side said it takes.
    pub(super) fn new(window: u32) -> Self {
        Self {
            last: 0,
            window: i64::from(window).min(MAX_WINDOW_BYTES),
        }
    }

    /// Whether data may be sent now.
    pub(super) fn has_room(&self) -> bool {
        self.window > 0
    }

    /// The number of the next message, which is sent.
    pub(super) fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Data of this length is sent.
    pub(super) fn sent(&mut self, payload: usize) {
        self.window -= i64::from(cost(payload));
    }

    /// The other side has read so much.
    pub(super) fn credit(&mut self, bytes: u32) {
        self.window = (self.window + i64::from(bytes)).min(MAX_WINDOW_BYTES);
    }
}

/// How the other side broke the rules, or a message got lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("message {number} came over NATS where {due} was due: one was lost, repeated or out of order")]
    Order { number: u64, due: u64 },
    #[error("more data came over NATS than the window of {WINDOW_BYTES} bytes allows")]
    Window,
}

/// The direction towards this side.
#[derive(Debug)]
pub(super) struct Receiving {
    last: u64,
    /// What the other side may still send.
    window: i64,
    /// Read, and not yet told.
    owed: u32,
}

impl Receiving {
    pub(super) fn new() -> Self {
        Self {
            last: 0,
            window: WINDOW_BYTES.into(),
            owed: 0,
        }
    }

    /// A message of this number arrived.
    pub(super) fn take(&mut self, number: u64) -> Result<(), Broken> {
        let due = self.last + 1;
        if number != due {
            return Err(Broken::Order { number, due });
        }
        self.last = due;
        Ok(())
    }

    /// It is data of this length.
    pub(super) fn take_data(&mut self, payload: usize) -> Result<(), Broken> {
        if self.window <= 0 {
            return Err(Broken::Window);
        }
        self.window -= i64::from(cost(payload));
        Ok(())
    }

    /// The reader has read so many bytes of a message.
    pub(super) fn read(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.owed = self.owed.saturating_add(bytes);
    }

    /// The message that was read is at its end.
    pub(super) fn read_message(&mut self) {
        self.owed = self.owed.saturating_add(MESSAGE_COST);
    }

    /// Whether the other side is to be told: for every quarter of a window, so that it never runs dry.
    pub(super) fn owes_credit(&self) -> bool {
        self.owed >= WINDOW_BYTES / 4
    }

    /// The credit, which is sent.
    pub(super) fn take_credit(&mut self) -> u32 {
        self.window += i64::from(self.owed);
        std::mem::take(&mut self.owed)
    }
}

#[cfg(test)]
mod tests;
