//! The events of one call's answer.

use bytes::Bytes;
use signalbox_protocol::StreamSummary;

use crate::frame::TokenIds;

/// An event of an answer: pieces, then one end.
#[derive(Debug, Clone, PartialEq)]
pub enum ResponseEvent {
    /// A piece of the answer, as the worker queued it; a piece over [`MAX_PIECE_BYTES`](crate::MAX_PIECE_BYTES) is cut.
    Data {
        /// Number of tokens in the piece. If a piece was cut, its last part has all its tokens.
        tokens: u32,
        /// The ids of all `tokens`, or none: of calls that ask for them.
        ids: TokenIds,
        /// The bytes of the piece.
        bytes: Bytes,
    },
    /// The answer is complete.
    End(StreamSummary),
}
