//! Why a router's connection ends.

use std::{io, time::Duration};

use signalbox_protocol::{ErrorKind, WireError};

use crate::{frame::FrameError, hello::HelloError};

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionEnd {
    #[error("the router closed the connection")]
    ByRouter,
    #[error("the worker closes its connections")]
    ByServer,
    #[error("no hello within {0:?}")]
    NoHello(Duration),
    #[error("the router was silent for {0:?}; a router sends a ping more often than that")]
    Silent(Duration),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("the router sent {0}")]
    Frame(#[from] FrameError),
    #[error("the router sent a {0} frame, which a router may not send at this point")]
    Unexpected(&'static str),
    #[error("the router opened stream {0}, which is open already")]
    StreamInUse(u32),
    #[error("the router does not read: {0} bytes wait to be written to it")]
    NotReading(usize),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ConnectionEnd {
    /// The error for a Fail frame on stream 0; `None` if the router needs no reason or cannot receive one.
    pub(super) fn to_wire(&self) -> Option<WireError> {
        match self {
            Self::ByRouter | Self::ByServer | Self::Io(_) | Self::Frame(FrameError::Io(_)) => None,
            Self::Hello(error) => Some(error.to_wire()),
            other => Some(WireError::new(ErrorKind::InvalidRequest, other.to_string())),
        }
    }
}
