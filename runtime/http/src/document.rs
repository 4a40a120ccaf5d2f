//! An answer that is one JSON document, collected before its status is sent.
//!
//! The document is kept as the pieces in which it arrived: to copy hundreds of megabytes into one buffer would hold the
//! HTTP thread.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use actix_web::body::{BodySize, MessageBody};
use bytes::Bytes;
use futures_util::StreamExt;
use signalbox_protocol::{ErrorKind, WireError};

use crate::answer::Answer;

/// Largest answer in one JSON document. About 16 choices of 64,000 tokens with their log probabilities fit.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 256 * 1024 * 1024;

/// A complete document.
#[derive(Debug, Default)]
pub(crate) struct Document {
    pieces: VecDeque<Bytes>,
    bytes: u64,
}

impl Document {
    /// Collects `answer` to its end.
    ///
    /// # Errors
    /// The answer's own error, or it is empty or too large.
    pub(crate) async fn collect(answer: &mut impl Answer) -> Result<Self, WireError> {
        let mut document = Self::default();
        while let Some(piece) = answer.next().await {
            document.push(piece?)?;
        }
        if document.bytes == 0 {
            return Err(WireError::new(
                ErrorKind::Internal,
                "the worker's answer is empty",
            ));
        }
        Ok(document)
    }

    fn push(&mut self, piece: Bytes) -> Result<(), WireError> {
        self.bytes += piece.len() as u64;
        if self.bytes > MAX_DOCUMENT_BYTES {
            let message = format!(
                "the answer is larger than {MAX_DOCUMENT_BYTES} bytes; ask for fewer tokens or a stream"
            );
            return Err(WireError::new(ErrorKind::Internal, message));
        }
        if !piece.is_empty() {
            self.pieces.push_back(piece);
        }
        Ok(())
    }
}

impl MessageBody for Document {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.bytes)
    }

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        Poll::Ready(self.get_mut().pieces.pop_front().map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::{Stream, stream};
    use signalbox_protocol::StreamSummary;

    use super::*;

    #[derive(Debug)]
    struct Pieces<S>(S);

    impl<S: Stream<Item = Result<Bytes, WireError>> + Unpin> Stream for Pieces<S> {
        type Item = Result<Bytes, WireError>;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
            self.0.poll_next_unpin(cx)
        }
    }

    impl<S: Stream<Item = Result<Bytes, WireError>> + Unpin + std::fmt::Debug> Answer for Pieces<S> {
        fn summary(&self) -> Option<StreamSummary> {
            None
        }

        fn tokens(&self) -> u32 {
            0
        }
    }

    async fn collect(pieces: Vec<Bytes>) -> Result<Document, WireError> {
        Document::collect(&mut Pieces(stream::iter(pieces.into_iter().map(Ok)))).await
    }

    #[actix_rt::test]
    async fn a_document_leaves_in_the_pieces_in_which_it_arrived() {
        let pieces = [&b"{\"a\":"[..], b"", b"1}"].map(Bytes::from_static);
        let mut document = collect(pieces.to_vec()).await.unwrap();
        assert_eq!(document.size(), BodySize::Sized(7));
        let mut sent = Vec::new();
        while let Some(Ok(piece)) = poll_fn(|cx| Pin::new(&mut document).poll_next(cx)).await {
            sent.push(piece);
        }
        assert_eq!(sent, [&pieces[0], &pieces[2]], "no piece was copied");
        assert_eq!(sent[0].as_ptr(), pieces[0].as_ptr());
    }

    #[actix_rt::test]
    async fn an_empty_and_an_endless_document_are_errors() {
        assert!(collect(vec![]).await.unwrap_err().message.contains("empty"));
        let piece = Bytes::from(vec![b' '; 1 << 20]);
        let message = collect(vec![piece; 257]).await.unwrap_err().message;
        assert!(message.contains("268435456"), "{message}");
    }
}
