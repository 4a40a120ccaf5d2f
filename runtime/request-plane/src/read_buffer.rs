//! The read buffer that all connections of a thread share.
//!
//! A buffer for each connection would not be in the processor's cache when it is read into, and a thousand connections
//! would take a hundred megabytes.

use std::{
    cell::Cell,
    io, mem,
    pin::pin,
    task::{Context, Poll},
};

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use crate::stream::ReadHalf;

/// Capacity for each read. A step of 128 sequences at 200 bytes per token is 27 KB, and a typical prompt with its
/// tokens is less, so each arrives in one read.
const READ_BYTES: usize = 64 << 10;

thread_local! {
    static SHARED: Cell<BytesMut> = Cell::default();
}

/// Reads once and calls `take` to take the complete frames out of the buffer. `None` if the other side has closed.
/// `partial` keeps the start of an incomplete frame for the next read. Mostly it is empty, and the read uses the thread's
/// shared buffer.
pub(crate) fn poll_read<R>(
    cx: &mut Context<'_>,
    socket: &mut ReadHalf,
    partial: &mut BytesMut,
    take: impl FnOnce(&mut BytesMut) -> R,
) -> Poll<io::Result<Option<R>>> {
    let is_shared = partial.is_empty();
    let mut buffer = if is_shared {
        SHARED.take()
    } else {
        mem::take(partial)
    };
    buffer.reserve(READ_BYTES);
    let read = pin!(socket.read_buf(&mut buffer)).poll(cx);
    let taken = read.map_ok(|bytes| (bytes > 0).then(|| take(&mut buffer)));
    if is_shared {
        partial.extend_from_slice(&buffer);
        buffer.clear();
        SHARED.set(buffer);
    } else if !buffer.is_empty() {
        *partial = buffer;
    }
    taken
}
