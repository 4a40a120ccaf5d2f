//! Dialling: connects to an address and exchanges hellos.

use std::{io, sync::Arc, time::Duration};

use bytes::BytesMut;
use signalbox_protocol::{InvalidWorkerId, WireError, WorkerCard};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_util::codec::{Decoder, Encoder};

use super::config::LinkConfig;
use crate::{
    frame::{Frame, FrameCodec, FrameError, HELLO_FRAME_BYTES},
    hello::{Hello, VERSIONS},
    nats::{ADDRESS_PREFIX, ConnectError},
    stream::Stream,
};

/// A connection to a worker that has answered the hello.
#[derive(Debug)]
pub(super) struct Dialled {
    pub(super) socket: Stream,
    /// The bytes that arrived behind the hello.
    pub(super) buffer: BytesMut,
    pub(super) card: Arc<WorkerCard>,
    /// Largest frame that the worker accepts.
    pub(super) max_frame_bytes: usize,
}

/// Why a dial failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    #[error(
        "the worker is reached over NATS; start this router with --events nats://host:port of the server the worker uses"
    )]
    NoNats,
    #[error("the address names no worker: {0}; an address over NATS is {ADDRESS_PREFIX}<worker>")]
    Name(#[from] InvalidWorkerId),
    #[error(transparent)]
    Nats(#[from] ConnectError),
    #[error("connected, but no hello within {0:?}; the port must be that of a worker's request plane")]
    HelloTimeout(Duration),
    #[error("connected, but the connection was lost before the worker's hello: {0}")]
    Io(io::Error),
    #[error(
        "connected, but the other side closed the connection without a hello; the port must be that of a worker's request plane"
    )]
    Closed,
    #[error("instead of a hello the worker sent {0}")]
    Frame(FrameError),
    #[error("instead of a hello the worker sent a {0} frame")]
    Unexpected(&'static str),
    #[error("the worker refused the connection: {0}")]
    Refused(String),
    #[error(
        "the worker chose version {0} of the request plane; this router supports {lowest} to {highest}",
        lowest = VERSIONS.start(),
        highest = VERSIONS.end()
    )]
    Version(u16),
    #[error("the worker's card is invalid: {0}")]
    Card(serde_json::Error),
}

/// Connects and exchanges hellos.
pub(super) async fn dial(address: String, config: &LinkConfig) -> Result<Dialled, DialError> {
    let socket = match address.strip_prefix(ADDRESS_PREFIX) {
        None => connect_tcp(&address, config).await?,
        Some(worker) => {
            let nats = config.nats.as_ref().ok_or(DialError::NoNats)?;
            Stream::Nats(nats.connect(&worker.parse()?, config.connect_timeout).await?)
        }
    };
    let limit = config.connect_timeout;
    timeout(limit, exchange_hellos(socket, config))
        .await
        .map_err(|_| DialError::HelloTimeout(limit))?
}

async fn connect_tcp(address: &str, config: &LinkConfig) -> Result<Stream, DialError> {
    let limit = config.connect_timeout;
    let socket = timeout(limit, TcpStream::connect(address))
        .await
        .map_err(|_| DialError::ConnectTimeout(limit))?
        .map_err(DialError::Connect)?;
    // A token must not wait for the acknowledgement of the token before it.
    socket.set_nodelay(true).map_err(DialError::Io)?;
    Ok(Stream::Tcp(socket))
}

/// Sends the router's hello and reads the worker's answer.
async fn exchange_hellos(mut socket: Stream, config: &LinkConfig) -> Result<Dialled, DialError> {
    let mut codec = FrameCodec::new(HELLO_FRAME_BYTES);
    let mut buffer = BytesMut::new();
    let hello = Hello {
        software: concat!("signalbox/", env!("CARGO_PKG_VERSION")).into(),
        window_bytes: config.window_bytes,
    };
    let json = serde_json::to_vec(&hello)
        .map_err(|error| DialError::Io(error.into()))?
        .into();
    let hello = Frame::Hello {
        lowest: *VERSIONS.start(),
        highest: *VERSIONS.end(),
        json,
    };
    codec.encode(hello, &mut buffer).map_err(DialError::Frame)?;
    socket.write_all(&buffer).await.map_err(DialError::Io)?;

    buffer.clear();
    let answer = loop {
        if let Some(frame) = codec.decode(&mut buffer).map_err(DialError::Frame)? {
            break frame;
        }
        if socket.read_buf(&mut buffer).await.map_err(DialError::Io)? == 0 {
            return Err(DialError::Closed);
        }
    };
    match answer {
        Frame::HelloAck {
            version,
            max_frame_bytes,
            json,
        } => {
            if !VERSIONS.contains(&version) {
                return Err(DialError::Version(version));
            }
            let card = serde_json::from_slice(&json).map_err(DialError::Card)?;
            Ok(Dialled {
                socket,
                buffer,
                card: Arc::new(card),
                max_frame_bytes: max_frame_bytes as usize,
            })
        }
        Frame::Fail { stream: 0, json } => Err(DialError::Refused(
            serde_json::from_slice::<WireError>(&json).map_or_else(
                |_| "the reason it sent is invalid JSON".into(),
                |error| error.message,
            ),
        )),
        other => Err(DialError::Unexpected(other.name())),
    }
}
