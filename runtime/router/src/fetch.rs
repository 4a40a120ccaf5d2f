//! Calls to a worker beside its requests. [`fetch`] collects a whole answer: a tokenizer, a KV snapshot. [`watch`] reads
//! an endless one: KV events, load reports.

use std::{ops::ControlFlow, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use signalbox_protocol::Call;
use signalbox_request_plane::{CallParts, LinkError, LinkHandle, ResponseEvent};

/// Longest time for a whole answer: a large tokenizer over a slow network.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the answer was not complete after {} s", FETCH_TIMEOUT.as_secs())]
    TimedOut,
    #[error("the answer is cut short")]
    CutShort,
}

/// The whole answer to `call`, of at most `max_bytes` bytes.
pub(crate) async fn fetch(link: &LinkHandle, call: Call, max_bytes: usize) -> Result<Vec<u8>, FetchError> {
    let whole = async {
        let mut stream = link.open(parts(call))?;
        let mut answer = Vec::new();
        while let Some(event) = stream.next().await {
            match event? {
                ResponseEvent::Data { bytes, .. } if answer.len() + bytes.len() > max_bytes => {
                    return Err(FetchError::TooLarge(max_bytes));
                }
                ResponseEvent::Data { bytes, .. } => answer.extend_from_slice(&bytes),
                ResponseEvent::End(_) => return Ok(answer),
            }
        }
        Err(FetchError::CutShort)
    };
    tokio::time::timeout(FETCH_TIMEOUT, whole)
        .await
        .unwrap_or(Err(FetchError::TimedOut))
}

/// Passes each piece of an endless answer to `receive`. Returns `Break` when `receive` does, and `Continue` when the
/// stream ends.
pub(crate) async fn watch(
    link: &LinkHandle,
    call: Call,
    mut receive: impl FnMut(Bytes) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, LinkError> {
    let mut stream = link.open(parts(call))?;
    while let Some(event) = stream.next().await {
        match event? {
            ResponseEvent::Data { bytes, .. } => {
                if receive(bytes).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            ResponseEvent::End(_) => break,
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn parts(call: Call) -> CallParts {
    CallParts {
        call,
        tokens: Vec::new(),
        body: Bytes::new(),
    }
}
