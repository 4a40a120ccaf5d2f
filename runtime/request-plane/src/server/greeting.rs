//! The first and the last words of a connection.

use std::{io, time::Duration};

use bytes::BytesMut;
use signalbox_protocol::WireError;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_util::codec::{Decoder, Encoder};

use super::{connection::ConnectionEnd, send_queue::error_json, state::ServerState};
use crate::{
    frame::{Frame, FrameCodec, HELLO_FRAME_BYTES},
    hello,
    stream::Stream,
};

/// After our last word: how long the router may take to read it and to close.
pub(super) const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads the router's hello and answers it: the window it gives to streams, and what came behind the hello.
pub(super) async fn greet(
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

/// Tells a router why it is not served, and lets it read that before the connection is gone.
pub(super) async fn farewell(mut socket: Stream, error: &WireError) {
    let words = async {
        let mut out = BytesMut::new();
        FrameCodec::new(HELLO_FRAME_BYTES)
            .encode(
                Frame::Fail {
                    stream: 0,
                    json: error_json(error),
                },
                &mut out,
            )
            .map_err(io::Error::other)?;
        socket.write_all(&out).await?;
        socket.shutdown().await?;
        discard(socket).await;
        io::Result::Ok(())
    };
    let _ = timeout(FAREWELL_TIMEOUT, words).await;
}

/// Reads until the router closes its side: closing over unread bytes would reset the connection, and the router
/// might never see our last words.
pub(super) async fn discard(mut socket: impl AsyncRead + Unpin) {
    let _ = tokio::io::copy(&mut socket, &mut tokio::io::sink()).await;
}
