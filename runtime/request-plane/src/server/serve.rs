//! Serves one router's connection: the tasks that read and write its frames.

use std::{
    future::poll_fn,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::BytesMut;
use signalbox_protocol::{Call, ErrorKind, WireError};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, sleep, timeout},
};
use tokio_util::codec::Decoder;

use super::{
    connection_end::ConnectionEnd,
    handshake::{LINGER_TIMEOUT, accept_hello, discard_input, refuse},
    responder::Responder,
    router_connection::RouterConnection,
    send_queue::{OpenError, Output, SendQueue},
    state::ServerState,
};
use crate::{
    call_parts::CallParts,
    frame::{Frame, FrameCodec},
    read_buffer::poll_read,
    stream::{ReadHalf, Stream, WriteHalf},
};

/// A write buffer that has grown larger than this, for a bulk answer, is freed after the write.
const KEEP_BYTES: usize = 256 << 10;

/// Cancels every stream when the connection ends, even by a panic.
struct CloseOnDrop<'a>(&'a RouterConnection);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
        metrics::gauge!("signalbox_request_plane_connections").decrement(1.0);
    }
}

/// Serves a router from its hello to the end of the connection.
pub(super) async fn serve(mut socket: Stream, peer: String, server: Arc<ServerState>) {
    let limit = server.timeouts.hello;
    let accepted = tokio::select! {
        () = server.close.cancelled() => return,
        accepted = timeout(limit, accept_hello(&mut socket, &server)) => {
            accepted.unwrap_or(Err(ConnectionEnd::NoHello(limit)))
        }
    };
    let (window, buffer) = match accepted {
        Ok(accepted) => accepted,
        Err(end) => {
            tracing::warn!(%peer, reason = %end, "refused a connection");
            if let Some(error) = end.to_wire() {
                refuse(socket, &error).await;
            }
            return;
        }
    };
    let (mut read, write) = socket.into_split();
    let config = &server.config;
    let connection = Arc::new(RouterConnection::new(SendQueue::new(
        window,
        config.stream_backlog_bytes,
        config.max_streams_per_connection,
    )));
    metrics::gauge!("signalbox_request_plane_connections").increment(1.0);
    let close = CloseOnDrop(&connection);
    let registration = server.register(&connection);
    let writing = server
        .tasks
        .spawn(write_frames(write, connection.clone(), server.clone()));

    let end = tokio::select! {
        end = read_frames(&mut read, buffer, &connection, &server) => end,
        () = connection.gone().cancelled() => ConnectionEnd::ByRouter,
        () = server.close.cancelled() => ConnectionEnd::ByServer,
    };
    tracing::info!(%peer, reason = %end, "a router's connection ended");
    let error = end.to_wire();
    connection.queue(|send_queue| send_queue.finish_all(error.as_ref()));
    connection.wake_writer();
    if !matches!(end, ConnectionEnd::ByRouter | ConnectionEnd::Io(_)) {
        let linger = async {
            let _ = writing.await;
            discard_input(read).await;
        };
        tokio::select! {
            () = server.abandon.cancelled() => {}
            _ = timeout(LINGER_TIMEOUT, linger) => {}
        }
    }
    drop((close, registration));
}

/// Reads frames until the connection ends. `partial` has the bytes that arrived behind the hello.
async fn read_frames(
    socket: &mut ReadHalf,
    mut partial: BytesMut,
    connection: &Arc<RouterConnection>,
    server: &ServerState,
) -> ConnectionEnd {
    let mut codec = FrameCodec::new(server.config.max_frame_bytes);
    let silence = server.timeouts.silence;
    let mut last_received = Instant::now();
    let alarm = sleep(silence);
    tokio::pin!(alarm);
    let mut taken = take_frames(&mut codec, &mut partial, connection, server);
    loop {
        if let Err(end) = taken {
            return end;
        }
        if let Some(bytes) = connection.queue(|send_queue| send_queue.unread()) {
            return ConnectionEnd::NotReading(bytes);
        }
        connection.flush();
        // One timer, moved only when it fires: a read costs no timer of its own.
        let read = loop {
            let read = poll_fn(|cx| {
                poll_read(cx, socket, &mut partial, |buffer| {
                    take_frames(&mut codec, buffer, connection, server)
                })
            });
            tokio::select! {
                biased;
                read = read => break read,
                () = &mut alarm => {
                    if last_received.elapsed() >= silence {
                        return ConnectionEnd::Silent(silence);
                    }
                    alarm.as_mut().reset(last_received + silence);
                }
            }
        };
        taken = match read {
            Ok(Some(taken)) => taken,
            Ok(None) => return ConnectionEnd::ByRouter,
            Err(error) => return error.into(),
        };
        last_received = Instant::now();
    }
}

fn take_frames(
    codec: &mut FrameCodec,
    buffer: &mut BytesMut,
    connection: &Arc<RouterConnection>,
    server: &ServerState,
) -> Result<(), ConnectionEnd> {
    while let Some(frame) = codec.decode(buffer)? {
        on_frame(frame, connection, server)?;
    }
    Ok(())
}

fn on_frame(
    frame: Frame,
    connection: &Arc<RouterConnection>,
    server: &ServerState,
) -> Result<(), ConnectionEnd> {
    match frame {
        Frame::Open {
            stream,
            call,
            tokens,
            body,
        } => match serde_json::from_slice(&call) {
            Ok(call) => open(stream, CallParts { call, tokens, body }, connection, server)?,
            Err(error) => {
                let message = format!("this worker does not understand the call: {error}");
                let error = WireError::new(ErrorKind::InvalidRequest, message);
                connection.queue(|send_queue| send_queue.refuse(stream, error));
            }
        },
        Frame::Credit { stream, bytes } => connection.queue(|send_queue| send_queue.credit(stream, bytes)),
        Frame::Cancel { stream } => connection.queue(|send_queue| send_queue.cancel(stream)),
        Frame::Ping { nonce } => connection.queue(|send_queue| send_queue.put(Frame::Pong { nonce })),
        Frame::Pong { .. } => {}
        Frame::Hello { .. }
        | Frame::HelloAck { .. }
        | Frame::Data { .. }
        | Frame::End { .. }
        | Frame::Fail { .. }
        | Frame::Drain => return Err(ConnectionEnd::Unexpected(frame.name())),
    }
    Ok(())
}

fn open(
    stream: u32,
    parts: CallParts,
    connection: &Arc<RouterConnection>,
    server: &ServerState,
) -> Result<(), ConnectionEnd> {
    // Counted before `is_draining` is read, so that a drain either refuses the stream or waits for it.
    let generating = matches!(parts.call, Call::Generate(_)).then(|| server.generating.enter());
    let refuse_stream = |kind, message: String| {
        connection.queue(|send_queue| send_queue.refuse(stream, WireError::new(kind, message)));
        Ok(())
    };
    if server.is_draining() {
        return refuse_stream(
            ErrorKind::Unavailable,
            "the worker is draining and takes no new work".into(),
        );
    }
    let signal = match connection.queue(|send_queue| send_queue.open(stream, generating)) {
        Ok(signal) => signal,
        Err(OpenError::InUse) => return Err(ConnectionEnd::StreamInUse(stream)),
        Err(OpenError::Full { limit }) => {
            let message = format!(
                "the connection has {limit} streams open at the worker, as many as the worker allows"
            );
            return refuse_stream(ErrorKind::Overloaded, message);
        }
    };
    let responder = Responder::new(connection.clone(), stream, signal);
    // A panic of the handler costs this call alone: unwinding drops the responder, which fails the stream.
    if catch_unwind(AssertUnwindSafe(|| server.handler.call(parts, responder))).is_err() {
        tracing::error!(stream, "the call handler panicked");
    }
    Ok(())
}

/// Writes all queued frames in one write, then the frames queued meanwhile, until the connection ends.
async fn write_frames(mut socket: WriteHalf, connection: Arc<RouterConnection>, server: Arc<ServerState>) {
    let writing = async {
        let mut output = BytesMut::new();
        loop {
            match connection.queue(|send_queue| send_queue.take(&mut output)) {
                Output::Write => {
                    socket.write_all(&output).await?;
                    output.clear();
                    if output.capacity() > KEEP_BYTES {
                        output = BytesMut::new();
                    }
                }
                Output::Wait => connection.writer_woken().await,
                Output::Finished => return socket.shutdown().await,
            }
        }
    };
    let written: Option<io::Result<()>> = tokio::select! {
        written = writing => Some(written),
        // A router that does not read must not keep this task for ever.
        () = connection.gone().cancelled() => None,
        () = server.abandon.cancelled() => None,
    };
    if let Some(Err(error)) = written {
        tracing::debug!(%error, "writing to a router failed");
        connection.gone().cancel();
    }
}
