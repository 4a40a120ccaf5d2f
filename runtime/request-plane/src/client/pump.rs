//! The pump, which moves bytes between a link's state and its socket.

use std::{future::poll_fn, io, task::Poll, time::Instant};

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio_util::codec::Decoder;

use super::{liveness::LivenessStep, mux::Violation, state::SharedLink};
use crate::{
    frame::{FrameCodec, FrameError, MAX_DATA_FRAME_BYTES},
    read_buffer::poll_read,
    stream::{ReadHalf, Stream, WriteHalf},
};

/// A write buffer that has grown larger than this, for a prompt, is freed after the write. Prompts are rare on each of a
/// thousand links, and that many buffers would take much memory.
const KEEP_BYTES: usize = 4 << 10;

/// Why the connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkEnd {
    #[error("the worker closed the connection")]
    ByWorker,
    #[error("the link is closed")]
    ByClose,
    #[error("reading failed: {0}")]
    Read(io::Error),
    #[error("writing failed: {0}")]
    Write(io::Error),
    #[error("the worker sent {0}")]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error("the worker is silent: nothing arrived within {0:?} after a ping")]
    Silent(std::time::Duration),
}

/// Runs one connection to its end. Then all its streams end, also after a panic or a drop of this future.
pub(super) async fn run(socket: Stream, buffer: BytesMut, link: SharedLink) -> LinkEnd {
    let mut lost_on_drop = LostOnDrop {
        link: &link,
        reason: "the link stopped unexpectedly".into(),
    };
    let (read, write) = socket.into_split();
    let max_frame = link.with(|link| link.config.max_frame_bytes);
    let end = tokio::select! {
        // Reading is polled first, so that bytes that wait in the socket are counted before the silence is checked.
        biased;
        end = read_frames(read, buffer, max_frame, &link) => end,
        end = write_frames(write, &link) => end,
        end = watch_silence(&link) => end,
    };
    lost_on_drop.reason = end.to_string();
    end
}

/// Ends the streams of a connection when dropped.
struct LostOnDrop<'a> {
    link: &'a SharedLink,
    reason: String,
}

impl Drop for LostOnDrop<'_> {
    fn drop(&mut self) {
        self.link.with(|link| link.lost(&self.reason));
    }
}

/// Reads frames until the connection ends. `partial` has the bytes that arrived behind the hello.
async fn read_frames(
    mut socket: ReadHalf,
    mut partial: BytesMut,
    max_frame: usize,
    link: &SharedLink,
) -> LinkEnd {
    // A piece may be as large as its own limit, even if the limit for calls is smaller.
    let mut codec = FrameCodec::new(max_frame.max(MAX_DATA_FRAME_BYTES));
    let mut taken = take_frames(&mut codec, &mut partial, link);
    loop {
        if let Err(end) = taken {
            return end;
        }
        let read = poll_fn(|cx| {
            poll_read(cx, &mut socket, &mut partial, |buffer| {
                link.with(|link| link.liveness.received(Instant::now()));
                take_frames(&mut codec, buffer, link)
            })
        });
        taken = match read.await {
            Ok(Some(taken)) => taken,
            Ok(None) => return LinkEnd::ByWorker,
            Err(error) => return LinkEnd::Read(error),
        };
    }
}

/// Takes all frames of a read, before the reader of any stream runs.
pub(super) fn take_frames(
    codec: &mut FrameCodec,
    buffer: &mut BytesMut,
    link: &SharedLink,
) -> Result<(), LinkEnd> {
    link.with(|link| {
        while let Some(frame) = codec.decode(buffer)? {
            link.on_frame(frame)?;
        }
        Ok(())
    })
}

/// Writes all queued frames in one write, then the frames queued meanwhile, until the link is closed.
async fn write_frames(mut socket: WriteHalf, link: &SharedLink) -> LinkEnd {
    let mut output = BytesMut::new();
    loop {
        let go_on = poll_fn(|cx| {
            link.with(|link| {
                if link.mux.take_output(&mut output) {
                    Poll::Ready(true)
                } else if link.is_finished() {
                    Poll::Ready(false)
                } else {
                    link.mux.await_output(cx);
                    Poll::Pending
                }
            })
        });
        if !go_on.await {
            return LinkEnd::ByClose;
        }
        if let Err(error) = socket.write_all(&output).await {
            return LinkEnd::Write(error);
        }
        link.with(|link| link.liveness.sent(Instant::now()));
        output.clear();
        if output.capacity() > KEEP_BYTES {
            output = BytesMut::new();
        }
    }
}

/// Sends pings when they are due. Returns once the worker did not answer one.
async fn watch_silence(link: &SharedLink) -> LinkEnd {
    loop {
        match link.with(|link| link.liveness.next_step(Instant::now())) {
            LivenessStep::WaitUntil(due) => tokio::time::sleep_until(due.into()).await,
            LivenessStep::Ping => link.with(|link| link.mux.ping()),
            LivenessStep::Lost => return LinkEnd::Silent(link.with(|link| link.config.ping_timeout)),
        }
    }
}
