//! Moves bytes between a link's state and its socket.

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

/// A write buffer larger than this is not kept: a prompt's is used once in a while, on each of a thousand links.
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
    #[error("the worker is silent: nothing came for {0:?} after a ping")]
    Silent(std::time::Duration),
}

/// Runs one connection to its end. However it ends, even by a panic or by being dropped, its streams are told.
pub(super) async fn run(socket: Stream, buffer: BytesMut, link: SharedLink) -> LinkEnd {
    let mut end = EndOfStreams {
        link: &link,
        reason: "the link stopped unexpectedly".into(),
    };
    let (read, write) = socket.into_split();
    let max_frame = link.with(|link| link.config.max_frame_bytes);
    let ended = tokio::select! {
        // Reading comes first: bytes that wait in the socket count before a silence is judged.
        biased;
        ended = read_frames(read, buffer, max_frame, &link) => ended,
        ended = write_frames(write, &link) => ended,
        ended = watch_silence(&link) => ended,
    };
    end.reason = ended.to_string();
    ended
}

struct EndOfStreams<'a> {
    link: &'a SharedLink,
    reason: String,
}

impl Drop for EndOfStreams<'_> {
    fn drop(&mut self) {
        self.link.with(|link| link.lost(&self.reason));
    }
}

/// `left` is what came with the hello.
async fn read_frames(
    mut socket: ReadHalf,
    mut left: BytesMut,
    max_frame: usize,
    link: &SharedLink,
) -> LinkEnd {
    // Pieces have a limit of their own, whatever the one for calls.
    let mut codec = FrameCodec::new(max_frame.max(MAX_DATA_FRAME_BYTES));
    let mut taken = take_frames(&mut codec, &mut left, link);
    loop {
        if let Err(ended) = taken {
            return ended;
        }
        let read = poll_fn(|cx| {
            poll_read(cx, &mut socket, &mut left, |room| {
                link.with(|link| link.liveness.received(Instant::now()));
                take_frames(&mut codec, room, link)
            })
        });
        taken = match read.await {
            Ok(Some(taken)) => taken,
            Ok(None) => return LinkEnd::ByWorker,
            Err(error) => return LinkEnd::Read(error),
        };
    }
}

/// All frames of a read are taken before any reader of a stream runs.
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

/// All frames queued since the last write go in the next one.
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

async fn watch_silence(link: &SharedLink) -> LinkEnd {
    loop {
        match link.with(|link| link.liveness.next_step(Instant::now())) {
            LivenessStep::WaitUntil(due) => tokio::time::sleep_until(due.into()).await,
            LivenessStep::Ping => link.with(|link| link.mux.ping()),
            LivenessStep::Dead => return LinkEnd::Silent(link.with(|link| link.config.ping_timeout)),
        }
    }
}
