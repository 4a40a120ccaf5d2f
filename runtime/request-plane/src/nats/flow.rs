//! Order and window of one connection's two directions, without NATS.
//!
//! Core NATS may lose a message without a report. So each message of a direction has the next number, and a missing number
//! ends the connection: bytes arrive as they were sent, or not at all. A window bounds the bytes in flight, so that a slow
//! reader fills neither the buffers of NATS nor its own.

/// Window of this side: bytes that may be in flight to it, each message's [`MESSAGE_COST`] included. Enough for 100 MB/s
/// at a round trip of 10 ms. One message may pass the window.
pub(super) const WINDOW_BYTES: u32 = 1 << 20;

/// The largest window that this side uses of another program, because this side may have to hold as many bytes in the NATS
/// client.
const MAX_WINDOW_BYTES: i64 = 16 << 20;

/// Bytes that a message takes from the window beside its payload. So at most 16,384 messages of a connection are in
/// flight, a quarter of what the NATS client keeps for a subscription before it drops messages.
pub(super) const MESSAGE_COST: u32 = 64;

/// Bytes that a message with a payload of this length takes from the window.
fn cost(payload: usize) -> u32 {
    u32::try_from(payload)
        .unwrap_or(u32::MAX)
        .saturating_add(MESSAGE_COST)
}

/// The direction away from this side.
#[derive(Debug)]
pub(super) struct Sending {
    /// Number of the last message.
    last: u64,
    /// Bytes that may still be sent; one message may take it below zero.
    window: i64,
}

impl Sending {
    /// `window` is the window that the other side gave.
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

    /// Numbers the next message, which the caller sends.
    pub(super) fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Notes that data of this length is sent.
    pub(super) fn sent(&mut self, payload: usize) {
        self.window -= i64::from(cost(payload));
    }

    /// Adds credit from the other side to the window.
    pub(super) fn credit(&mut self, bytes: u32) {
        self.window = (self.window + i64::from(bytes)).min(MAX_WINDOW_BYTES);
    }
}

/// How a direction broke: a message was lost, or the other side broke the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error(
        "message {number} arrived over NATS and {due} was due: a message was lost, repeated or out of order"
    )]
    Order { number: u64, due: u64 },
    #[error("more data arrived over NATS than the window of {WINDOW_BYTES} bytes allows")]
    Window,
}

/// The direction towards this side.
#[derive(Debug)]
pub(super) struct Receiving {
    /// Number of the last message.
    last: u64,
    /// Bytes that the other side may still send.
    window: i64,
    /// Bytes that were read and not yet returned as credit.
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

    /// Takes the number of a message that arrived.
    pub(super) fn take(&mut self, number: u64) -> Result<(), Broken> {
        let due = self.last + 1;
        if number != due {
            return Err(Broken::Order { number, due });
        }
        self.last = due;
        Ok(())
    }

    /// Takes data of this length out of the window.
    pub(super) fn take_data(&mut self, payload: usize) -> Result<(), Broken> {
        if self.window <= 0 {
            return Err(Broken::Window);
        }
        self.window -= i64::from(cost(payload));
        Ok(())
    }

    /// Notes that the reader has read this many bytes of a message.
    pub(super) fn read(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.owed = self.owed.saturating_add(bytes);
    }

    /// Notes that the reader has read the whole message.
    pub(super) fn read_message(&mut self) {
        self.owed = self.owed.saturating_add(MESSAGE_COST);
    }

    /// Whether credit is due: once for each quarter of a window, so that the other side need not stop.
    pub(super) fn owes_credit(&self) -> bool {
        self.owed >= WINDOW_BYTES / 4
    }

    /// Takes the credit that is due, which the caller sends.
    pub(super) fn take_credit(&mut self) -> u32 {
        self.window += i64::from(self.owed);
        std::mem::take(&mut self.owed)
    }
}

#[cfg(test)]
mod tests;
