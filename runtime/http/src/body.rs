//! Reads a request's body: bounded in bytes and in time, and never decompressed.
//!
//! The HTTP library has no timeout for bodies and no limit for raw bodies. Without both, a client that sends a byte a
//! minute would hold a connection for ever, and a client that never stops sending would fill the memory.

use std::time::Duration;

use actix_web::{
    HttpRequest,
    error::PayloadError,
    http::header::{CONTENT_ENCODING, CONTENT_LENGTH},
    web::Payload,
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use signalbox_protocol::{ErrorKind, WireError};
use tokio::time::timeout;

/// Largest buffer allocated for an announced length. A longer body's buffer grows as the body arrives.
const MAX_TRUSTED_CAPACITY: usize = 256 * 1024;

/// The bounds of a body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimits {
    /// Most bytes.
    pub(crate) bytes: usize,
    /// Longest time from the request's head to the body's last byte.
    pub(crate) time: Duration,
}

/// Reads the whole body. Fails with 413, 408, 415, or 499 if the client closed its connection.
pub(crate) async fn read(
    request: &HttpRequest,
    payload: Payload,
    limits: BodyLimits,
) -> Result<Bytes, WireError> {
    if let Some(encoding) = request.headers().get(CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        let shown: String = String::from_utf8_lossy(encoding.as_bytes())
            .chars()
            .take(40)
            .collect();
        let message = format!("the body has the Content-Encoding {shown:?}; send it without an encoding");
        return Err(WireError::new(ErrorKind::UnsupportedMedia, message));
    }
    // The HTTP library refuses a length that is no number.
    let length = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| usize::try_from(length).map_or(true, |length| length > limits.bytes))
    {
        return Err(too_large(limits.bytes));
    }
    let expected = length
        .and_then(|length| usize::try_from(length).ok())
        .unwrap_or(0);
    timeout(limits.time, collect(payload, expected, limits.bytes))
        .await
        .unwrap_or_else(|_| {
            let message = format!(
                "the body did not arrive within {} s; it may take no longer",
                limits.time.as_secs_f32()
            );
            Err(WireError::new(ErrorKind::RequestTimeout, message))
        })
}

async fn collect(mut payload: Payload, expected: usize, limit: usize) -> Result<Bytes, WireError> {
    let Some(first) = payload.next().await else {
        return Ok(Bytes::new());
    };
    let first = first.map_err(payload_error)?;
    // Most bodies arrive in one piece and are not copied.
    if first.len() == expected {
        return Ok(first);
    }
    let mut body =
        BytesMut::with_capacity(expected.clamp(first.len(), MAX_TRUSTED_CAPACITY.max(first.len())));
    let mut piece = first;
    loop {
        if body.len().saturating_add(piece.len()) > limit {
            return Err(too_large(limit));
        }
        body.extend_from_slice(&piece);
        match payload.next().await {
            Some(next) => piece = next.map_err(payload_error)?,
            None => return Ok(body.freeze()),
        }
    }
}

fn too_large(limit: usize) -> WireError {
    WireError::new(
        ErrorKind::TooLarge,
        format!("the body is larger than {limit} bytes; send at most that"),
    )
}

fn payload_error(error: PayloadError) -> WireError {
    match error {
        PayloadError::Incomplete(_) | PayloadError::Io(_) => WireError::new(
            ErrorKind::Cancelled,
            "the client closed its connection before the body was complete",
        ),
        other => WireError::new(
            ErrorKind::InvalidRequest,
            format!("the body's framing is broken: {other}"),
        ),
    }
}
