//! The start of a connection, and a refusal with a reason.

use std::{io, time::Duration};

use bytes::BytesMut;
use signalbox_protocol::WireError;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_util::codec::{Decoder, Encoder};

use super::{connection_end::ConnectionEnd, state::ServerState};
use crate::{
    frame::{Frame, FrameCodec, HELLO_FRAME_BYTES},
    hello,
    stream::Stream,
};

/// How long a router may take, after the worker's last frame, to read that frame and to close its side.
pub(super) const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads the router's hello and answers it. Returns the window of the router's streams, and the bytes that arrived behind
/// the hello.
pub(super) async fn accept_hello(
    socket: &mut Stream,
    server: &ServerState,
) -> Result<(u32, BytesMut), ConnectionEnd> {
    let mut codec = FrameCodec::new(HELLO_FRAME_BYTES);
    let mut buffer = BytesMut::new();
    let first = loop {
        if let Some(frame) = codec.decode(&mut buffer)? {
            break frame;
        }
        if socket.read_buf(&mut buffer).await? == 0 {
            return Err(ConnectionEnd::ByRouter);
        }
    };
    let Frame::Hello {
        lowest,
        highest,
        json,
    } = first
    else {
        return Err(ConnectionEnd::Unexpected(first.name()));
    };
    let (version, hello) = hello::accept(lowest, highest, &json)?;
    tracing::info!(software = hello.software, version, "a router connected");
    let answer = Frame::HelloAck {
        version,
        max_frame_bytes: u32::try_from(server.config.max_frame_bytes).unwrap_or(u32::MAX),
        json: serde_json::to_vec(&*server.card).map_err(io::Error::from)?.into(),
    };
    let mut out = BytesMut::new();
    codec.encode(answer, &mut out)?;
    socket.write_all(&out).await?;
    Ok((hello.window_bytes, buffer))
}

/// Sends a router the reason why it is not served, and closes the connection once the router has read it.
pub(super) async fn refuse(mut socket: Stream, error: &WireError) {
    let refusal = async {
        let mut out = BytesMut::new();
        FrameCodec::new(HELLO_FRAME_BYTES)
            .encode(Frame::fail(0, error), &mut out)
            .map_err(io::Error::other)?;
        socket.write_all(&out).await?;
        socket.shutdown().await?;
        discard_input(socket).await;
        io::Result::Ok(())
    };
    let _ = timeout(LINGER_TIMEOUT, refusal).await;
}

/// Reads until the router closes its side. To close a socket with unread bytes would reset the connection, and the router
/// might never read the last frame.
pub(super) async fn discard_input(mut socket: impl AsyncRead + Unpin) {
    let _ = tokio::io::copy(&mut socket, &mut tokio::io::sink()).await;
}
