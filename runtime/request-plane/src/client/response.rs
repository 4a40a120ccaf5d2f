//! One call's answer, as its reader sees it.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{Stream, stream::FusedStream};
use signalbox_protocol::StreamSummary;

use super::{LinkError, state::SharedLink};

/// What happens on a stream: pieces, then one end.
#[derive(Debug, Clone, PartialEq)]
pub enum ResponseEvent {
    /// A piece of the answer, as the worker queued it (cut only past [`MAX_PIECE_BYTES`](crate::MAX_PIECE_BYTES)).
    Data {
        /// Tokens it stands for; of a piece that was cut, the last part has them all.
        tokens: u32,
        /// Its bytes.
        bytes: Bytes,
    },
    /// The answer is whole.
    End(StreamSummary),
}

/// The answer to one call: pieces until `End` or an error, then `None`.
///
/// Reading gives the worker leave to send more. Dropping it before its end cancels the call at the worker at once.
#[derive(Debug)]
pub struct ResponseStream {
    link: SharedLink,
    stream: u32,
    done: bool,
}

impl ResponseStream {
    pub(super) fn new(link: SharedLink, stream: u32) -> Self {
        Self {
            link,
            stream,
            done: false,
        }
    }
}

impl Stream for ResponseStream {
    type Item = Result<ResponseEvent, LinkError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.done {
            return Poll::Ready(None);
        }
        let polled = this.link.with(|link| link.mux.poll_next(this.stream, cx));
        this.done = matches!(
            polled,
            Poll::Ready(None | Some(Ok(ResponseEvent::End(_)) | Err(_)))
        );
        polled
    }
}

impl FusedStream for ResponseStream {
    fn is_terminated(&self) -> bool {
        self.done
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        if !self.done {
            self.link.with(|link| link.mux.cancel(self.stream));
        }
    }
}
