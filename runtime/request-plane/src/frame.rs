//! Frames: the units that travel on a connection, and their limits.
//!
//! A frame is a u32 length, a u8 kind, a u32 stream and a payload. The length counts the bytes after it. All integers are
//! little-endian. The codec checks the shape of payloads and does not parse their JSON: a broken shape ends the
//! connection, while invalid JSON fails one stream.

mod codec;
#[cfg(test)]
pub(crate) mod tests;
mod token_ids;

use std::io;

use bytes::Bytes;
use signalbox_protocol::{StreamSummary, WireError};

pub(crate) use codec::{FrameCodec, put_credit, put_data, put_open};
pub use token_ids::{PieceTokens, TokenIds};

/// The largest piece of an answer that travels in one frame: 1 MiB. Larger pieces are cut.
///
/// Frames of one connection queue behind each other, so this bounds how long a bulk answer delays a token (under
/// 1 ms at 10 Gbit/s) and how far one stream exceeds its window.
pub const MAX_PIECE_BYTES: usize = 1 << 20;

/// Default of both sides for the largest frame: 32 MiB holds a prompt of a million tokens with its text.
pub(crate) const DEFAULT_MAX_FRAME_BYTES: usize = 32 << 20;

/// The kind and the stream, which every frame has.
pub(crate) const HEAD_BYTES: usize = 5;

/// Most tokens whose ids travel with one piece. A piece has the tokens of one step of an engine, a few at most.
pub(crate) const MAX_PIECE_IDS: usize = 1 << 14;

/// The frame of the largest piece: head, token count, ids, bytes.
pub(crate) const MAX_DATA_FRAME_BYTES: usize = HEAD_BYTES + 4 + MAX_PIECE_IDS * 4 + MAX_PIECE_BYTES;

/// Largest frame until the hello is exchanged, so that an unknown program cannot make this side hold more. Worker cards
/// are about 1 KiB.
pub(crate) const HELLO_FRAME_BYTES: usize = 64 << 10;

/// Cost of a piece in its stream's window: its bytes, its token count and the ids, so that empty pieces are not free.
pub(crate) fn piece_cost(id_bytes: usize, bytes: usize) -> u32 {
    u32::try_from(4 + id_bytes + bytes).unwrap_or(u32::MAX)
}

/// One frame, with unparsed JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Frame {
    /// Router to worker, first: the router's versions, and a [`crate::hello::Hello`] in JSON.
    Hello { lowest: u16, highest: u16, json: Bytes },
    /// Worker to router, second: the version chosen, the worker's largest frame, and its `WorkerCard` in JSON.
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
    Data {
        stream: u32,
        tokens: u32,
        /// The ids of all `tokens`, or none.
        ids: TokenIds,
        bytes: Bytes,
    },
    /// Worker to router: the end of the answer.
    End { stream: u32, summary: StreamSummary },
    /// Worker to router: a `WireError` in JSON. On stream 0 it is why the worker closes the connection.
    Fail { stream: u32, json: Bytes },
    /// Router to worker: cancels the stream.
    Cancel { stream: u32 },
    /// Router to worker: the worker may send this many more bytes on the stream.
    Credit { stream: u32, bytes: u32 },
    /// Both ways: requests a pong with the same number.
    Ping { nonce: u64 },
    /// Both ways: answers a ping.
    Pong { nonce: u64 },
    /// Worker to router: the worker takes no new streams.
    Drain,
}

impl Frame {
    /// A Fail frame with this error.
    pub(crate) fn fail(stream: u32, error: &WireError) -> Self {
        Self::Fail {
            stream,
            json: serde_json::to_vec(error).unwrap_or_default().into(),
        }
    }

    /// The name of the frame's kind, for errors.
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

/// The bytes are not a frame, or the frame is too large. The error ends the connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {length} bytes; at most {limit} are allowed")]
    TooLong { length: usize, limit: usize },
    #[error("a frame of {length} bytes; its kind and stream alone take {HEAD_BYTES}")]
    TooShort { length: usize },
    #[error("a {name} frame whose payload of {payload} bytes is cut short")]
    Truncated { name: &'static str, payload: usize },
    #[error("a {name} frame on stream 0; streams count from 1")]
    NoStream { name: &'static str },
    #[error("a hello without the magic bytes SGBX, with which a Signalbox hello begins")]
    NoMagic,
    #[error(transparent)]
    Io(#[from] io::Error),
}
