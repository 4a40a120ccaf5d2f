//! Frames: what travels on a connection, and its limits.
//!
//! A frame is a u32 length, a u8 kind, a u32 stream and a payload; the length counts what follows it. All integers
//! are little-endian. The codec knows the shape of payloads and leaves their JSON unread: JSON that cannot be
//! understood concerns one stream, a broken shape concerns the connection.

mod codec;
#[cfg(test)]
pub(crate) mod tests;

use std::io;

use bytes::Bytes;
use signalbox_protocol::StreamSummary;

pub(crate) use codec::{FrameCodec, put_credit, put_data, put_open};

/// The largest piece of an answer that travels, and arrives, as one: 1 MiB. Larger ones are cut.
///
/// Frames of one connection queue behind each other, so this bounds how long a bulk answer delays a token (under
/// 1 ms at 10 Gbit/s) and how far one stream exceeds its window.
pub const MAX_PIECE_BYTES: usize = 1 << 20;

/// Kind and stream, which every frame has.
pub(crate) const HEAD_BYTES: usize = 5;

/// The frame of the largest piece: head, token count, bytes.
pub(crate) const MAX_DATA_FRAME_BYTES: usize = HEAD_BYTES + 4 + MAX_PIECE_BYTES;

/// Largest frame before the hello is through: a stranger cannot make us hold more. Worker cards are about 1 KiB.
pub(crate) const HELLO_FRAME_BYTES: usize = 64 << 10;

/// Cost of a piece in its stream's window: its bytes and its token count, so that empty pieces are not free.
pub(crate) fn piece_cost(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len() + 4).unwrap_or(u32::MAX)
}

/// One frame, its payload's JSON unread.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Frame {
    /// Router to worker, first: versions it speaks, and [`crate::hello::Hello`].
    Hello { lowest: u16, highest: u16, json: Bytes },
    /// Worker to router, second: the version chosen, its largest frame, and its `WorkerCard`.
    HelloAck {
        version: u16,
        max_frame_bytes: u32,
        json: Bytes,
    },
    /// Router to worker: a `Call` in JSON with its bulk parts.
    Open {
        stream: u32,
        call: Bytes,
        tokens: Vec<u32>,
        body: Bytes,
    },
    /// Worker to router: a piece of the answer.
    Data { stream: u32, tokens: u32, bytes: Bytes },
    /// Worker to router: the answer is whole.
    End { stream: u32, summary: StreamSummary },
    /// Worker to router: a `WireError`; on stream 0 it concerns the connection, which closes.
    Fail { stream: u32, json: Bytes },
    /// Router to worker: nobody waits for this stream any more.
    Cancel { stream: u32 },
    /// Router to worker: so many more bytes of pieces may be sent.
    Credit { stream: u32, bytes: u32 },
    /// Either way: answer with a pong of the same number.
    Ping { nonce: u64 },
    /// Answers a ping.
    Pong { nonce: u64 },
    /// Worker to router: open nothing new here.
    Drain,
}

impl Frame {
    /// Its name in messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "Hello",
            Self::HelloAck { .. } => "HelloAck",
            Self::Open { .. } => "Open",
            Self::Data { .. } => "Data",
            Self::End { .. } => "End",
            Self::Fail { .. } => "Fail",
            Self::Cancel { .. } => "Cancel",
            Self::Credit { .. } => "Credit",
            Self::Ping { .. } => "Ping",
            Self::Pong { .. } => "Pong",
            Self::Drain => "Drain",
        }
    }
}

/// Bytes that are no frame, or one that is too large. The connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {length} bytes, where at most {limit} are taken")]
    TooLong { length: usize, limit: usize },
    #[error("a frame of {length} bytes, where kind and stream alone take {HEAD_BYTES}")]
    TooShort { length: usize },
    #[error("a {name} frame whose payload of {payload} bytes is cut short")]
    Truncated { name: &'static str, payload: usize },
    #[error("a {name} frame without a stream: those count from 1")]
    NoStream { name: &'static str },
    #[error("a hello without the magic bytes: this is no Signalbox request plane")]
    NoMagic,
    #[error(transparent)]
    Io(#[from] io::Error),
}
