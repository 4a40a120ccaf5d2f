//! The answer to one call, as a stream.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{Stream, stream::FusedStream};

use super::{error::LinkError, response_event::ResponseEvent, state::SharedLink};

/// The answer to one call: pieces until `End` or an error, then `None`.
///
/// Reading the stream gives the worker credit to send more. Dropping the stream before its end cancels the call at the
/// worker at once.
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
