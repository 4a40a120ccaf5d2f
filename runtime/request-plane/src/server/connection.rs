//! One router's connection: reader, writer, and the send_queue between.

use std::{
    future::poll_fn,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use parking_lot::Mutex;
use signalbox_protocol::{Call, ErrorKind, WireError};
use tokio::{
    io::AsyncWriteExt,
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::{codec::Decoder, sync::CancellationToken};

use super::{
    greeting::{FAREWELL_TIMEOUT, discard, farewell, greet},
    responder::Responder,
    send_queue::{OpenError, Output, SendQueue},
    state::ServerState,
};
use crate::{
    CallParts,
    frame::{Frame, FrameCodec, FrameError},
    hello::HelloError,
    read_buffer::poll_read,
    stream::{ReadHalf, Stream, WriteHalf},
};

/// A write buffer larger than this, after a bulk answer, is not kept.
const KEEP_BYTES: usize = 256 << 10;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionEnd {
    #[error("the router closed it")]
    ByRouter,
    #[error("the server closes")]
    ByServer,
    #[error("no hello within {0:?}")]
    NoHello(Duration),
    #[error("the router was silent for {0:?}; routers ping more often than that")]
    Silent(Duration),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("the router sent {0}")]
    Frame(#[from] FrameError),
    #[error("the router sent a {0} frame, which only workers send, or only at the start")]
    Unexpected(&'static str),
    #[error("the router opened stream {0}, which is open already")]
    StreamInUse(u32),
    #[error("the router does not read what it is sent: {0} bytes wait")]
    NotReading(usize),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ConnectionEnd {
    /// What the router is told before the connection closes; `None` where it need not or cannot be.
    fn last_words(&self) -> Option<WireError> {
        match self {
            Self::ByRouter | Self::ByServer | Self::Io(_) | Self::Frame(FrameError::Io(_)) => None,
            Self::Hello(error) => Some(error.to_wire()),
            other => Some(WireError::new(ErrorKind::InvalidRequest, other.to_string())),
        }
    }
}

/// What a connection's reader, writer and responders share.
#[derive(Debug)]
pub(super) struct RouterConnection {
    send_queue: Mutex<SendQueue>,
    /// Something was queued since the last flush.
    dirty: AtomicBool,
    writer: Notify,
    /// The reader or the writer is done, so the other is too.
    gone: CancellationToken,
}

impl RouterConnection {
    /// Changes the send_queue; what it queues waits for a flush.
    pub(super) fn queue<R>(&self, change: impl FnOnce(&mut SendQueue) -> R) -> R {
        let mut send_queue = self.send_queue.lock();
        let result = change(&mut send_queue);
        let woken = send_queue.take_woken();
        if send_queue.has_output() {
            self.dirty.store(true, Ordering::Release);
        }
        drop(send_queue);
        for signal in woken {
            signal.wake();
        }
        result
    }

    /// Wakes the writer if something was queued.
    pub(super) fn flush(&self) {
        if self.dirty.load(Ordering::Acquire) && self.dirty.swap(false, Ordering::AcqRel) {
            self.writer.notify_one();
        }
    }

    pub(super) fn tell_draining(&self) {
        self.queue(|send_queue| send_queue.put(Frame::Drain));
        self.flush();
    }
}

/// Cancels every stream when the reader is done, however it came to be.
struct CloseOnDrop<'a>(&'a RouterConnection);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.queue(SendQueue::close);
        self.0.gone.cancel();
        metrics::gauge!("signalbox_request_plane_connections").decrement(1.0);
    }
}

/// Serves a router from its hello to its end.
pub(super) async fn serve(mut socket: Stream, peer: String, server: Arc<ServerState>) {
    let limit = server.timeouts.hello;
    let greeted = tokio::select! {
        () = server.close.cancelled() => return,
        greeted = timeout(limit, greet(&mut socket, &server)) => greeted.unwrap_or(Err(ConnectionEnd::NoHello(limit))),
    };
    let (window, buffer) = match greeted {
        Ok(greeted) => greeted,
        Err(ended) => {
            tracing::warn!(%peer, reason = %ended, "refused a connection");
            if let Some(error) = ended.last_words() {
                farewell(socket, &error).await;
            }
            return;
        }
    };
    let (mut read, write) = socket.into_split();
    let config = &server.config;
    let connection = Arc::new(RouterConnection {
        send_queue: Mutex::new(SendQueue::new(
            window,
            config.stream_backlog_bytes,
            config.max_streams_per_connection,
        )),
        dirty: AtomicBool::new(false),
        writer: Notify::new(),
        gone: CancellationToken::new(),
    });
    metrics::gauge!("signalbox_request_plane_connections").increment(1.0);
    let close = CloseOnDrop(&connection);
    let entered = server.enter(&connection);
    let writing = server
        .tasks
        .spawn(write_frames(write, connection.clone(), server.clone()));

    let ended = tokio::select! {
        ended = read_frames(&mut read, buffer, &connection, &server) => ended,
        () = connection.gone.cancelled() => ConnectionEnd::ByRouter,
        () = server.close.cancelled() => ConnectionEnd::ByServer,
    };
    tracing::info!(%peer, reason = %ended, "a router's connection ends");
    let last_words = ended.last_words();
    connection.queue(|send_queue| send_queue.finish_all(last_words.as_ref()));
    connection.writer.notify_one();
    if !matches!(ended, ConnectionEnd::ByRouter | ConnectionEnd::Io(_)) {
        let polite = async {
            let _ = writing.await;
            discard(read).await;
        };
        tokio::select! {
            () = server.abandon.cancelled() => {}
            _ = timeout(FAREWELL_TIMEOUT, polite) => {}
        }
    }
    drop((close, entered));
}

/// `left` is what came with the hello.
async fn read_frames(
    socket: &mut ReadHalf,
    mut left: BytesMut,
    connection: &Arc<RouterConnection>,
    server: &ServerState,
) -> ConnectionEnd {
    let mut codec = FrameCodec::new(server.config.max_frame_bytes);
    let silence = server.timeouts.silence;
    let mut heard = Instant::now();
    let alarm = sleep(silence);
    tokio::pin!(alarm);
    let mut taken = take_frames(&mut codec, &mut left, connection, server);
    loop {
        if let Err(ended) = taken {
            return ended;
        }
        if let Some(bytes) = connection.queue(|send_queue| send_queue.unread()) {
            return ConnectionEnd::NotReading(bytes);
        }
        connection.flush();
        // One timer, moved only when it fires: a read costs no timer of its own.
        let read = loop {
            let read = poll_fn(|cx| {
                poll_read(cx, socket, &mut left, |room| {
                    take_frames(&mut codec, room, connection, server)
                })
            });
            tokio::select! {
                biased;
                read = read => break read,
                () = &mut alarm => {
                    if heard.elapsed() >= silence {
                        return ConnectionEnd::Silent(silence);
                    }
                    alarm.as_mut().reset(heard + silence);
                }
            }
        };
        taken = match read {
            Ok(Some(taken)) => taken,
            Ok(None) => return ConnectionEnd::ByRouter,
            Err(error) => return error.into(),
        };
        heard = Instant::now();
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
                let message = format!("The call is not understood by this worker: {error}.");
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
    // Counted before the look at `is_draining`, so that a drain either refuses the stream or waits for it.
    let generating = matches!(parts.call, Call::Generate(_)).then(|| server.generating.enter());
    let refuse = |kind, message: String| {
        connection.queue(|send_queue| send_queue.refuse(stream, WireError::new(kind, message)));
        Ok(())
    };
    if server.is_draining() {
        return refuse(
            ErrorKind::Unavailable,
            "The worker is draining: it takes no new work.".into(),
        );
    }
    let signal = match connection.queue(|send_queue| send_queue.open(stream, generating)) {
        Ok(signal) => signal,
        Err(OpenError::InUse) => return Err(ConnectionEnd::StreamInUse(stream)),
        Err(OpenError::Full { limit }) => {
            let message = format!("The worker holds {limit} streams of this connection, as many as it may.");
            return refuse(ErrorKind::Overloaded, message);
        }
    };
    let responder = Responder::new(connection.clone(), stream, signal);
    // A handler's defect costs this call: unwinding drops the responder, which fails the stream.
    if catch_unwind(AssertUnwindSafe(|| server.handler.call(parts, responder))).is_err() {
        tracing::error!(stream, "the call handler panicked");
    }
    Ok(())
}

/// All that is queued goes in one write, then what was queued meanwhile.
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
                Output::Wait => connection.writer.notified().await,
                Output::Finished => return socket.shutdown().await,
            }
        }
    };
    let written: Option<io::Result<()>> = tokio::select! {
        written = writing => Some(written),
        // A router that does not read must not keep this task for ever.
        () = connection.gone.cancelled() => None,
        () = server.abandon.cancelled() => None,
    };
    if let Some(Err(error)) = written {
        tracing::debug!(%error, "writing to a router failed");
        connection.gone.cancel();
    }
}
