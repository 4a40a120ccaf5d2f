//! Reads a request's body: bounded in bytes and in time, and never decompressed.
//!
//! The HTTP library has no timeout for bodies and no limit for raw bodies. Without both, a client that sends a byte a
//! minute would hold a connection for ever, and a client that never stops sending would fill the memory. Many clients
//! could still do so together, so the bodies of all requests share a budget.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix_web::{
    HttpRequest,
    error::PayloadError,
    http::header::{CONTENT_ENCODING, CONTENT_LENGTH},
    web::Payload,
};
use bytes::Bytes;
use futures_util::StreamExt;
use signalbox_protocol::{ErrorKind, WireError};
use tokio::time::timeout;

use crate::connection::ConnectionHandle;

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

/// The memory that all bodies may take together, from their first byte until a worker has begun to answer.
#[derive(Debug)]
pub(crate) struct BodyBudget {
    limit: usize,
    held: AtomicUsize,
}

impl BodyBudget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            held: AtomicUsize::new(0),
        })
    }
}

/// The part of the budget that one body has. Dropping it gives the part back.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<BodyBudget>,
    bytes: usize,
}

impl Held {
    fn none(budget: &Arc<BodyBudget>) -> Self {
        Self {
            budget: Arc::clone(budget),
            bytes: 0,
        }
    }

    /// Holds `bytes` in all. A body waits for nobody: several that waited for each other would wait for ever.
    fn raise(&mut self, bytes: usize) -> Result<(), WireError> {
        let more = bytes.saturating_sub(self.bytes);
        self.bytes += more;
        let before = self.budget.held.fetch_add(more, Ordering::Relaxed);
        if before.saturating_add(more) <= self.budget.limit {
            return Ok(());
        }
        let message =
            "the bodies of other requests take all memory that is set aside for them; try again shortly";
        Err(WireError::new(ErrorKind::Overloaded, message))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A whole body.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) bytes: Bytes,
    /// Dropped when the bytes are no longer needed here.
    pub(crate) _held: Held,
}

/// Reads the whole body.
///
/// # Errors
/// 413, 408, 415, 429 if the bodies of all requests pass the budget, 400 if its framing is broken, or 499 if the client
/// closed its connection.
pub(crate) async fn read(
    request: &HttpRequest,
    payload: Payload,
    limits: BodyLimits,
    budget: &Arc<BodyBudget>,
) -> Result<Body, WireError> {
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
    let connection = request.conn_data::<ConnectionHandle>();
    let collecting = collect(payload, expected, limits.bytes, Held::none(budget), connection);
    let body = timeout(limits.time, collecting).await.unwrap_or_else(|_| {
        let message = format!(
            "the body did not arrive within {} s; it may take no longer",
            limits.time.as_secs_f32()
        );
        Err(WireError::new(ErrorKind::RequestTimeout, message))
    })?;
    if let Some(connection) = connection {
        connection.body_ended();
    }
    Ok(body)
}

async fn collect(
    mut payload: Payload,
    expected: usize,
    limit: usize,
    mut held: Held,
    connection: Option<&ConnectionHandle>,
) -> Result<Body, WireError> {
    let broken = |error| payload_error(error, connection);
    let Some(first) = payload.next().await else {
        let bytes = Bytes::new();
        return Ok(Body { bytes, _held: held });
    };
    let first = first.map_err(broken)?;
    // Most bodies arrive in one piece and are not copied.
    if first.len() == expected {
        held.raise(expected)?;
        return Ok(Body {
            bytes: first,
            _held: held,
        });
    }
    let mut body: Vec<u8> =
        Vec::with_capacity(expected.clamp(first.len(), MAX_TRUSTED_CAPACITY.max(first.len())));
    // A length that is announced is the most that can come.
    let most = if expected > 0 { expected } else { limit };
    let mut piece = first;
    loop {
        if body.len().saturating_add(piece.len()) > limit {
            return Err(too_large(limit));
        }
        let needed = body.len() + piece.len();
        if needed > body.capacity() {
            // Doubled as a vector does by itself, but not past what can come.
            let capacity = (2 * body.capacity()).min(most).max(needed);
            body.reserve_exact(capacity - body.len());
        }
        held.raise(body.capacity())?;
        body.extend_from_slice(&piece);
        match payload.next().await {
            Some(next) => piece = next.map_err(broken)?,
            None => {
                let bytes = Bytes::from(body);
                return Ok(Body { bytes, _held: held });
            }
        }
    }
}

fn too_large(limit: usize) -> WireError {
    WireError::new(
        ErrorKind::TooLarge,
        format!("the body is larger than {limit} bytes; send at most that"),
    )
}

/// The library reports a broken chunk like a connection that the client closed. The connection itself knows better.
fn payload_error(error: PayloadError, connection: Option<&ConnectionHandle>) -> WireError {
    let is_gone = connection.is_none_or(ConnectionHandle::is_gone);
    match error {
        PayloadError::Incomplete(_) | PayloadError::Io(_) if is_gone => WireError::new(
            ErrorKind::Cancelled,
            "the client closed its connection before the body was complete",
        ),
        PayloadError::Incomplete(_) => WireError::new(
            ErrorKind::InvalidRequest,
            "the body's framing is broken: a chunk has an invalid size or end",
        ),
        other => WireError::new(
            ErrorKind::InvalidRequest,
            format!("the body's framing is broken: {other}"),
        ),
    }
}
