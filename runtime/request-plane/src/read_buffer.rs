//! What the connections of a thread read into, one after the other.
//!
//! A buffer for each connection would be found cold by every read, and be a hundred megabytes on a thousand connections.

use std::{
    cell::Cell,
    io, mem,
    pin::pin,
    task::{Context, Poll},
};

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use crate::stream::ReadHalf;

/// Room offered to each read: a step of 128 sequences at 200 bytes a token is 27 KB, and a typical prompt with its tokens
/// less; each comes in one.
const READ_BYTES: usize = 64 << 10;

thread_local! {
    static ROOM: Cell<BytesMut> = Cell::default();
}

/// Reads once, and has `take` take the frames that are whole; `None` where the other side closed. `left` keeps the beginning
/// of a frame that is not whole; mostly there is none.
pub(crate) fn poll_read<R>(
    cx: &mut Context<'_>,
    socket: &mut ReadHalf,
    left: &mut BytesMut,
    take: impl FnOnce(&mut BytesMut) -> R,
) -> Poll<io::Result<Option<R>>> {
    let is_shared = left.is_empty();
    let mut room = if is_shared { ROOM.take() } else { mem::take(left) };
    room.reserve(READ_BYTES);
    let read = pin!(socket.read_buf(&mut room)).poll(cx);
    let taken = read.map_ok(|bytes| (bytes > 0).then(|| take(&mut room)));
    if is_shared {
        left.extend_from_slice(&room);
        room.clear();
        ROOM.set(room);
    } else if !room.is_empty() {
        *left = room;
    }
    taken
}
